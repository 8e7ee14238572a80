# SPDX-License-Identifier: Apache-2.0
"""Annotation files of prepared data sets: a JSON written entry by entry, and the summary that stands beside it.

Both appear by rename, complete or not at all: a killed preparation leaves the old file or none.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["read_summary", "replacing", "write_annotation_file", "write_summary"]

Summary = TypeVar("Summary", bound="DataclassInstance")
_COPIED_CHARS = 1 << 20


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Hand out a path beside ``target`` to write to; it is renamed to ``target`` at the end, removed on an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_annotation_file(target: Path, write_entries: Callable[[TextIO], Mapping[str, Any]]) -> int:
    """Write a JSON whose array ``annotations`` need not fit into memory, and which stands behind all other keys.

    Args:
        target: JSON to write.
        write_entries: writes the annotations as JSON texts, with ", " between them, and returns the other keys.

    Returns:
        Size of the file in bytes.
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
    with replacing(_summary_file(target)) as temporary:
        temporary.write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")


def read_summary(target: Path, kind: type[Summary]) -> Summary | None:
    """The summary beside ``target``; None where either is missing or the summary is unreadable."""
    try:
        summary = kind(**json.loads(_summary_file(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return summary if target.is_file() else None


def _summary_file(target: Path) -> Path:
    return target.with_suffix(".summary.json")
