# SPDX-License-Identifier: Apache-2.0
"""Filter, label PNGs and audit of COCO zero-shot panoptic data on a tiny folder, every kind of damage included."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.prepare import coco_panoptic
from padding.data.prepare.annotation_file import read_summary
from padding.data.prepare.coco_panoptic import FilterSummary, PanopticFiles, filter_panoptic_json, label_tasks
from padding.data.prepare.panoptic_audit import LeakAudit, check_all_labels, map_tasks, write_all_labels
from padding.data.prepare.panoptic_png import label_problems
from padding.data.readers import read_label_map
from padding.data.roots import splits_dir
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from padding.errors import MissingFileError, PreparationError, UserError
from tests.tiny_coco import CAR, COW, HEIGHT, KEPT, PERSON, SKY, WALL, WIDTH, edit_json, segment_id, write_tiny_coco

CLASS = {category["id"]: index for index, category in enumerate(COCO_CATEGORIES)}


@pytest.fixture
def split() -> ClassSplit:
    return ClassSplit.from_categories(COCO_CATEGORIES, read_name_list(splits_dir() / "coco_zsp_119_14.txt"))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_tiny_coco(tmp_path / "coco", subsets=("train",))


def train_files(coco: Path) -> PanopticFiles:
    return PanopticFiles(
        coco / "annotations" / "panoptic_train2017.json", coco / "panoptic_train2017", coco / "train2017"
    )


def filtered(coco: Path, split: ClassSplit, policy: str = "drop_image") -> dict:
    target = coco / "seen.json"
    filter_panoptic_json(train_files(coco).json_file, target, split, policy=policy)
    return json.loads(target.read_text())


def prepared_tasks(coco: Path, split: ClassSplit, *, masked: bool = False) -> list:
    files = replace(train_files(coco), json_file=coco / "seen.json")
    return list(label_tasks(files, split, coco / "semseg", coco / "masked" if masked else None))


def test_drop_image_keeps_images_without_any_unseen_segment(coco, split):
    content = filtered(coco, split)
    source = json.loads(train_files(coco).json_file.read_text())
    assert [image["id"] for image in content["images"]] == list(KEPT)
    assert content["annotations"] == [a for a in source["annotations"] if a["image_id"] in KEPT]
    assert content["images"] == [i for i in source["images"] if i["id"] in KEPT]
    assert content["categories"] == source["categories"]
    assert content["info"] == source["info"]


def test_a_crowd_segment_of_one_row_drops_the_image(coco, split):
    source = json.loads(train_files(coco).json_file.read_text())
    crowd = [s for s in source["annotations"][2]["segments_info"] if s["iscrowd"]]
    assert [(s["category_id"], s["area"]) for s in crowd] == [(COW, WIDTH)]
    assert 3 not in [image["id"] for image in filtered(coco, split)["images"]]


def test_summary_counts(coco, split):
    filtered(coco, split)
    summary = read_summary(coco / "seen.json", FilterSummary)
    assert summary is not None
    assert (summary.num_images, summary.num_kept, summary.num_segments) == (6, 3, 5)
    assert summary.images_with_class == {"cow": 2, "road": 1, "sky-other-merged": 1}
    assert summary.empty_images == ["000000000004.png"]
    assert "3 of 6 images kept" in "\n".join(summary.lines())
    assert "1 images without segments, kept" in "\n".join(summary.lines())


def test_ignore_pixels_keeps_images_that_hold_a_seen_segment(coco, split):
    content = filtered(coco, split, "ignore_pixels")
    # Image 6 holds only unseen classes: nothing would be left of it.
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5]
    third = content["annotations"][2]
    assert [s["category_id"] for s in third["segments_info"]] == [PERSON, CAR]
    assert third["ignored_segment_ids"] == [segment_id(3, 1)]
    summary = read_summary(coco / "seen.json", FilterSummary)
    assert summary is not None
    assert summary.num_ignored_segments == 2


def test_nothing_kept_is_said_with_the_cure(coco, split):
    edit_json(
        train_files(coco).json_file,
        lambda c: c.update(images=[c["images"][5]], annotations=[c["annotations"][5]]),
    )
    content = filtered(coco, split)
    assert content["images"] == content["annotations"] == []
    text = "\n".join(read_summary(coco / "seen.json", FilterSummary).lines())
    assert "0 of 1 images kept" in text
    assert "cow, sky-other-merged" in text
    assert "ignore_pixels" in text


def test_images_behind_the_annotations_give_the_same_result(coco, split):
    expected = filtered(coco, split)
    json_file = train_files(coco).json_file
    content = json.loads(json_file.read_text())
    json_file.write_text(json.dumps({key: content[key] for key in ("annotations", "categories", "images", "info")}))
    assert filtered(coco, split)["annotations"] == expected["annotations"]
    everything = list(label_tasks(train_files(coco), split, coco / "semseg"))
    assert [task.panoptic_file.stem for task in everything] == [f"{i:012d}" for i in range(1, 7)]


def test_filter_is_not_repeated_for_the_same_input(coco, split, monkeypatch):
    expected = filtered(coco, split)
    monkeypatch.setattr(coco_panoptic, "_filter_annotations", lambda *_: pytest.fail("the source was read again"))
    assert filtered(coco, split) == expected
    with pytest.raises(pytest.fail.Exception):
        filtered(coco, split, "ignore_pixels")


def test_filter_is_repeated_when_the_result_was_cut(coco, split):
    expected = filtered(coco, split)
    target = coco / "seen.json"
    target.write_text(target.read_text()[:200])
    assert filtered(coco, split) == expected


def test_published_count_is_asserted_on_the_full_set(coco, split, monkeypatch):
    monkeypatch.setattr(coco_panoptic, "FULL_TRAIN_IMAGES", 6)
    monkeypatch.setattr(coco_panoptic, "FULL_TRAIN_KEPT", 4)
    with pytest.raises(PreparationError, match=r"3 of 6 images kept.*4.*coco_zsp_119_14"):
        filtered(coco, split)
    assert not (coco / "seen.json").exists()
    monkeypatch.setattr(coco_panoptic, "FULL_TRAIN_KEPT", 3)
    assert len(filtered(coco, split)["images"]) == 3


def test_published_numbers():
    assert (coco_panoptic.FULL_TRAIN_IMAGES, coco_panoptic.FULL_TRAIN_KEPT) == (118_287, 45_617)


def test_failed_filter_leaves_no_file(coco, split):
    json_file = train_files(coco).json_file
    json_file.write_text(json_file.read_text()[:-3000])
    before = sorted(path.name for path in coco.iterdir())
    with pytest.raises(PreparationError, match=r"panoptic_train2017\.json.*fetch or unpack the file again"):
        filtered(coco, split)
    assert sorted(path.name for path in coco.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12), r"000000000001\.png.*category 12"),
        (lambda c: c["categories"][0].update(name="persona"), "category 1 is 'persona', expected 'person'"),
        (lambda c: c["categories"].append({"id": 12, "name": "street sign"}), "category 12 is 'street sign'"),
        (lambda c: c.pop("categories"), "no 'categories'"),
        (lambda c: c["annotations"][0].pop("segments_info"), "an annotation .*missing required field 'segments_info'"),
        (lambda c: c["annotations"][0].pop("image_id"), "an annotation .*missing required field 'image_id'"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "image 1 is annotated twice"),
        (lambda c: c["images"][1].update(id=1), r"image id 1 stands for 0+1\.jpg and for 0+2\.jpg; were files merged"),
        (lambda c: c["annotations"][0].update(file_name=None), "an annotation .*file_name: expected 'str', got 'null'"),
        (lambda c: c["images"][0].update(height="4"), "an image .*height: expected 'int | null', got 'str'"),
        (lambda c: c["images"].pop(0), r"1 annotations name images that are not listed \(\[1\]\)"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=0),
            r"000000000001\.png lists segment ids from 0 to .*0 is void",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=segment_id(1, 1)),
            r"000000000001\.png lists the segment ids \[\d+\] more than once",
        ),
    ],
)
def test_damaged_annotations_name_the_file(coco, split, change, message):
    edit_json(train_files(coco).json_file, change)
    with pytest.raises(PreparationError, match=message) as caught:
        filtered(coco, split)
    assert "panoptic_train2017.json" in str(caught.value)


def test_image_without_annotation_is_reported(coco, split):
    edit_json(train_files(coco).json_file, lambda c: c["annotations"].pop(0))
    assert [image["id"] for image in filtered(coco, split)["images"]] == [4, 5]
    assert "1 images without annotation" in "\n".join(read_summary(coco / "seen.json", FilterSummary).lines())


def test_missing_source_and_unknown_policy(tmp_path, split):
    with pytest.raises(PreparationError, match=r"No file .*absent\.json.*panoptic_annotations_trainval2017\.zip"):
        filter_panoptic_json(tmp_path / "absent.json", tmp_path / "out.json", split)
    with pytest.raises(PreparationError, match="unknown policy 'keep'"):
        filter_panoptic_json(tmp_path / "absent.json", tmp_path / "out.json", split, policy="keep")


def test_labels_hold_contiguous_ids_and_void(coco, split):
    filtered(coco, split)
    audit = write_all_labels(prepared_tasks(coco, split), split)
    labels = read_label_map(coco / "semseg" / "000000000005.png")
    expected = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for row, category in zip((0, 6, 12), (PERSON, CAR, WALL), strict=True):
        expected[row : row + 6] = CLASS[category]
    np.testing.assert_array_equal(labels, expected)
    assert (read_label_map(coco / "semseg" / "000000000004.png") == 255).all()
    assert (audit.num_images, audit.num_segments, audit.written) == (3, 5, 3)
    assert (audit.unseen_segments, audit.unseen_pixels, audit.leaks) == (0, 0, False)
    assert audit.pixels[CLASS[PERSON]] == 2 * 6 * WIDTH
    assert audit.pixels.sum() == 3 * HEIGHT * WIDTH


def test_ignored_segments_become_void_in_both_pngs(coco, split):
    filtered(coco, split, "ignore_pixels")
    audit = write_all_labels(prepared_tasks(coco, split, masked=True), split)
    assert not audit.leaks
    labels = read_label_map(coco / "semseg" / "000000000003.png")
    assert set(np.unique(labels)) == {CLASS[PERSON], CLASS[CAR], 255}
    before = np.asarray(Image.open(coco / "panoptic_train2017" / "000000000003.png"))
    after = np.asarray(Image.open(coco / "masked" / "000000000003.png"))
    cow = np.zeros((HEIGHT, WIDTH), bool)
    cow[6] = True
    np.testing.assert_array_equal(after, np.where(cow[..., None], 0, before))


def test_audit_sees_unseen_classes(coco, split):
    audit = write_all_labels(label_tasks(train_files(coco), split, coco / "semseg"), split)
    assert audit.leaks
    assert audit.unseen_segments == 4
    # road 6 rows, cow 1 and 6 rows, sky 6 rows
    assert audit.unseen_pixels == 19 * WIDTH
    assert "4 segments, 608 pixels" in "\n".join(audit.lines())


def test_audit_sees_a_png_of_a_dropped_image(coco, split):
    filtered(coco, split)
    (coco / "semseg").mkdir()
    Image.new("L", (WIDTH, HEIGHT), CLASS[SKY]).save(coco / "semseg" / "000000000006.png")
    audit = write_all_labels(prepared_tasks(coco, split), split)
    assert audit.leaks
    assert "000000000006.png" in "\n".join(audit.lines())


def test_valid_pngs_are_kept_and_invalid_ones_replaced(coco, split):
    filtered(coco, split)
    tasks = prepared_tasks(coco, split)
    first = write_all_labels(tasks, split)
    good, cut, wrong = (task.semantic_file for task in tasks)
    stamp = good.stat().st_mtime_ns
    contents = [path.read_bytes() for path in (good, cut, wrong)]
    cut.write_bytes(contents[1][:40])
    Image.new("L", (WIDTH, HEIGHT), CLASS[COW]).save(wrong)
    (coco / "semseg" / ".000000000001.png.123.tmp").write_bytes(b"left by a killed run")
    second = write_all_labels(tasks, split)
    assert second.written == 2
    assert good.stat().st_mtime_ns == stamp
    assert [path.read_bytes() for path in (good, cut, wrong)] == contents
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert sorted(path.suffix for path in (coco / "semseg").iterdir()) == [".png"] * 3


def test_progress_survives_an_interrupt(coco, split):
    filtered(coco, split)
    tasks = prepared_tasks(coco, split)

    def interrupted():
        yield tasks[0]
        yield tasks[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all_labels(interrupted(), split)
    assert write_all_labels(tasks, split).written == 1


def test_two_processes_give_the_same_files(coco, split):
    filtered(coco, split)
    tasks = prepared_tasks(coco, split)
    one = write_all_labels(tasks, split)
    alone = [task.semantic_file.read_bytes() for task in tasks]
    for task in tasks:
        task.semantic_file.unlink()
    two = write_all_labels(tasks, split, num_workers=2)
    assert [task.semantic_file.read_bytes() for task in tasks] == alone
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert two.written == 3


def test_error_of_a_worker_arrives_whole(coco, split):
    filtered(coco, split)
    tasks = prepared_tasks(coco, split)
    tasks[1].panoptic_file.unlink()
    with pytest.raises(MissingFileError, match=r"000000000004\.png: no such file; unpack"):
        write_all_labels(tasks, split, num_workers=2)


def test_map_tasks_is_lazy_and_ordered(coco, split):
    tasks = list(label_tasks(train_files(coco), split, coco / "semseg"))
    assert list(map_tasks(_name, iter(tasks * 50), num_workers=2)) == [_name(task) for task in tasks * 50]


def _name(task):
    return task.panoptic_file.name


def resized(path: Path) -> None:
    Image.open(path).resize((WIDTH * 2, HEIGHT), Image.Resampling.NEAREST).save(path)


def with_strange_pixel(path: Path) -> None:
    rgb = np.array(Image.open(path))
    rgb[-1, -1] = (7, 0, 0)
    Image.fromarray(rgb).save(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("panoptic_train2017/000000000001.png", Path.unlink, r"000000000001\.png: no such file; unpack"),
        ("panoptic_train2017/000000000001.png", lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be decoded"),
        ("panoptic_train2017/000000000001.png", resized, r"64x24 pixels, but .*seen\.json says 32x24"),
        ("panoptic_train2017/000000000001.png", with_strange_pixel, r"1 pixels carry ids that .*\[7\]"),
        (
            "panoptic_train2017/000000000001.png",
            lambda p: Image.new("L", (32, 24)).save(p),
            "stored as 8-bit RGB, but this is .* mode L",
        ),
        ("panoptic_train2017/000000000001.png", lambda p: Image.new("RGB", (32, 24)).save(p), "no pixel of segments"),
        ("train2017/000000000001.jpg", Path.unlink, r"000000000001\.jpg: no such file; unpack the images"),
        ("train2017/000000000001.jpg", resized, r"000000000001\.jpg: 64x24 pixels"),
        ("train2017/000000000001.jpg", lambda p: p.write_bytes(b"text"), "cannot be decoded"),
    ],
)
def test_damaged_pictures_name_the_file_and_the_cure(coco, split, name, damage, message):
    filtered(coco, split)
    damage(coco / name)
    with pytest.raises(UserError, match=message):
        write_all_labels(prepared_tasks(coco, split), split)
    assert not (coco / "semseg" / "000000000001.png").exists()


def test_check_accepts_what_was_prepared(coco, split):
    for policy, masked in (("drop_image", False), ("ignore_pixels", True)):
        filtered(coco, split, policy)
        tasks = prepared_tasks(coco, split, masked=masked)
        write_all_labels(tasks, split)
        count, problems = check_all_labels(tasks, split, unseen_allowed=False)
        assert (count, problems) == (len(tasks), [])


def test_check_reports_each_broken_image(coco, split):
    filtered(coco, split)
    tasks = prepared_tasks(coco, split)
    write_all_labels(tasks, split)
    Image.new("L", (WIDTH, HEIGHT), CLASS[COW]).save(tasks[0].semantic_file)
    tasks[1].semantic_file.unlink()
    with_strange_pixel(tasks[2].panoptic_file)
    Image.new("L", (WIDTH, HEIGHT), 0).save(coco / "semseg" / "000000000006.png")
    _, problems = check_all_labels(tasks, split, unseen_allowed=False, num_workers=2)
    assert len(problems) == 4
    for problem, expected in zip(
        problems, ("differs from", "no such file", "carry ids", "no image of the JSON"), strict=True
    ):
        assert expected in problem


def test_check_reports_unseen_segments_in_training(coco, split):
    tasks = list(label_tasks(train_files(coco), split, coco / "semseg"))
    write_all_labels(tasks, split)
    _, problems = check_all_labels(tasks, split, unseen_allowed=False)
    assert [problem.split()[1] for problem in problems] == [f"00000000000{i}.png" for i in (2, 3, 6)]
    assert check_all_labels(tasks, split, unseen_allowed=True)[1] == []


def test_check_reports_an_area_that_differs(coco, split):
    edit_json(train_files(coco).json_file, lambda c: c["annotations"][0]["segments_info"][0].update(area=5))
    filtered(coco, split)
    task = prepared_tasks(coco, split)[0]
    write_all_labels([task], split)
    (problem,) = label_problems(task)
    assert "covers 192 pixels" in problem
    assert "says 5" in problem


def test_check_finds_an_unseen_segment_back_in_a_masked_png(coco, split):
    filtered(coco, split, "ignore_pixels")
    tasks = prepared_tasks(coco, split, masked=True)
    write_all_labels(tasks, split)
    original = coco / "panoptic_train2017" / "000000000003.png"
    (coco / "masked" / "000000000003.png").write_bytes(original.read_bytes())
    _, problems = check_all_labels(tasks, split, unseen_allowed=False)
    assert len(problems) == 1
    assert "carry ids" in problems[0]


def test_empty_audit_has_no_leak(split):
    audit = LeakAudit(split)
    assert not audit.leaks
    assert audit.num_images == 0


def test_real_images_hold_unseen_classes(tmp_path, split):
    sample = photograph_files(samples_dir(), "train")
    strict = filter_panoptic_json(sample["panoptic_json"], tmp_path / "strict.json", split)
    assert (strict.num_images, strict.num_kept) == (7, 2)
    shown = {"tree-merged": 2, "sky-other-merged": 2, "grass-merged": 1, "road": 1, "giraffe": 1, "cardboard": 1}
    assert strict.images_with_class == shown
    loose = filter_panoptic_json(sample["panoptic_json"], tmp_path / "loose.json", split, policy="ignore_pixels")
    # The giraffe among trees shows nothing else: an image without a seen segment is dropped.
    assert (loose.num_kept, loose.num_segments, loose.num_ignored_segments) == (6, 39, 6)
    files = PanopticFiles(tmp_path / "loose.json", sample["panoptic_root"], sample["image_root"])
    tasks = list(label_tasks(files, split, tmp_path / "semseg", tmp_path / "masked"))
    assert not write_all_labels(tasks, split).leaks
    assert check_all_labels(tasks, split, unseen_allowed=False) == (6, [])
