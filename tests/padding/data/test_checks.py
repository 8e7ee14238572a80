# SPDX-License-Identifier: Apache-2.0
"""Each fault of a data set is found by the check that is for it; sound data give no error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from padding.data import checks
from padding.data.checks import Finding

NAMES = ("ground", "water")


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    """Three images of 6 x 8 pixels with labels: left ground, right water, a column of void."""
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 1
    labels[:, 0] = 255
    found = []
    for index in range(3):
        image, label = tmp_path / f"{index}.jpg", tmp_path / f"{index}.png"
        Image.new("RGB", (8, 6), (index * 40, 0, 0)).save(image)
        Image.fromarray(labels).save(label)
        found.append({"file_name": str(image), "sem_seg_file_name": str(label), "image_id": index})
    return found


def errors(findings: Any) -> list[str]:
    return [finding.text for finding in findings if finding.level == "error"]


def labels_of(entry: dict[str, Any], value: int) -> None:
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(entry["sem_seg_file_name"])


def test_sound_data_give_no_error(entries: list[dict[str, Any]]) -> None:
    found = [
        *checks.check_files("set", entries, ("file_name", "sem_seg_file_name")),
        *checks.check_sizes("set", entries),
        *checks.check_ids("set", entries),
        *checks.check_labels("set", entries, NAMES),
        *checks.check_objects("set", entries, NAMES),
        *checks.check_leak(("a", "b"), entries[:2], entries[2:], contents=True),
    ]
    assert found == [Finding("note", "set", "3 label images: ground 37.50 %, water 50.00 %, void 12.50 %")]


def test_missing_files_are_counted_and_named(entries: list[dict[str, Any]]) -> None:
    for entry in entries[1:]:
        Path(entry["sem_seg_file_name"]).unlink()
    (found,) = checks.check_files("set", entries, ("file_name", "sem_seg_file_name"))
    assert str(found).startswith(f"error: set: 2 ({entries[1]['sem_seg_file_name']}, ")
    assert found.text.endswith("of 3 label images do not exist")
    nowhere = [{"file_name": "no/such/folder/a.jpg"}]
    assert len(list(checks.check_files("set", nowhere, ("file_name",)))) == 1


def test_sizes_are_compared_with_the_list_and_with_the_labels(entries: list[dict[str, Any]]) -> None:
    entries[0] |= {"height": 8, "width": 6}
    Image.new("L", (4, 3)).save(entries[1]["sem_seg_file_name"])
    Path(entries[2]["file_name"]).write_bytes(b"no image")
    unreadable, wrong = errors(checks.check_sizes("set", entries))
    assert "2.jpg: cannot be decoded" in unreadable
    assert "0.jpg is 6 x 8, its annotations say 8 x 6" in wrong
    assert "1.png is 3 x 4, its image 6 x 8" in wrong
    assert "(of 2 looked at)" in next(iter(checks.check_sizes("set", entries, limit=2))).text


def test_repeated_ids_and_files_are_named(entries: list[dict[str, Any]]) -> None:
    entries[2]["image_id"] = 0
    entries[1]["file_name"] = entries[0]["file_name"]
    ids, files = checks.check_ids("set", entries)
    assert (ids.level, files.level) == ("error", "warning")
    assert "1 image_ids are repeated: 0 2 times" in ids.text
    assert "0.jpg 2 times; list every image once" in files.text


@pytest.mark.parametrize("limit", [0, 2])
def test_void_alone_teaches_nothing(entries: list[dict[str, Any]], limit: int) -> None:
    for entry in entries:
        labels_of(entry, 255)
    (text,) = errors(checks.check_labels("set", entries, NAMES, limit=limit))
    assert text.startswith(f"all {limit or 3} label images looked at hold void alone")


def test_void_alone_in_some_images_is_a_note(entries: list[dict[str, Any]]) -> None:
    labels_of(entries[1], 255)
    found = list(checks.check_labels("set", entries, NAMES))
    assert errors(found) == []
    assert any(finding.level == "note" and "1.png) label images hold void alone" in finding.text for finding in found)


def test_255_in_place_of_a_class_is_an_error_for_two_classes_and_a_warning_for_more(
    entries: list[dict[str, Any]],
) -> None:
    for entry in entries:
        mask = np.zeros((6, 8), np.uint8)
        mask[:, 6:] = 255
        Image.fromarray(mask).save(entry["sem_seg_file_name"])
    (text,) = errors(checks.check_labels("set", entries, NAMES, limit=2))
    assert "255 covers 25.0 % and means nothing, while water has no pixel" in text
    assert errors(checks.check_labels("set", entries, NAMES, label_map={0: 0, 255: 1})) == []
    mask[:, :3] = 1
    Image.fromarray(mask).save(entries[0]["sem_seg_file_name"])
    found = list(checks.check_labels("set", entries, (*NAMES, "wood")))
    assert [finding.level for finding in found if "255 covers" in finding.text] == ["warning"]


def test_labels_that_are_no_class_are_errors(entries: list[dict[str, Any]]) -> None:
    labels_of(entries[1], 7)
    (text,) = errors(checks.check_labels("set", entries, NAMES))
    assert "1 label files hold 7, which is neither one of the 2 classes nor void" in text


@pytest.mark.parametrize("kind", ["annotations", "segments_info"])
@pytest.mark.parametrize(("crowds", "level"), [(4, "error"), (3, "warning"), (1, "note")])
def test_crowds_are_counted(kind: str, crowds: int, level: str) -> None:
    objects = [{"category_id": 0, "iscrowd": int(index < crowds)} for index in range(4)]
    found = list(checks.check_objects("set", [{kind: objects}], NAMES))
    assert found[0].level == level
    assert (f"{crowds} of 4" in found[0].text or f"all {crowds}" in found[0].text) == (crowds > 1)
    assert any("no object of" in finding.text and "water" in finding.text for finding in found)


def test_an_image_in_training_and_evaluation_is_noticed(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    train, test = entries[:2], entries[1:]
    (same,) = checks.check_leak(("train", "val"), train, test)
    assert same.level == "warning"
    assert "1.jpg) images are in both" in same.text
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(Path(entries[0]["file_name"]).read_bytes())
    (under_two_names,) = checks.check_leak(("train", "val"), train, [{"file_name": str(copy)}], contents=True)
    assert f"0.jpg = {copy}" in under_two_names.text
    assert not list(checks.check_leak(("train", "val"), train, [{"file_name": str(copy)}]))


def test_a_sample_is_spread_over_the_set() -> None:
    assert checks.spread(range(100), 4) == [0, 33, 66, 99]
    assert checks.spread(range(3), 4) == checks.spread(range(3), 0) == [0, 1, 2]
    assert checks.spread(range(9), 1) == [0]
