# SPDX-License-Identifier: Apache-2.0
"""The command line that links and checks CamVid."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import load_script

main = load_script("prepare_camvid").main


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    """One image a part in the layout of the SegNet copy."""
    for part in ("train", "val", "test"):
        for folder in (part, f"{part}annot"):
            (tmp_path / "SegNet" / folder).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / "SegNet" / part / "x.png")
        labels = np.arange(24, dtype=np.uint8).reshape(4, 6) % 12
        Image.fromarray(labels).save(tmp_path / "SegNet" / f"{part}annot" / "x.png")
    return tmp_path / "SegNet"


def test_copy_is_linked_and_checked(segnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path), "--source", str(segnet)]
    assert main([*words, "--subset"]) == 0
    assert (tmp_path / "camvid" / "labels" / "train").resolve() == segnet / "trainannot"
    assert "->" in capsys.readouterr().out
    assert main([*words, "--subset"]) == 0
    assert "->" not in capsys.readouterr().out, "linked again"
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert "train: 1 images, CamVid has 367" in capsys.readouterr().out


def test_layout_of_the_root_itself_is_a_source_too(segnet: Path, tmp_path: Path) -> None:
    assert main(["--root", str(tmp_path), "--source", str(segnet), "--subset"]) == 0
    assert main(["--root", str(tmp_path / "b"), "--source", str(tmp_path / "camvid"), "--subset"]) == 0
    assert (tmp_path / "b" / "camvid" / "images" / "val").resolve() == segnet / "val"


def test_what_is_in_the_way_stays(segnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "camvid" / "images" / "train").mkdir(parents=True)
    assert main(["--root", str(tmp_path), "--source", str(segnet)]) == 2
    assert "is another folder" in capsys.readouterr().err


def test_inputs_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--source", str(tmp_path)]) == 2
    assert "holds no folders train, trainannot or images/train, labels/train" in capsys.readouterr().err
    assert main(["--root", str(tmp_path)]) == 2
    assert "no such folder of images. datasets/README.md" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--check", "--source", "x"])


def test_ids_beyond_void_are_problems(segnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((4, 6), 12, np.uint8)).save(segnet / "valannot" / "x.png")
    assert main(["--root", str(tmp_path), "--source", str(segnet), "--subset"]) == 1
    assert "val: 1 label files hold 12" in capsys.readouterr().out


@pytest.mark.data
def test_real_camvid_is_sound(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(real_data), "--check"]) == 0
    assert "367 images, 367 label files read" in capsys.readouterr().out
