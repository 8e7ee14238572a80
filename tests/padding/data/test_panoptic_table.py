# SPDX-License-Identifier: Apache-2.0
"""A panoptic file as columns says what its objects say, and takes less memory than its text."""

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from padding.data import json_parts, panoptic_table
from padding.data.class_split import ClassSplit
from padding.data.coco_json import PanopticFile
from padding.data.panoptic_table import PanopticTable, SegmentColumns, SegmentList, classes_of, read_panoptic_file
from padding.data.streams import TrainStream
from padding.data.typed_json import read_typed_json
from padding.errors import DataError, MissingFileError

SPLIT = ClassSplit(("car", "zebra", "sky"), (True, True, False), (3, 24, 40))


def content(images: int = 3, segments: int = 4) -> dict[str, Any]:
    """Image i has i % segments + 1 segments; some keys are missing, null or 0."""
    areas: list[Any] = [12, 12.5, None]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in range(images)],
        "categories": [
            {"id": c, "name": name, "isthing": 1} for c, name in zip(SPLIT.dataset_ids, SPLIT.names, strict=True)
        ],
        "annotations": [
            {
                "image_id": i,
                "file_name": f"{i}.png",
                "segments_info": [
                    {
                        "id": 70 + j * (1 << 16),
                        "category_id": SPLIT.dataset_ids[j % 3],
                        "area": areas[j % 3],
                        "bbox": [100, 100, 200 + j, 300],
                        **({"iscrowd": j % 2} if j < 3 else {}),
                    }
                    for j in range(i % segments + 1)
                ],
                **({"ignored_segment_ids": [5, 6]} if i == 1 else {}),
            }
            for i in reversed(range(images))
        ],
    }


def written(folder: Path, value: dict[str, Any]) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(value))
    return path


def test_entries_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parts, "_PART", 200)
    path = written(tmp_path, content(9))
    table = read_panoptic_file(path)
    whole = read_typed_json(path, PanopticFile)
    assert (table.images, table.categories) == (whole.images, whole.categories)
    for annotation in whole.annotations:
        for segment in annotation.segments_info:
            segment.iscrowd = bool(segment.iscrowd)  # not stated and 0 are one thing
    assert list(table.entries()) == whole.annotations
    assert list(table.entries()) == list(PanopticTable.of(whole).entries())


def test_a_sound_file_is_never_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panoptic_table, "read_checked", lambda *_: pytest.fail("read as a whole"))
    assert read_panoptic_file(written(tmp_path, content())).image_ids == [2, 1, 0]


def test_a_file_with_infinity_is_read_as_a_whole(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["segments_info"][0]["area"] = float("inf")
    assert read_panoptic_file(written(tmp_path, value)).entry(2).segments_info[0].area == float("inf")


def test_a_category_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    value = content()
    value["categories"][0]["id"] = value["annotations"][2]["segments_info"][0]["category_id"] = 1 << 70
    value["annotations"] = value["annotations"][2:]
    with pytest.raises(DataError, match=r"x\.json: a category id needs more than 64 bits; give smaller ones\. Fetch"):
        read_panoptic_file(written(tmp_path, value), cure="Fetch it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["annotations"][0].update(image_id=1), "image 1 is annotated twice"),
        (lambda v: v["annotations"][0].update(image_id=8), "image 8 is annotated but not listed"),
        (lambda v: v["annotations"][0]["segments_info"][0].update(id=0), "lists segment ids from 0"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(id=70), r"segment ids \[70\] more than once"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(id=1 << 24), "a PNG holds 1 to 16777215"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(id=1 << 70), "a PNG holds 1 to 16777215"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(category_id=1 << 70), "unknown category id 1180591"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(category_id=4), "unknown category id 4"),
        (lambda v: v["categories"][0].update(id=24), "category id 24 stands 2 times"),
        (lambda v: v["images"][0].update(id=1), "image id 1 stands 2 times"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, message: str) -> None:
    value = content()
    change(value)
    with pytest.raises(DataError, match=rf"x\.json: .*{message}.* Fetch it\.$"):
        read_panoptic_file(written(tmp_path, value), cure="Fetch it.")


def test_the_same_id_in_two_images_is_sound(tmp_path: Path) -> None:
    table = read_panoptic_file(written(tmp_path, content()))
    assert [entry.segments_info[0].id for entry in table.entries()] == [70, 70, 70]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"x\.json: no such file\. Fetch it\.$"):
        read_panoptic_file(tmp_path / "x.json", cure="Fetch it.")


def test_segments_are_a_list_to_their_readers() -> None:
    columns = SegmentColumns(
        np.array([7, 8, 9], np.int32), np.array([0, 1, 0], np.int16), np.array([0, 1, 0], bool), frozenset({1})
    )
    expected = [
        {"id": 8, "category_id": 1, "iscrowd": 1, "isthing": True},
        {"id": 9, "category_id": 0, "iscrowd": 0, "isthing": False},
    ]
    segments = SegmentList(columns, 1, 3)
    assert segments == expected
    assert (len(segments), segments[1], segments[-1:], repr(segments)) == (2, expected[1], expected[1:], repr(expected))
    assert segments != expected[:1]
    assert not SegmentList(columns, 1, 1)
    copy = pickle.loads(pickle.dumps(segments))
    assert type(copy) is list
    assert copy == expected
    assert json.loads(json.dumps(list(segments))) == expected
    # What a mapper gets is a list of its own.
    stream = TrainStream([{"segments_info": segments}], lambda entry: entry, batch_size=1, seed=0)
    assert type(next(stream)[0]["segments_info"]) is list


def test_classes_of_no_segments() -> None:
    assert classes_of(np.zeros(0, np.int64), {3: 0}).shape == (0,)
    np.testing.assert_array_equal(classes_of(np.array([40, 3, 40, 24]), {3: 0, 40: 2}), [2, 0, 2, -1])


def test_memory_stays_below_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parts, "_PART", 1 << 15)
    path = written(tmp_path, content(images=1500, segments=40))
    tracemalloc.start()
    table = read_panoptic_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table.image_ids) == 1500
    assert peak < path.stat().st_size
