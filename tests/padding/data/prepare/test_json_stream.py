# SPDX-License-Identifier: Apache-2.0
"""The incremental reader against json.load, for every size of the window, and on damaged files."""

import json
from pathlib import Path

import pytest

from padding.data.prepare import json_stream
from padding.data.prepare.json_stream import JsonStreamError, stream_json

DOCUMENT = {
    "info": {"note": 'a "quoted" } ] , text with ünïcode \u2603', "empty": {}},
    "images": [{"id": 12345, "f": -1.5e-3}, {"id": 2, "nested": [[1, 2], {"a": None}]}],
    "numbers": [1, 22, 333, 4444],
    "nothing": [],
    "annotations": [
        {"segments_info": [{"id": i, "iscrowd": i % 2} for i in range(5)], "image_id": k} for k in range(7)
    ],
    "flag": True,
    "last": 987654,
}
ARRAYS = ("images", "annotations", "numbers", "nothing")


def collect(path: Path) -> dict:
    found: dict = {key: [] for key in ARRAYS}
    for key, value in stream_json(path, ARRAYS):
        if key in ARRAYS:
            found[key].append(value)
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk_chars", [1, 2, 7, 64, 1 << 20])
def test_streaming_equals_json_load(tmp_path, monkeypatch, chunk_chars, indent):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", chunk_chars)
    path = tmp_path / "document.json"
    path.write_text(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert collect(path) == json.loads(path.read_text(encoding="utf-8"))


def test_empty_object_yields_nothing(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text(" { } \n")
    assert list(stream_json(path, ARRAYS)) == []


def test_long_value_spanning_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", 3)
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"images": [{"x": "y" * 5000}, {"x": 1}]}))
    assert [len(str(value["x"])) for _, value in stream_json(path, ["images"])] == [5000, 1]


def test_every_cut_is_an_error_naming_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", 64)
    text = json.dumps(DOCUMENT)
    path = tmp_path / "cut.json"
    for end in range(0, len(text), 5):
        path.write_text(text[:end])
        with pytest.raises(JsonStreamError, match=r"cut\.json.*fetch or unpack the file again"):
            collect(path)


def test_cut_says_how_far_it_came(tmp_path):
    text = json.dumps(DOCUMENT)
    path = tmp_path / "cut.json"
    path.write_text(text[: text.index('"image_id": 4')])
    with pytest.raises(JsonStreamError, match="after entry 4 of 'annotations'"):
        collect(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected '{'"),
        ('{"images": {"id": 1}}', r"expected '\['"),
        ('{"images": [1 2]}', "after entry 1 of 'images'"),
        ('{"a": 1} {"b": 2}', "text after the end"),
        ("{3: 4}", "expected a key"),
        ('{"a": 1 "b": 2}', "expected ',' or '}'"),
    ],
)
def test_damaged_text_is_an_error(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(JsonStreamError, match=message):
        list(stream_json(path, ["images"]))


def test_binary_file_is_an_error(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(JsonStreamError, match="not UTF-8"):
        list(stream_json(path, []))
