# SPDX-License-Identifier: Apache-2.0
"""COCO's files as training and evaluation read them: what is refused, what is mended by a rule and said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from padding.data.coco_json import (
    ImageFile,
    InstanceFile,
    PanopticFile,
    findings_of,
    read_image_file,
    read_instance_file,
)
from padding.data.panoptic_table import read_panoptic_file
from padding.errors import DataError

BOX = [0, 0, 4, 0, 4, 3, 0, 3]
Change = Callable[[dict[str, Any]], Any]


def instances() -> dict[str, Any]:
    """Two images of 4 x 6, three objects."""
    objects = [
        {"id": i, "image_id": image, "category_id": c, "segmentation": [BOX], "bbox": [0, 0, 4, 3], "area": 12}
        for i, image, c in ((1, 1, 3), (2, 1, 24), (3, 2, 3))
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2)],
        "annotations": objects,
        "categories": [{"id": 3, "name": "car"}, {"id": 24, "name": "zebra"}],
    }


def panoptic() -> dict[str, Any]:
    segments = [{"id": 7, "category_id": 3, "iscrowd": 0, "area": 5}, {"id": 900, "category_id": 24}]
    content = instances()
    content["annotations"] = [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (1, 2)]
    return json.loads(json.dumps(content))


def written(folder: Path, content: dict[str, Any], change: Change = lambda _: None) -> Path:
    change(content)
    path = folder / "x.json"
    path.write_text(json.dumps(content))
    return path


def of_object(**fields: Any) -> Change:
    return lambda content: content["annotations"][1].update(fields)


def of_image(**fields: Any) -> Change:
    return lambda content: content["images"][1].update(fields)


def without(part: str, key: str) -> Change:
    return lambda content: content[part][1].pop(key)


COMMON = [
    (of_image(id=1), r"image id 1 stands 2 times, first for 1\.jpg and 2\.jpg \(entries 0 and 1\)"),
    (of_image(id="b"), "some image ids are numbers and some are texts"),
    (of_image(file_name=5), r"images\[1\]\.file_name \(id 2, file_name 5\): expected 'str'"),
    (of_image(file_name=""), r"images\[1\]\.file_name .*: expected 'str' of length >= 1"),
    (of_image(file_name="a" * 300), r"images\[1\]\.file_name .*: expected 'str' of length <= 240"),
    (without("images", "file_name"), r"images\[1\] \(id 2\): object missing required field 'file_name'"),
    (of_image(height=0), r"images\[1\]\.height \(id 2, file_name '2\.jpg'\): expected 'int' >= 1"),
    (of_image(height="4"), r"images\[1\]\.height .*: expected 'int \| null', got 'str'"),
    (of_image(height=70_000, width=70_000), r"image 2 \(2\.jpg\) is said to be 70000 x 70000"),
    (lambda content: content.update(images={}), "images: expected 'array', got 'object'"),
    (lambda content: content.pop("images"), "object missing required field 'images'"),
]
ANNOTATED = [
    *COMMON,
    (lambda c: c["categories"][1].update(id=3), "category id 3 stands 2 times, first for 'car' and 'zebra'"),
    (lambda c: c["categories"][1].update(name="car"), "category name 'car' stands 2 times, first for id 3 and id 24"),
    (lambda c: c["categories"][1].update(name=None), r"categories\[1\]\.name \(id 24\): expected 'str', got 'null'"),
    (of_object(image_id=9), "9"),
    (of_object(image_id=None), r"annotations\[1\]\.image_id .*expected '.*', got 'null'"),
    (lambda c: c.update(annotations=None), "annotations: expected 'array', got 'null'"),
]


@pytest.mark.parametrize(("change", "message"), COMMON)
def test_image_lists_that_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.json: .*({message}).* Fetch it\.$"):
        read_image_file(written(tmp_path, instances(), change), cure="Fetch it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *ANNOTATED,
        (of_object(category_id=77), r"object 2 has the unknown category id 77 \(image 1, 1\.jpg\)"),
        (
            of_object(category_id=None),
            r"annotations\[1\]\.category_id \(id 2.*: expected 'int', got 'null'",
        ),
        (of_object(iscrowd=2), r"annotations\[1\]\.iscrowd .*: expected 'int' <= 1"),
        (of_object(segmentation="x"), r"annotations\[1\]\.segmentation \(id 2, image_id 1\): expected .*got 'str'"),
        (of_object(segmentation=BOX), r"annotations\[1\]\.segmentation\[0\] \(id 2.*expected 'array', got 'int'"),
        (of_object(segmentation=[["1"] * 6]), r"annotations\[1\]\.segmentation\[0\]\[0\] \(id 2"),
        (of_object(segmentation={"size": [4, 6]}), "missing required field 'counts'"),
        (of_object(segmentation=[BOX[:7]]), r"annotation 2 of image 1 \(1\.jpg\) has a polygon of 7 numbers"),
        (of_object(segmentation=[[float("nan"), *BOX[1:]]]), r"annotation 2 of image 1 .*no finite number"),
        (of_object(segmentation=[[3e9, *BOX[1:]]]), r"annotation 2 of image 1 .*coordinate 3e\+09"),
        (of_object(segmentation={"size": [4, 6], "counts": [3]}), "annotation 2 .*code of 3 pixels, its size has 24"),
        (of_object(segmentation={"size": [6, 4], "counts": [24]}), r"annotation 2 .*code of size \[6, 4\]"),
    ],
)
def test_instance_files_that_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.json: .*({message}).* Fetch it\.$"):
        read_instance_file(written(tmp_path, instances(), change), cure="Fetch it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *ANNOTATED,
        (of_object(image_id=1), "image 1 is annotated twice"),
        (of_object(file_name=None), r"annotations\[1\]\.file_name \(image_id 2\): expected 'str', got 'null'"),
        (of_object(segments_info=None), r"annotations\[1\]\.segments_info .*: expected 'array', got 'null'"),
        (of_object(segments_info=[{"id": 0, "category_id": 3}]), r"image 2 \(2\.png\) lists segment ids from 0 to 0"),
        (of_object(segments_info=[{"id": 1 << 24, "category_id": 3}]), "ids from 16777216 to 16777216"),
        (
            of_object(segments_info=[{"id": 5, "category_id": 3}] * 2),
            r"image 2 .* lists the segment ids \[5\] more than",
        ),
        (of_object(segments_info=[{"id": 5}]), "missing required field 'category_id'"),
        (of_object(segments_info=[{"id": 5, "category_id": 9}]), r"segment 5 of image 2\.png has the unknown category"),
    ],
)
def test_panoptic_files_that_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.json: .*({message}).* Fetch it\.$"):
        read_panoptic_file(written(tmp_path, panoptic(), change), cure="Fetch it.")


def test_null_fields_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    change = of_object(iscrowd=None, bbox=None, area=None, id=None)
    assert read_instance_file(written(tmp_path, instances(), change)).annotations[1].iscrowd is None
    content = panoptic()
    content["annotations"][0]["segments_info"][0].update(iscrowd=None, area=None)
    assert read_panoptic_file(written(tmp_path, content)).entry(1).segments_info[0].area is None


def test_sizes_that_are_not_stated_are_read_from_the_images(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (4, 6)).save(tmp_path / "2.jpg", exif=turned)  # shown 4 high and 6 wide
    for change in (without("images", "height"), of_image(height=None, width=None)):
        path = written(tmp_path, instances(), change)
        assert [image.size for image in read_instance_file(path, image_root=tmp_path).images] == [(4, 6), (4, 6)]
        with pytest.raises(DataError, match=r"x\.json: image 2 \(2\.jpg\) states no 'height'.*folder .* is not known"):
            read_instance_file(path)
    (tmp_path / "2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.json: image 2 \(2\.jpg\) states no 'height'.*2\.jpg: cannot be decoded"):
        read_instance_file(path, image_root=tmp_path)


def test_panoptic_evaluation_needs_no_sizes(tmp_path: Path) -> None:
    assert read_panoptic_file(written(tmp_path, panoptic(), of_image(height=None))).images[1].height is None


def test_repeated_annotation_ids_are_said_and_every_object_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, instances(), lambda c: [entry.update(id=0) for entry in c["annotations"]])
    assert len(read_instance_file(path).annotations) == 3
    assert "annotation id 0 stands 3 times, first for image 1 and image 1 (entries 0 and 1)" in caplog.text
    assert "every entry counts as an object of its own" in caplog.text


def test_objects_without_a_mask_and_boxes_that_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = instances()
    content["annotations"][0].update(segmentation=[[1, 2, 3, 4]], bbox=[1, 2, 3])
    content["annotations"][1].update(segmentation=None, bbox=[1, 2, -3, 4])
    content["annotations"][2].update(bbox=[1, 2, float("nan"), 4])
    found = read_instance_file(written(tmp_path, content)).annotations
    assert [(entry.id, entry.bbox) for entry in found] == [(3, None)]
    assert "2 objects without a polygon of three points or more, or without 'segmentation', are left out" in caplog.text
    assert "3 objects have a 'bbox' that is no box" in caplog.text


def test_a_file_of_boxes_alone_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, instances(), lambda c: [entry.update(segmentation=[]) for entry in c["annotations"]])
    with pytest.raises(DataError, match="none of its 3 objects has a mask: boxes alone teach no segmentation"):
        read_instance_file(path)


def test_findings_hold_every_problem_and_raise_none(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["segmentation"] = [BOX[:7]]
    content["annotations"][2].update(id=2, category_id=5)
    found = findings_of(written(tmp_path, content), InstanceFile)
    assert [problem.split(" ")[:2] for problem in found.problems] == [["object", "2"], ["annotation", "1"]]
    assert len(found.remarks) == 1
    assert findings_of(written(tmp_path, panoptic()), PanopticFile).problems == []
    assert findings_of(written(tmp_path, {"images": 3}), ImageFile).problems[0].startswith("images: expected 'array'")
