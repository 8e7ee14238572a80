# SPDX-License-Identifier: Apache-2.0
"""Arrays read in parts hold what one reading of the whole file gives, wherever the parts end; all else is refused."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from padding.data import json_parts
from padding.data.coco_json import Category, ImageEntry, PanopticEntry, PanopticFile
from padding.data.json_parts import NotPlainError, typed_parts
from tests.fuzz.mutators import mutate_json_text

KINDS = {"images": ImageEntry, "annotations": PanopticEntry, "categories": Category}
NAMES = ("plain", "{", "}{", "a]", '\\"}', "é{ü", "\\\\")


def content() -> dict[str, Any]:
    segments = [{"id": i + 1, "category_id": 3, "bbox": [1, {"x": [2]}], "area": 5} for i in range(3)]
    return {
        "info": {"note": "} ] \\", "deep": [[{}, []]]},
        "number": -1.5e3,
        "annotations": [
            {"image_id": i, "file_name": name, "segments_info": segments[: i % 4]} for i, name in enumerate(NAMES)
        ],
        "text": "a } b",
        "categories": [{"id": 3, "name": "car {"}],
        "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
        "nothing": None,
    }


def read(path: Path) -> PanopticFile:
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for key, entries in typed_parts(path, KINDS):
        assert entries
        found[key] += entries
    return PanopticFile(**found)


@pytest.mark.parametrize("size", [1, 7, 90, 400, 1 << 22])
@pytest.mark.parametrize("indent", [None, 3])
def test_parts_of_any_size_give_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_parts, "_PART", size)
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content(), indent=indent, ensure_ascii=size % 2 == 0).encode())
    assert read(path) == msgspec.json.decode(path.read_bytes()[3:], type=PanopticFile)


def test_empty_arrays_give_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"images": [ ], "annotations":[],"categories": [\n]} \n')
    assert read(path) == PanopticFile([], [], [])


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "annotations": []}',
        '{"images": [], "annotations": [], "categories": [], "images": []}',
        '{"images": [], "annotations": [], "categories": []} x',
        '{"images": [], "annotations": [], "categories": []',
        '{"images": [{"id": 1, "file_name": "a"},], "annotations": [], "categories": []}',
        '{"images": [{"id": 1}], "annotations": [], "categories": []}',
        '{"images": [1], "annotations": [], "categories": []}',
        '{"images": null, "annotations": [], "categories": []}',
        '{"info": {"a": }, "images": [], "annotations": [], "categories": []}',
        '{"info": NaN, "images": [], "annotations": [], "categories": []}',
        '{"info": ["images": [], "annotations": [], "categories": []}',
        "[]",
        "",
    ],
)
def test_what_is_not_plain_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(NotPlainError):
        read(path)


def test_damaged_text_is_refused_or_read_as_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parts, "_PART", 64)
    path, rng = tmp_path / "x.json", random.Random(0)
    sound, refused = json.dumps(content()).encode(), 0
    for _ in range(400):
        path.write_bytes(mutate_json_text(sound, rng)[0])
        try:
            found = read(path)
        except NotPlainError:
            refused += 1
            continue
        assert found == msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=PanopticFile)
    assert 0 < refused < 400
