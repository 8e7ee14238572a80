# SPDX-License-Identifier: Apache-2.0
"""The audit of labels: each kind of mistake is found and named, sound folders pass, both ways to call it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.label_statistics import audit_labels
from padding.data.loaders.listed_images import load_listed_images
from padding.data.prepare.label_audit import main

NAMES = ("ground", "water", "wood")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 6 x 8 pixels: three quarters ground, one quarter water, no wood."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 6:] = 1
    for name in "abc":
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


def label_file(folder: Path, name: str) -> Path:
    return folder / "labels" / f"{name}.png"


def write(folder: Path, name: str, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(label_file(folder, name))


def entries(folder: Path) -> list:
    return load_listed_images(image_root=folder / "images", label_root=folder / "labels")


def command(folder: Path, *more: str) -> int:
    words = ["--images", str(folder / "images"), "--labels", str(folder / "labels")]
    return main([*words, "--classes", str(folder / "classes.txt"), *more])


def test_sound_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder) == 0
    output = capsys.readouterr().out
    assert "3 images, 3 label files read" in output
    assert "ground   75.000 %" in output
    assert "remark: no pixel of wood" in output


def test_values_that_are_no_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "b", np.array([[0, 1, 7]] * 6, np.uint8).repeat(3, 1)[:, :8])
    assert command(folder) == 1
    output = capsys.readouterr().out
    assert f"1 label files hold 7, which is neither one of the 3 classes nor void: {label_file(folder, 'b')}" in output
    assert command(folder, "--void", "7") == 0


def test_palette_indices_count_and_colors_are_refused(folder: Path) -> None:
    indexed = Image.fromarray(np.full((6, 8), 2, np.uint8), mode="P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indexed.save(label_file(folder, "a"))
    indexed.convert("RGB").save(label_file(folder, "b"))
    audit = audit_labels(entries(folder), NAMES)
    assert audit.palette_files == 1
    assert audit.pixels.tolist() == [36, 12, 48]
    assert len(audit.unreadable) == 1
    assert "mode RGB" in audit.problems()[0]


def test_sizes_are_those_of_the_image_as_it_is_shown(folder: Path) -> None:
    write(folder, "a", np.zeros((8, 6), np.uint8))
    audit = audit_labels(entries(folder), NAMES)
    assert audit.wrong_size == [f"{label_file(folder, 'a')} (8 x 6, its image 6 x 8)"]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 6)).save(folder / "images" / "a.jpg", exif=exif)
    assert not audit_labels(entries(folder), NAMES).wrong_size


def test_void_files_are_remarked(folder: Path) -> None:
    write(folder, "a", np.full((6, 8), 255, np.uint8))
    audit = audit_labels(entries(folder), NAMES)
    assert audit.all_void == [str(label_file(folder, "a"))]
    assert audit.void_pixels == 48
    assert audit.problems() == []
    assert any("hold void alone" in line for line in audit.lines())


def test_missing_labels_matter_only_where_they_are_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_file(folder, "c").unlink()
    assert command(folder) == 0
    assert "1 images without labels" in capsys.readouterr().out
    (folder / "labeled.txt").write_text("a\nc\n")
    assert command(folder, "--list", str(folder / "labeled.txt")) == 1
    assert "1 label files do not exist" in capsys.readouterr().out
    for name in "ab":
        label_file(folder, name).unlink()
    assert command(folder) == 1


def test_damaged_files_do_not_stop_the_audit(folder: Path) -> None:
    label_file(folder, "a").write_bytes(b"no image")
    (folder / "images" / "b.jpg").write_bytes(b"no image")
    audit = audit_labels(entries(folder), NAMES)
    assert len(audit.unreadable) == 2
    assert audit.pixels.sum() == 48


def test_registered_sets_are_audited_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CamVid's void, 11, is translated by the set's own map."""
    root = folder / "camvid"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(root / "images" / "train" / "x.jpg")
    Image.fromarray(np.full((6, 8), 11, np.uint8)).save(root / "labels" / "train" / "x.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    assert main(["--dataset", "camvid_train_sem_seg"]) == 0
    assert re.search(r"void +100\.000 %", capsys.readouterr().out)
    assert main(["--dataset", "coco_2017_val"]) == 2
    assert "no data set with semantic label files" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--images", "x"], ["--dataset", "x", "--labels", "y"]])
def test_command_line_wants_a_set_or_folders(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)


def test_folders_that_do_not_exist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "classes.txt").unlink()
    assert command(folder) == 2
    assert "no such list of class names" in capsys.readouterr().err
