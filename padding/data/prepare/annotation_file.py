# SPDX-License-Identifier: Apache-2.0
"""Annotation files of prepared data sets: a JSON written entry by entry, and the summary that stands beside it.

Both appear by rename, complete or not at all: a killed preparation leaves the old file or none.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from padding.data.files import replacing, write_json
from padding.data.typed_json import read_typed_json
from padding.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Summary = TypeVar("Summary", bound="DataclassInstance")
_COPIED_CHARS = 1 << 20


def write_annotation_file(target: Path, write_entries: Callable[[TextIO], Mapping[str, Any]]) -> int:
    """Write a JSON whose array ``annotations`` need not fit into memory, and which stands behind all other keys.

    ``write_entries`` writes the annotations as JSON texts, with ", " between them, and returns the other keys. Returned
    is the size of the file in bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=target.parent) as entries:
        head = write_entries(entries)
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
            opening = json.dumps(head)[:-1]
            stream.write(opening + (", " if head else "") + '"annotations": [')
            entries.seek(0)
            while chunk := entries.read(_COPIED_CHARS):
                stream.write(chunk)
            stream.write("]}")
    return target.stat().st_size


def write_summary(target: Path, summary: "DataclassInstance") -> None:
    """Write a dataclass of plain values beside ``target``."""
    write_json(_summary_file(target), asdict(summary))


def read_summary(target: Path, kind: type[Summary]) -> Summary | None:
    """The summary beside ``target``; None where either is missing or the summary is unreadable."""
    try:
        summary = read_typed_json(_summary_file(target), kind)
    except (OSError, UserError):
        return None
    return summary if target.is_file() else None


def finished_summary(target: Path, now: Summary) -> Summary | None:
    """The summary beside ``target`` of an earlier run on the same input, which its fields without a default describe.

    ``target`` must have the size that the field ``target_bytes`` says.
    """
    earlier = read_summary(target, type(now))
    if earlier is None or asdict(earlier)["target_bytes"] != target.stat().st_size:
        return None
    inputs = [entry.name for entry in fields(now) if entry.default is entry.default_factory is MISSING]
    return earlier if all(getattr(earlier, name) == getattr(now, name) for name in inputs) else None


def _summary_file(target: Path) -> Path:
    return target.with_suffix(".summary.json")
