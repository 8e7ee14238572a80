# SPDX-License-Identifier: Apache-2.0
"""JSON read into a type: what Python's own parser accepts, and errors that name file, place and entry."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from padding.data.typed_json import read_typed_json, typed_entry
from padding.errors import DataError, MissingFileError


class Entry(msgspec.Struct):
    id: int
    size: list[float] = []
    name: str = ""


class Content(msgspec.Struct):
    entries: list[Entry]


def write(folder: Path, content: Any) -> Path:
    path = folder / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_values_and_further_keys(tmp_path: Path) -> None:
    path = write(tmp_path, {"entries": [{"id": 3, "size": [1, 2.5], "more": None}], "info": {}})
    assert read_typed_json(path, Content).entries == [Entry(3, [1.0, 2.5])]


def test_byte_order_mark_and_numbers_that_are_no_json(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"entries": [{"id": 3, "size": [Infinity], "note": NaN}]}\r\n')
    assert read_typed_json(path, Content).entries == [Entry(3, [float("inf")])]


def test_the_name_of_a_key_may_stand_elsewhere(tmp_path: Path) -> None:
    content = b'{"entries": [{"id": 3, "name": "entries", "entries": {"entries": 1}}], "x": "\xe4"}'
    assert read_typed_json(write(tmp_path, content), Content).entries == [Entry(3, [], "entries")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"the top level: expected 'object', got 'array'\. Correct it"),
        ({}, "the top level: object missing required field 'entries'"),
        ({"entries": [{"id": 1}, {"id": None}]}, r"entries\[1\]\.id: expected 'int', got 'null'"),
        ({"entries": [{"id": 7, "size": ["1"]}]}, r"entries\[0\]\.size\[0\] \(id 7\): expected 'float', got 'str'"),
        (b'{"entries": [{"id": 7, "size": [NaN, "1"]}]}', r"entries\[0\]\.size\[1\] \(id 7\): expected 'float'"),
        (b'{"entries": [{"id": 1}], "entries": []}', "the key 'entries' stands twice; leave one, or join"),
        (b'{"entries": [{"id": 1, "size": [NaN]}], "entries": []}', "the key 'entries' stands twice"),
        (b'{"entries": [', r"not valid JSON \(.*\); the file is damaged or was cut"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON|the top level"),
        (b'{"entries": [], "more": ' + b"[" * 100_000, "not valid JSON"),
        ('{"entries": []}'.encode("utf-16"), "not valid JSON .*not UTF-8"),
        (b'{"entries": [{"id": 1, "name": "\xe4"}]}', "not valid JSON .*not UTF-8"),
    ],
)
def test_errors_name_file_place_and_entry(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.json: {message}.* Fetch it\.$"):
        read_typed_json(write(tmp_path, content), Content, cure="Fetch it.")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.json: no such file\. Fetch it\."):
        read_typed_json(tmp_path / "none.json", Content, cure="Fetch it.")


def test_entries_that_are_parsed_already() -> None:
    assert typed_entry({"id": 4, "more": 1}, Entry, path="x.json", place="an entry") == Entry(4)
    with pytest.raises(DataError, match=r"x\.json: an entry \(id 4\), size: expected 'array', got 'int'"):
        typed_entry({"id": 4, "size": 1}, Entry, path="x.json", place="an entry")
    with pytest.raises(DataError, match=r"x\.json: an entry \(id 4\): .*surrogates not allowed"):
        typed_entry({"id": 4, "\ud800": 1}, Entry, path="x.json", place="an entry")
    with pytest.raises(DataError, match=r"x\.json: an entry: expected 'object', got 'str'"):
        typed_entry("4", Entry, path="x.json", place="an entry")
