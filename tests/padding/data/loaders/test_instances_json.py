# SPDX-License-Identifier: Apache-2.0
"""Instance files: order of classes, narrow label spaces, unusable polygons, contradictions."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.loaders.instances_json import load_instances
from padding.errors import DataError

# Order of the split, not of the ids: seen "zebra" and "car", unseen "bus".
SPLIT = ClassSplit(("zebra", "car", "bus"), (True,) * 3, (24, 3, 6), frozenset({"bus"}))
BOX = [0, 0, 4, 0, 4, 3, 0, 3]


def thing(number: int, image: int, category: int, segmentation: Any = None, crowd: int = 0) -> dict[str, Any]:
    segmentation = [BOX] if segmentation is None else segmentation
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 4, 3], "area": 12,
        "segmentation": segmentation,
    }  # fmt: skip


def write(folder: Path, annotations: list[dict[str, Any]], categories: Any = None) -> dict[str, Any]:
    for index in (1, 2):
        Image.new("RGB", (6, 4)).save(folder / f"{index}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2)],
        "annotations": annotations,
        "categories": categories
        or [{"id": 3, "name": "car"}, {"id": 6, "name": "bus"}, {"id": 24, "name": "zebra"}, {"id": 9, "name": "boat"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return {"json_file": folder / "instances.json", "image_root": folder}


def test_classes_are_numbered_by_the_split(tmp_path: Path) -> None:
    code = {"size": [4, 6], "counts": [0, 4, 20]}
    files = write(tmp_path, [thing(1, 2, 3), thing(2, 2, 24, code, crowd=1), thing(3, 2, 6)])
    first, second = load_instances(**files, class_split=SPLIT)
    assert first["annotations"] == []
    assert [a["category_id"] for a in second["annotations"]] == [1, 0, 2]
    assert [a["iscrowd"] for a in second["annotations"]] == [0, 1, 0]
    assert second["annotations"][1]["segmentation"] == code
    assert (second["image_id"], second["height"], second["file_name"]) == (2, 4, str(tmp_path / "2.jpg"))


def test_narrow_space_refuses_other_classes(tmp_path: Path) -> None:
    files = write(tmp_path, [thing(1, 1, 3)])
    assert load_instances(**files, class_split=SPLIT.seen_only())[0]["annotations"][0]["category_id"] == 1
    files = write(tmp_path, [thing(1, 1, 6)])
    with pytest.raises(ValueError, match=r"instances\.json: image 1 holds 'bus' \(category 6\).*2 classes"):
        load_instances(**files, class_split=SPLIT.seen_only())
    files = write(tmp_path, [thing(1, 1, 77)])
    with pytest.raises(ValueError, match="object 1 has the unknown category id 77"):
        load_instances(**files, class_split=SPLIT)


def test_polygons_without_three_points_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write(tmp_path, [thing(1, 1, 3, [[0, 0, 1, 1], BOX]), thing(2, 1, 3, [[0, 0, 1, 1]]), thing(3, 1, 3, [])])
    (objects,) = (entry["annotations"] for entry in load_instances(**files, class_split=SPLIT)[:1])
    assert [[list(polygon) for polygon in a["segmentation"]] for a in objects] == [[BOX]]
    assert "2 objects without a polygon" in caplog.text


def test_contradictions_are_errors(tmp_path: Path) -> None:
    files = write(tmp_path, [thing(1, 7, 3)])
    with pytest.raises(ValueError, match=r"objects of images that are not listed: \[7\]"):
        load_instances(**files, class_split=SPLIT)
    files = write(tmp_path, [], [{"id": 3, "name": "lorry"}])
    with pytest.raises(ValueError, match="category id 3 is 'lorry' in the file and 'car'"):
        load_instances(**files, class_split=SPLIT)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.jpg"):
        load_instances(**write_without_images(tmp_path), class_split=SPLIT)


def test_sizes_come_from_the_images_where_the_file_states_none(tmp_path: Path) -> None:
    files = write(tmp_path, [thing(1, 2, 3)])
    content = json.loads(files["json_file"].read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    files["json_file"].write_text(json.dumps(content))
    assert [(e["height"], e["width"]) for e in load_instances(**files, class_split=SPLIT)] == [(4, 6), (4, 6)]
    (tmp_path / "2.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"instances\.json: image 2 \(2\.jpg\) states no 'height'.*2\.jpg: cannot be"):
        load_instances(**files, class_split=SPLIT)


def test_masks_are_checked_when_they_are_listed(tmp_path: Path) -> None:
    code = {"size": [4, 6], "counts": [0, 4]}
    with pytest.raises(
        DataError, match=r"instances\.json: annotation 5 of image 2 \(2\.jpg\) has run-length code of 4 p"
    ):
        load_instances(**write(tmp_path, [thing(5, 2, 3, code)]), class_split=SPLIT)


def write_without_images(folder: Path) -> dict[str, Any]:
    files = write(folder, [])
    (folder / "2.jpg").unlink()
    return files
