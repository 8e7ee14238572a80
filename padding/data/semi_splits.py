# SPDX-License-Identifier: Apache-2.0
"""Which images of a training set have labels: lists of image ids, their checks, and the selection of entries.

A split is a folder with ``labeled.txt`` and ``unlabeled.txt``. Shipped ones lie in ``datasets/splits/<data>/<protocol>/
<ratio>``; the protocol is part of the name, because numbers on different splits of the same ratio differ by several
points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padding.data.loaders.listed_images import read_id_list
from padding.data.roots import splits_dir
from padding.errors import ConfigError, DataError, MissingFileError

LISTS = ("labeled.txt", "unlabeled.txt")


@dataclass(frozen=True)
class SemiSplit:
    """Ids of the labeled and of the unlabeled images."""

    name: str  # as the key DATASETS.SPLIT has it
    labeled: tuple[str, ...]  # unique ids
    unlabeled: tuple[str, ...]  # unique ids, none of them labeled
    digest: str  # first 16 digits of the SHA-256 of both lists, to be quoted beside a result

    def __str__(self) -> str:
        return f"{self.name}: {len(self.labeled)} labeled, {len(self.unlabeled)} unlabeled, lists {self.digest}"


def read_semi_split(name: str) -> SemiSplit:
    """Read a shipped split by its name, such as "voc/cps_blender/1_8", or both lists of any folder by its path.

    Raises:
        MissingFileError: no such split; names the shipped ones of the same data.
        DataError: an id is in both lists, or twice in one.
    """
    folder = next((path for path in (splits_dir() / name, Path(name)) if (path / LISTS[0]).is_file()), None)
    if folder is None:
        shipped = shipped_splits()
        near = [known for known in shipped if known.split("/")[0] == name.split("/")[0]]
        first = dict.fromkeys(f"{known.split('/')[0]}/..." for known in shipped)
        raise MissingFileError(
            f"DATASETS.SPLIT is '{name}', but neither datasets/splits nor the file system has such a folder with "
            f"{' and '.join(LISTS)}; shipped are {', '.join(near or first)}; lists of your own are written by 'python "
            f"datasets/prepare_splits.py --folder {name} --images DIR --draw N'"
        )
    labeled, unlabeled = (read_id_list(folder / file) for file in LISTS)
    both = sorted(set(labeled) & set(unlabeled))
    if both:
        raise DataError(f"{folder}: {len(both)} images are in both lists, first {both[0]}; remove them from {LISTS[1]}")
    digest = hashlib.sha256(b"".join((folder / file).read_bytes() for file in LISTS)).hexdigest()[:16]
    return SemiSplit(name, labeled, unlabeled, digest)


def shipped_splits() -> tuple[str, ...]:
    """Names of all splits below ``datasets/splits``, sorted."""
    root = splits_dir()
    return tuple(sorted(str(path.parent.relative_to(root)) for path in root.rglob(LISTS[0])))


def select_entries(
    entries: Sequence[dict[str, Any]], ids: Sequence[str], *, split: str, data: Sequence[str]
) -> list[dict[str, Any]]:
    """Entries of some images, in the order of the ids.

    Args:
        entries: of the whole training set, each with ``image_id`` and ``file_name``.
        ids: image ids; an entry is found by its ``image_id`` or by the name of its file without ending.
        split: name of the split, for the message.
        data: names of the data sets, for the message.

    Raises:
        ValueError: ids that the data do not have, or that two images share.
    """
    by_id: dict[str, dict[str, Any]] = {}
    shared: set[str] = set()
    for entry in entries:
        for key in {str(entry.get("image_id", "")), Path(entry["file_name"]).stem}:
            if by_id.setdefault(key, entry)["file_name"] != entry["file_name"]:
                shared.add(key)
    ambiguous = [one for one in ids if one in shared]
    if ambiguous:
        raise DataError(
            f"{len(ambiguous)} image ids of the split '{split}' name several images of {', '.join(data)}, first "
            f"{ambiguous[0]}; rename the files, or use one data set"
        )
    missing = [one for one in ids if one not in by_id]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(ids)} images of the split '{split}' are not in {', '.join(data)} "
            f"({len(entries)} images), first {', '.join(missing[:3])}; choose another DATASETS.SPLIT "
            "or complete the data"
        )
    return [by_id[one] for one in ids]
