# SPDX-License-Identifier: Apache-2.0
"""The command line that writes Cityscapes' train ids, on three images with ids of the official lists."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.loaders.listed_images import read_id_list
from padding.data.roots import splits_dir
from tests.scripts import load_script

main = load_script("prepare_cityscapes").main
# Of cityscapesscripts.helpers.labels: id -> train id; all others are ignored.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
TRAIN_IDS |= {28: 15, 31: 16, 32: 17, 33: 18}
IDS = {part: read_id_list(splits_dir() / "cityscapes" / f"{part}.txt")[:n] for part, n in (("train", 2), ("val", 1))}


def target(root: Path, part: str, i: str) -> Path:
    return root / "cityscapes" / "gtFine" / part / i.split("_")[0] / f"{i}_gtFine_labelTrainIds.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every label id stands in every image, the license plate (-1, stored as 255) as well."""
    for part, ids in IDS.items():
        for i in ids:
            labels = np.append(np.arange(34, dtype=np.uint8), np.uint8(255)).reshape(5, 7)
            path = target(tmp_path, part, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path.with_name(f"{i}_gtFine_labelIds.png"))
            image = tmp_path / "cityscapes" / "leftImg8bit" / part / i.split("_")[0] / f"{i}_leftImg8bit.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (7, 5)).save(image)
    return tmp_path


def run(root: Path, *flags: str) -> int:
    return main(["--root", str(root), "--subset", "--num-workers", "0", *flags])


def test_train_ids_are_the_official_ones(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == 0
    assert "0 missing, 3 written" in capsys.readouterr().out
    expected = np.array([TRAIN_IDS.get(i, 255) for i in (*range(34), 255)], np.uint8).reshape(5, 7)
    for part, ids in IDS.items():
        for i in ids:
            np.testing.assert_array_equal(np.asarray(Image.open(target(root, part, i))), expected)
    assert run(root, "--check") == 0
    assert "3 right already" in capsys.readouterr().out


def test_what_other_tools_wrote_differently_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == 0
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(target(root, "val", IDS["val"][0]))
    assert run(root) == 1
    assert "1 label images differ" in capsys.readouterr().out


def test_part_of_the_data_must_be_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--num-workers", "0"]) == 2
    assert "3472 of 3475 files are missing" in capsys.readouterr().err


def test_label_ids_outside_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = target(root, "train", IDS["train"][0])
    Image.fromarray(np.full((5, 7), 40, np.uint8)).save(path.with_name(f"{IDS['train'][0]}_gtFine_labelIds.png"))
    assert run(root) == 2
    assert "holds the values [40]" in capsys.readouterr().err
