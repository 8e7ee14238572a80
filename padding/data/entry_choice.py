# SPDX-License-Identifier: Apache-2.0
"""A few entries of a data set, to look at."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from padding.data.sample import DatasetDict
from padding.data.sets.scribbles import label_key
from padding.errors import DataError

__all__ = ["choose_entries"]


def choose_entries(
    entries: Sequence[dict[str, Any]], *, number: int = 0, ids: Sequence[str] = (), what: str = "image"
) -> list[dict[str, Any]]:
    """Entries by name or, without names, evenly spread.

    Args:
        entries: of a data set.
        number: of entries if there are no ``ids``; 0: all.
        ids: images by id or stem of their file; where several entries have one name, all of them are taken.
        what: the entries are, for the message.

    Raises:
        DataError: an id is unknown.
    """
    if not ids:
        if not 0 < number < len(entries):
            return list(entries)
        return [entries[i] for i in np.linspace(0, len(entries) - 1, number).astype(int)]
    known: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for name in dict.fromkeys((str(entry["image_id"]), label_key(cast(DatasetDict, entry)))):
            known.setdefault(name, []).append(entry)
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise DataError(f"no {what} is called {', '.join(unknown)}; the first ones are {', '.join(list(known)[:4])}")
    return [entry for name in ids for entry in known[name]]
