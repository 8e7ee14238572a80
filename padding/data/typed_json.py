# SPDX-License-Identifier: Apache-2.0
"""JSON files read into a type: what has another shape becomes one error that names the file, the place and the entry.

msgspec decodes and checks in one pass, several times faster than ``json`` parses and in less memory. NaN and infinity,
which are no JSON but which Python writes, are read the slow way; whether they may stand there the reader decides.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from padding.errors import DataError, MissingFileError

T = TypeVar("T")

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]+")
_NAMES = ("id", "image_id", "file_name")


def read_typed_json(path: str | Path, kind: type[T], *, cure: str = "") -> T:
    """Parse a UTF-8 JSON file, with or without a byte order mark.

    Args:
        path: the file.
        kind: what it holds; keys that the type does not have are skipped.
        cure: sentence appended to every error: how the file is obtained.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not valid JSON (as when a download was cut), or something in it is of another type; the message
            names the place, such as ``annotations[3].segmentation``, and the entry there.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. {cure}".rstrip())
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    value, problem = None, ""
    try:
        value = _decoded(content, kind)
        problem = _repeated_key(kind, content)
    except msgspec.ValidationError as error:
        problem = _problem(error, content)
    except (ValueError, RecursionError) as error:
        problem = (
            f"not valid JSON ({error}); the file is damaged or was cut while it was written, or its text is not UTF-8. "
            "Obtain it again."
        )
    if value is None or problem:
        raise DataError(f"{path}: {problem} {cure}".rstrip())
    return value


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError):
        return msgspec.convert(_parsed(content), kind)


def typed_entry(
    entry: Any, kind: type[T], *, path: str | Path, place: str, error_kind: type[DataError] = DataError
) -> T:
    """One entry of a file that is parsed already, checked like those of ``read_typed_json``.

    Args:
        entry: as ``json`` parsed it.
        kind: what it should be.
        path: the file.
        place: name of the entry, such as "an annotation".
        error_kind: class of the error.

    Raises:
        DataError: it is of another type.
    """
    try:
        return msgspec.convert(entry, kind)
    except ValueError as error:  # also where a text holds what is no character
        what, where = _split(error) if isinstance(error, msgspec.ValidationError) else (str(error), "")
        where = f"{place}{_entry_name(entry)}{where and f', {where}'}"
        raise error_kind(f"{path}: {_sentence(what, where)}") from error


def _parsed(content: bytes) -> Any:
    return json.loads(content.decode("utf-8"))


def _repeated_key(kind: Any, content: bytes) -> str:
    """A key of the top level that stands twice, of which parsers keep the last alone: what is wrong, "" if nothing."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return ""
    # A text that holds the name is looked at again; searching alone costs next to nothing.
    if all(content.count(f'"{name}"'.encode()) < 2 for name in kind.__struct_fields__):
        return ""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # the last object to be closed is the outermost
        return dict(pairs)

    json.loads(content.decode("utf-8", "replace"), object_pairs_hook=keep)
    repeated = [name for name, count in Counter(name for name, _ in outermost).items() if count > 1]
    return f"the key '{repeated[0]}' stands twice; leave one, or join what both hold." if repeated else ""


def _split(error: msgspec.ValidationError) -> tuple[str, str]:
    match = _PLACE.fullmatch(str(error))
    assert match is not None
    return match["what"].replace("`", "'"), match["place"] or ""


def _sentence(what: str, place: str) -> str:
    return f"{place or 'the top level'}: {what[:1].lower()}{what[1:]}. Correct it, or obtain the file again."


def _problem(error: msgspec.ValidationError, content: bytes) -> str:
    what, place = _split(error)
    return _sentence(what, f"{place}{_name_at(place, content)}" if place else "")


def _name_at(place: str, content: bytes) -> str:
    """The id or name of the outermost entry at a place such as ``annotations[3].iscrowd``; the file is parsed again."""
    try:
        value = _parsed(content)
        for step in _STEP.findall(place):
            value = value[int(step)] if isinstance(value, list) else value[step]
            if isinstance(value, Mapping) and (name := _entry_name(value)):
                return name
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    return ""


def _entry_name(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return ""
    names = [f"{key} {entry[key]!r}" for key in _NAMES if isinstance(entry.get(key), (int, str))]
    return f" ({', '.join(names)[:80]})" if names else ""
