# SPDX-License-Identifier: Apache-2.0
"""COCO-Stuff's PNGs renumbered: the numbers, hidden classes, resuming, damaged input, the audit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.prepare.coco_stuff import check_stuff, label_lookup, stuff_tasks, write_stuff
from padding.data.sets.coco import coco_zss_split
from padding.errors import DataError, MissingFileError, PreparationError
from tests.tiny_stuff import HEIGHT, STUFF, WIDTH, write_tiny_stuff

SPLIT = coco_zss_split()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_stuff(tmp_path / "coco")


def tasks_of(root: Path, subset: str = "train"):
    return stuff_tasks(
        source_dir=root / "stuffthingmaps" / f"{subset}2017",
        target_dir=root / "stuff_zss" / f"{subset}2017",
        image_dir=root / f"{subset}2017",
        split=SPLIT,
        hide_unseen=subset == "train",
    )


def write(root: Path, subset: str = "train"):
    return write_stuff(tasks_of(root, subset), root / f"{subset}.json", SPLIT, num_workers=1, title=subset)


def labels(root: Path, subset: str, image_id: int) -> np.ndarray:
    return np.asarray(Image.open(root / "stuff_zss" / f"{subset}2017" / f"{image_id:012d}.png"))


def test_lookup_covers_171_values_and_void() -> None:
    lookup = label_lookup(SPLIT)
    assert lookup[255] == 255
    assert (lookup >= 0).sum() == 172
    assert [lookup[v] for v in (0, 19 + 2, 181, 20, 171, 11, 182)] == [0, 19, 155, 156, 170, -1, -1]


def test_training_hides_unseen_classes_and_validation_keeps_them(root: Path) -> None:
    audit = write(root)
    assert np.unique(labels(root, "train", 2)).tolist() == [132, 255]  # sky-other; cow and grass are void
    assert np.unique(labels(root, "train", 4)).tolist() == [0, 255]
    assert (audit.num_images, audit.written, audit.clean_images, audit.leaked_pixels) == (4, 4, 2, 0)
    assert audit.hidden_pixels == WIDTH * (2 * HEIGHT // 3 + HEIGHT // 2)
    assert any("policy drop_image keeps the other 2" in line for line in audit.lines())
    write(root, "val")
    assert np.unique(labels(root, "val", 2)).tolist() == [132, 156, 165]
    listed = json.loads((root / "train.json").read_text())
    assert [entry["unseen_pixels"] > 0 for entry in listed["images"]] == [False, True, False, True]
    assert listed["images"][0] == {
        "id": 1, "file_name": "000000000001.jpg", "height": HEIGHT, "width": WIDTH, "unseen_pixels": 0,
    }  # fmt: skip
    assert len(listed["categories"]) == 156
    assert len(json.loads((root / "val.json").read_text())["categories"]) == 171


def test_every_label_is_the_one_of_its_name(root: Path) -> None:
    write(root, "val")
    for image_id, values in STUFF.items():
        rows = labels(root, "val", image_id)[:: HEIGHT // len(values), 0]
        names = ["void" if label == 255 else SPLIT.names[label] for label in rows[: len(values)]]
        table = {value: name for name, value in zip(SPLIT.names, SPLIT.dataset_ids, strict=True)}
        assert names == [table.get(value, "void") for value in values]


def test_second_run_keeps_valid_files_and_mends_others(root: Path) -> None:
    write(root)
    target = root / "stuff_zss" / "train2017"
    times = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    (target / "000000000003.png").write_bytes(b"cut")
    (target / "000000000002.png").unlink()
    Image.fromarray(np.full((HEIGHT, WIDTH), 160, np.uint8)).save(target / "000000000004.png")
    (target / ".000000000001.png.77.tmp").write_bytes(b"left over")
    audit = write(root)
    assert audit.written == 3
    assert (target / "000000000001.png").stat().st_mtime_ns == times["000000000001.png"]
    assert len(list(target.iterdir())) == 4
    assert check_stuff(tasks_of(root), root / "train.json", num_workers=1)[1] == []


def test_check_finds_leaks_strays_and_differences(root: Path) -> None:
    write(root)
    target = root / "stuff_zss" / "train2017"
    Image.fromarray(np.full((HEIGHT, WIDTH), 160, np.uint8)).save(target / "000000000004.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(target / "000000000009.png")
    (target / "000000000001.png").unlink()
    audit, problems = check_stuff(tasks_of(root), root / "train.json", num_workers=1)
    text = "\n".join(problems)
    assert audit.leaked_pixels == HEIGHT * WIDTH
    for part in (
        "000000000004.png: differs",
        "000000000009.png: belongs to no image",
        "000000000001.png: missing",
        f"{HEIGHT * WIDTH} pixels of labels that must not occur",
        "train.json: lists 4 images",
    ):
        assert part in text


@pytest.mark.parametrize("value", [11, 182, 254])
def test_values_that_are_no_class_are_errors(root: Path, value: int) -> None:
    path = root / "stuffthingmaps" / "train2017" / "000000000002.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)).save(path)
    with pytest.raises(PreparationError, match=rf"000000000002\.png: holds the values \[{value}\].*stuffthingmaps"):
        write(root)


def test_damaged_and_missing_input_is_named(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "train2017" / "000000000001.jpg")
    with pytest.raises(PreparationError, match=r"000000000001\.jpg: 8 x 8 .*12 x 16"):
        write(root)
    (root / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"000000000001\.jpg.*unpack train2017\.zip"):
        write(root)
    (root / "stuffthingmaps" / "train2017" / "000000000001.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"000000000001\.png.*unpack stuffthingmaps"):
        write(root)
    with pytest.raises(PreparationError, match=r"No folder .*nowhere"):
        tasks_of(tmp_path / "nowhere")


@pytest.mark.slow
def test_two_processes_give_the_same_audit(root: Path) -> None:
    one = write(root)
    two = write_stuff(tasks_of(root), root / "train.json", SPLIT, num_workers=2, title="train")
    assert two.written == 0
    np.testing.assert_array_equal(one.pixels, two.pixels)
