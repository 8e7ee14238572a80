# SPDX-License-Identifier: Apache-2.0
"""The command line that links and checks small sets of COCO photographs."""

import json
import shutil
from pathlib import Path

import pytest

from padding.data.sets.coco_photographs import photograph_files, samples_dir
from tests.scripts import load_script

main = load_script("prepare_coco128").main


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(samples_dir(), tmp_path / "copy"))


def test_shipped_samples_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--samples"]) == 0
    out = capsys.readouterr().out
    assert "val: 7 images, 75 segments of 37 classes" in out
    assert "checked: images, PNGs and JSON agree" in out


def test_copy_is_linked_and_checked(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path / "root"), "--source", str(copy)]
    assert main([*words, "--subset"]) == 0
    assert (tmp_path / "root" / "coco128_panoptic").resolve() == copy
    assert main([*words, "--subset"]) == 0
    assert capsys.readouterr().out.count("->") == 1, "linked again"
    assert main(["--root", str(tmp_path / "root"), "--check"]) == 1
    assert "train: 7 images, expected 100" in capsys.readouterr().out


def test_problems_are_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = photograph_files(copy, "train")
    content = json.loads(files["panoptic_json"].read_text())
    content["annotations"][0]["segments_info"][0]["area"] += 1
    content["annotations"][1]["segments_info"].pop()
    content["annotations"][2]["segments_info"][0]["category_id"] = 999
    files["panoptic_json"].write_text(json.dumps(content))
    (files["panoptic_root"] / content["annotations"][3]["file_name"]).unlink()
    image = files["image_root"] / f"{content['annotations'][4]['image_id']:012d}.jpg"
    image.write_bytes(image.read_bytes()[:5000])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "coco128_panoptic").symlink_to(copy)
    assert main(["--root", str(tmp_path / "root"), "--subset"]) == 1
    out = capsys.readouterr().out
    for message in (
        "another area",
        "differ in the segments",
        "has the unknown category id 999",
        "no such file",
        "truncated",
    ):
        assert message in out


def test_inputs_that_cannot_be_used(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "images" / "val2017")
    assert main(["--root", str(tmp_path), "--source", str(copy)]) == 2
    assert "has no images/val2017" in capsys.readouterr().err
    (tmp_path / "coco128_panoptic").mkdir()
    assert main(["--root", str(tmp_path), "--source", str(samples_dir())]) == 2
    assert "is another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--source", str(copy), "--samples"])
