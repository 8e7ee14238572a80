# SPDX-License-Identifier: Apache-2.0
"""The long arrays of a JSON file, decoded part by part into a type: memory does not grow with the file.

For files that are well formed, which nearly all are. Anything else is left to ``typed_json``, which reads the whole
file and says what is wrong where.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

_PART = 1 << 22  # bytes decoded at a time
_BLANKS = b" \t\n\r"
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,\]}"{\[]+', re.DOTALL)
_LONGEST_KEY = 1 << 12


class NotPlainError(ValueError):
    """The file is not what it should be, or is written in a way that is not read in parts."""


def typed_parts(path: str | Path, kinds: Mapping[str, type]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the entries of some arrays of a JSON object in file order, thousands at a time.

    Args:
        path: UTF-8 JSON, with or without a byte order mark.
        kinds: key of the top level whose value is an array of objects -> type of its entries; other keys are skipped.

    Yields:
        Key and decoded entries; nothing for an empty array.

    Raises:
        NotPlainError: damaged, of another shape or type, a key twice, one of ``kinds`` missing; what was yielded before
            is of no use.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        window = _Window(stream)
        found: list[str] = []
        window.take(b"{")
        closed = b""
        while closed != b"}":
            found.append(window.key())
            if found[-1] in kinds:
                for entries in window.entries(kinds[found[-1]]):
                    yield found[-1], entries
            else:
                window.skip_value()
            closed = window.take(b",}")
        window.expect_end()
    if len(set(found)) < len(found) or not set(kinds) <= set(found):
        raise NotPlainError


class _Window:
    """The part of a file that is in memory: ``content[position:]`` is unread."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.content = stream.read(_LONGEST_KEY).removeprefix(codecs.BOM_UTF8)
        self.position = 0

    def more(self, size: int = 0) -> bool:
        """Read a part, or so many bytes; False at the end of the file."""
        following = self.stream.read(size or _PART)
        self.content = self.content[self.position :] + following
        self.position = 0
        return bool(following)

    def at_least(self, size: int) -> None:
        """Have so many bytes unread, or all that are left."""
        missing = size - (len(self.content) - self.position)
        if missing > 0:
            self.more(missing)

    def peek(self) -> bytes:
        """Next byte that is no blank, b"" at the end; it stays unread."""
        while True:
            rest = self.content[self.position : self.position + 1]
            if rest and rest not in _BLANKS:
                return rest
            if rest:
                self.position += 1
            elif not self.more():
                return b""

    def take(self, expected: bytes) -> bytes:
        """Consume one byte out of several."""
        found = self.peek()
        if not found or found not in expected:
            raise NotPlainError
        self.position += 1
        return found

    def expect_end(self) -> None:
        """Only blanks are left."""
        if self.peek():
            raise NotPlainError

    def key(self) -> str:
        """Consume a key and its colon."""
        self.at_least(_LONGEST_KEY)
        match = _KEY.match(self.content, self.position)
        if match is None:
            raise NotPlainError
        self.position = match.end()
        return _decoded(match[1], str)

    def skip_value(self) -> None:
        """Consume a value of any kind, which must be sound."""
        if self.peek() in (b"{", b"["):
            while (end := _end_of_value(self.content, self.position)) < 0:
                if not self.more(max(_PART, len(self.content))):
                    raise NotPlainError
        else:
            self.at_least(_LONGEST_KEY)
            match = _SCALAR.match(self.content, self.position)
            if match is None:
                raise NotPlainError
            end = match.end()
        _decoded(self.content[self.position : end], Any)
        self.position = end

    def entries(self, kind: Any) -> Iterator[list[Any]]:
        """Consume an array of objects, as lists of decoded entries."""
        self.take(b"[")
        if self.peek() == b"]":
            self.position += 1
            return
        separator = b","
        while separator == b",":
            if self.peek() != b"{":
                raise NotPlainError
            yield self._some_entries(kind)
            separator = self.take(b",]")

    def _some_entries(self, kind: Any) -> list[Any]:
        """Consume as many whole entries as the window holds, at least one."""
        self.at_least(_PART)
        while True:
            part = self.content[self.position :]
            for find_end in (_last_entry_by_count, _last_entry):
                # The first is almost always right; where it is not, what it gives cannot be decoded.
                end = find_end(part)
                entries = _whole_entries(part[:end], kind) if end else None
                if entries:
                    self.position += end
                    return entries
            if not self.more(max(_PART, len(part))):
                raise NotPlainError


def _decoded(content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError) as error:
        raise NotPlainError from error


def _whole_entries(text: bytes, kind: Any) -> list[Any] | None:
    """The objects of a list without its brackets; None where it breaks off or goes on.

    Raises:
        NotPlainError: they are of another type.
    """
    try:
        return msgspec.json.decode(b"[" + text + b"]", type=list[kind])
    except msgspec.ValidationError as error:
        raise NotPlainError from error
    except (ValueError, RecursionError):
        return None


def _last_entry_by_count(part: bytes) -> int:
    """End of the last whole object of a list of objects, by the number of braces, as if no text held one; 0: none."""
    depth, end = part.count(b"{") - part.count(b"}"), len(part)
    while end > 0:
        close = part.rfind(b"}", 0, end)
        if close < 0:
            return 0
        depth -= part.count(b"{", close, end)
        if depth == 0:
            return close + 1
        depth += 1
        end = close
    return 0


def _last_entry(part: bytes) -> int:
    """The same by reading, up to the end of the list; 0: none."""
    depth = end = 0
    for token in _TOKEN.finditer(part):
        text = token[0]
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                end = token.end()
    return end


def _end_of_value(content: bytes, start: int) -> int:
    """End of the object or array that begins at a place, -1 if it goes on."""
    depth = 0
    for token in _TOKEN.finditer(content, start):
        if token[0] in (b"{", b"["):
            depth += 1
        elif token[0] in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end()
    return -1
