# SPDX-License-Identifier: Apache-2.0
"""The three JSONs of an instance split: which images, which objects, the order of classes, counts, audit."""

import json
from pathlib import Path

import pytest

from padding.data.prepare import coco_instances
from padding.data.prepare.annotation_file import read_summary
from padding.data.prepare.coco_instances import InstanceSummary, audit_instances, filter_instances
from padding.data.sets.coco import coco_zsi_split
from padding.errors import PreparationError
from tests.tiny_stuff import write_tiny_instances

A, B = coco_zsi_split("48_17"), coco_zsi_split("65_15")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_instances(tmp_path / "coco") / "annotations" / "instances_train2014.json"


def result(source: Path, split, kind: str, **options):
    target = source.parent / "zsi" / f"{kind}_{split.num_classes}.json"
    summary = filter_instances(source, target, split, kind=kind, **options)
    content = json.loads(target.read_text())
    objects = sorted((a["image_id"], a["category_id"]) for a in content["annotations"])
    return summary, [image["id"] for image in content["images"]], objects, content


@pytest.mark.parametrize("annotations_first", [False, True])
def test_kinds_of_48_17(tmp_path: Path, annotations_first: bool) -> None:
    root = write_tiny_instances(tmp_path / "coco", annotations_first=annotations_first)
    source = root / "annotations" / "instances_train2014.json"
    summary, images, objects, content = result(source, A, "train")
    # 2, 3, 6 hold unseen classes (6 as a crowd); 4 only a class outside the split, 5 nothing.
    assert images == [1, 7]
    assert objects == [(1, 1), (1, 3), (7, 3), (7, 44)]
    assert (summary.with_unseen, summary.without_unseen, summary.num_kept, summary.objects_outside) == (3, 4, 2, 1)
    assert [c["name"] for c in content["categories"]] == list(A.names[:48])
    assert content["info"] == {"year": 2014}
    _, images, objects, content = result(source, A, "gzsi")
    assert images == [2, 3, 6]
    assert objects == [(2, 1), (2, 5), (3, 6), (6, 1), (6, 17)]
    assert [c["name"] for c in content["categories"]] == list(A.names)
    _, images, objects, _ = result(source, A, "unseen")
    assert images == [2, 3, 6]
    assert objects == [(2, 5), (3, 6), (6, 17)]


def test_kinds_of_65_15(source: Path) -> None:
    summary, images, objects, _ = result(source, B, "train")
    assert images == [1, 3, 4, 7]
    assert (3, 6) in objects
    assert (3, 10) in objects
    assert summary.objects_outside == 0
    assert summary.images_with_class["airplane"] == summary.images_with_class["cat"] == 1
    assert result(source, B, "gzsi")[1] == [2, 6]


def test_done_work_is_kept_until_asked_or_changed(source: Path) -> None:
    first = result(source, A, "train")[0]
    target = source.parent / "zsi" / "train_65.json"
    stamp = target.stat().st_mtime_ns
    assert filter_instances(source, target, A, kind="train") == first
    assert target.stat().st_mtime_ns == stamp
    filter_instances(source, target, A, kind="train", overwrite=True)
    assert target.stat().st_mtime_ns > stamp
    target.write_text(target.read_text()[:-9])
    filter_instances(source, target, A, kind="train")
    json.loads(target.read_text())
    target.unlink()
    assert read_summary(target, InstanceSummary) is None
    assert not list(target.parent.glob(".*"))


def test_published_count_is_asserted_on_the_full_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coco_instances.PUBLISHED_TRAIN_IMAGES == {"65_15": 62_300}
    result(source, B, "train", expected_images=62_300)  # not the full file: nothing to compare with
    monkeypatch.setattr(coco_instances, "FULL_TRAIN_IMAGES", 7)
    with pytest.raises(PreparationError, match=r"4 images hold seen and no unseen objects \(5 with .*has 62300"):
        result(source, B, "train", expected_images=62_300, overwrite=True)
    for count in (4, 5):
        result(source, B, "train", expected_images=count, overwrite=True)


def test_audit_reads_what_is_on_disk(source: Path) -> None:
    result(source, A, "train")
    target = source.parent / "zsi" / "train_65.json"
    assert audit_instances(target, A, source=source) == []
    content = json.loads(target.read_text())
    content["images"].append({"id": 2, "file_name": "x.jpg", "height": 12, "width": 16})
    target.write_text(json.dumps(content))
    assert audit_instances(target, A) == []
    (problem,) = audit_instances(target, A, source=source)
    assert "1 of its images show unseen classes" in problem
    content["annotations"].append({"id": 1, "image_id": 2, "category_id": 5})
    target.write_text(json.dumps(content))
    assert "trains on unseen classes: {'airplane': 1}" in audit_instances(target, A)[0]


def test_unusable_sources_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"No file .*gone\.json: unpack annotations_trainval2014"):
        filter_instances(tmp_path / "gone.json", tmp_path / "t.json", A, kind="train")
    content = json.loads(source.read_text())
    good = json.dumps(content)
    content["categories"][4]["name"] = "aeroplane"
    source.write_text(json.dumps(content))
    with pytest.raises(PreparationError, match="category 5 is 'aeroplane', expected 'airplane'"):
        result(source, A, "train")
    source.write_text(good[:-200])
    with pytest.raises(PreparationError, match="cut"):
        result(source, A, "train")
    content = json.loads(good)
    content["annotations"][0]["image_id"] = 99
    source.write_text(json.dumps(content))
    with pytest.raises(PreparationError, match=r"not listed: \[99\]"):
        result(source, A, "train")
    assert not list((source.parent / "zsi").glob(".*"))
