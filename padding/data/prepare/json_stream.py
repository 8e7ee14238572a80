# SPDX-License-Identifier: Apache-2.0
"""Walk the big arrays of a JSON file entry by entry (the panoptic annotations of COCO train2017 are 400 MB of text).

Only `json.JSONDecoder.raw_decode` does the parsing; this module feeds it a moving window of the file.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from padding.errors import PreparationError

_CHUNK_CHARS = 1 << 20
_BLANKS = " \t\n\r"
_DECODER = json.JSONDecoder()


class JsonStreamError(PreparationError):
    """A file that is not the JSON object it should be; the message names the file and the cure."""


@dataclass
class _Window:
    """The part of a JSON text that is in memory: `text[position:]` is unread."""

    path: Path
    stream: TextIO
    text: str = ""
    position: int = 0
    ended: bool = False
    where: str = "its first value"

    def peek(self) -> str:
        """Next character that is not blank, '' at the end of the file; it stays unread."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _BLANKS:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read_more(_CHUNK_CHARS):
                return ""

    def take(self, expected: str) -> str:
        """Consume one character, which must be one of ``expected``."""
        found = self.peek()
        if not found:
            raise self._cut()
        if found not in expected:
            choices = " or ".join(repr(character) for character in expected)
            raise JsonStreamError(
                f"{self.path}: expected {choices} after {self.where}, found {found!r}. "
                "The file is damaged; fetch it again."
            )
        self.position += 1
        return found

    def value(self) -> Any:
        """Decode and consume one whole value."""
        self.peek()
        wanted = _CHUNK_CHARS
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except RecursionError as error:
                raise JsonStreamError(
                    f"{self.path}: the value after {self.where} is nested too deeply to be an annotation; fetch the "
                    "file again."
                ) from error
            except ValueError as error:
                # Doubling keeps the repeated decoding of one long value linear in its length.
                if not self._read_more(wanted):
                    raise self._cut() from error
                wanted *= 2
                continue
            # "12" at the end of the window may be the start of "123".
            if end == len(self.text) and self._read_more(_CHUNK_CHARS):
                continue
            self.position = end
            return value

    def _read_more(self, chars: int) -> bool:
        if self.ended:
            return False
        try:
            chunk = self.stream.read(chars)
        except UnicodeDecodeError as error:
            raise JsonStreamError(f"{self.path} is not UTF-8 text ({error}); is it a JSON file?") from error
        self.ended = not chunk
        self.text = self.text[self.position :] + chunk
        self.position = 0
        return bool(chunk)

    def _cut(self) -> JsonStreamError:
        return JsonStreamError(
            f"{self.path}: the JSON ends or breaks after {self.where} ({self.path.stat().st_size} bytes in all). "
            "The download or copy was cut: fetch or unpack the file again."
        )


def stream_json(path: str | Path, arrays: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the content of a JSON object in file order, the named arrays entry by entry.

    Args:
        path: file that holds one JSON object.
        arrays: keys of the top level whose value is an array to walk; other values are yielded whole.

    Yields:
        ``(key, value)``; for a key of ``arrays`` one pair for each entry, none for an empty array.

    Raises:
        MissingFileError: no such file.
        JsonStreamError: cut or damaged text, or a named key that is not an array.
    """
    path = Path(path)
    with path.open(encoding="utf-8-sig") as stream:
        window = _Window(path, stream)
        window.take("{")
        closed = window.peek() == "}" and bool(window.take("}"))
        while not closed:
            key = window.value()
            if not isinstance(key, str):
                raise JsonStreamError(f"{path}: expected a key after {window.where}, found {key!r}. It is damaged.")
            window.where = f"key {key!r}"
            window.take(":")
            if key in arrays:
                yield from _entries(window, key)
            else:
                yield key, window.value()
            closed = window.take(",}") == "}"
        if window.peek():
            raise JsonStreamError(
                f"{path}: text after the end of the JSON object. The file is damaged; fetch it again."
            )


def _entries(window: _Window, key: str) -> Iterator[tuple[str, Any]]:
    """The entries of one array; the window ends up behind its closing bracket."""
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    for number in count(1):
        entry = window.value()
        window.where = f"entry {number} of {key!r}"
        yield key, entry
        if window.take(",]") == "]":
            return
