# SPDX-License-Identifier: Apache-2.0
"""The command line that checks saliency sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import load_script
from tests.tiny_dense import save, write_camvid

main = load_script("prepare_saliency").main


pytestmark = pytest.mark.usefixtures("restored_catalogs")


def write_set(folder: Path, *maps: np.ndarray) -> Path:
    for index, grey in enumerate(maps):
        save(folder / "images" / f"{index}.jpg", np.zeros((*grey.shape, 3), np.uint8))
        save(folder / "masks" / f"{index}.png", grey.astype(np.uint8))
    return folder


def halves(left: int, right: int) -> np.ndarray:
    return np.repeat(np.array([[left, right]]), 10, axis=0).repeat(10, axis=1)


def cells(output: str, name: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_sound_sets_and_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first map has half its pixels salient; the second a quarter grey above 128, a quarter grey below."""
    soft = halves(0, 0)
    soft[:5, 10:], soft[5:, 10:] = 200, 100
    write_set(tmp_path / "ECSSD", halves(0, 255), soft)
    assert main(["--root", str(tmp_path), "--check", "--subset"]) == 0
    output = capsys.readouterr().out
    assert f"ecssd_test (ECSSD): images in {tmp_path / 'ECSSD' / 'images'}" in output
    # Images, maps read, soft maps, grey, salient, unknown, empty, problems.
    assert cells(output, "ecssd_test")[1:] == ["2", "2", "1", "25", "37.5", "0", "0", "0"]
    assert "0 kinds of problems" in output


def test_another_number_of_images_than_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "PASCAL-S", halves(0, 255))
    assert main(["--root", str(tmp_path)]) == 1
    assert "problem: pascal_s_test: 1 pairs, PASCAL-S has 850" in capsys.readouterr().out


def test_problems_of_pairs_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "DUT-OMRON", *(halves(0, 255) for _ in range(6)))
    (folder / "masks" / "0.png").unlink()
    (folder / "images" / "1.jpg").unlink()
    save(folder / "masks" / "2.png", np.zeros((7, 9), np.uint8))
    save(folder / "masks" / "3.png", halves(0, 1).astype(np.uint8))
    (folder / "masks" / "4.png").write_text("no image")
    picture = folder / "images" / "5.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 20, 3)).astype(np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-60])
    assert main(["--root", str(tmp_path), "--subset"]) == 1
    output = capsys.readouterr().out
    assert "1 images have no map, first 0.jpg" in output
    assert "1 maps have no image, first 1.png" in output
    assert "1 maps have another size than their images" in output
    assert "2.png (7 x 9, its image 10 x 20)" in output
    assert "1 maps hold 0 and 1, not 0 and 255; multiply them" in output
    assert "2 files cannot be used" in output
    assert "5.jpg: cannot be decoded (image file is truncated" in output
    assert "  remark: 1 maps have no salient pixel" in output
    assert "5 kinds of problems" in output


def test_derived_saliency_is_checked_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path, count=2)
    assert main(["--root", str(tmp_path), "--set", "camvid_train_saliency", "--set", "camvid_val_saliency"]) == 0
    output = capsys.readouterr().out
    # Of twelve equally frequent values four are salient, one is void: 4 of 11 known pixels.
    assert cells(output, "camvid_train_saliency")[1:] == ["2", "2", "0", "0", "36.36", "8.33", "0", "0"]
    label = tmp_path / "camvid" / "labels" / "val" / "frame1.png"
    label.unlink()
    assert main(["--root", str(tmp_path), "--set", "camvid_val_saliency"]) == 1
    assert f"1 files cannot be used: {label}: no such file" in capsys.readouterr().out


def test_inputs_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 2
    assert "has none of the folders DUTS-TR, DUTS-TE, ECSSD" in capsys.readouterr().err
    assert main(["--root", str(tmp_path), "--set", "duts"]) == 2
    assert "'duts' is no saliency set; known are camvid_train_saliency" in capsys.readouterr().err
    assert main(["--root", str(tmp_path), "--set", "hku_is_test"]) == 2
    assert "HKU-IS: no such folder. datasets/README.md" in capsys.readouterr().err


@pytest.mark.data
def test_real_camvid_gives_sound_saliency(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(real_data), "--set", "camvid_train_saliency"]) == 0
    # Sign, car, pedestrian and bicyclist: 5 054 088 of 60 913 645 labeled pixels.
    assert cells(capsys.readouterr().out, "camvid_train_saliency")[5] == "8.3"
