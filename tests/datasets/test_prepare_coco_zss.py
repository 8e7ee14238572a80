# SPDX-License-Identifier: Apache-2.0
"""The command line that prepares COCO-Stuff, and the data sets that read what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from padding.data.catalog import register_all
from tests.scripts import load_script
from tests.tiny_stuff import write_tiny_stuff

main = load_script("prepare_coco_zss").main


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return ["--root", str(write_tiny_stuff(tmp_path / "coco")), "--subset", "--num-workers", "1"]


def test_prepare_check_and_register(arguments, tmp_path, capsys, caplog):
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "labels outside them: 0 pixels" in output
    assert "policy drop_image keeps the other 2" in output
    assert "no unseen class in what will be trained on" in output
    assert main([*arguments, "--check"]) == 0
    assert "checked: complete" in capsys.readouterr().out
    register_all(tmp_path)
    sizes = {
        name: len(DatasetCatalog.get(f"coco_2017_{name}"))
        for name in ("train_stuff_zss", "train_stuff_zss_drop_image", "val_stuff_zss", "val_stuff_zss_unseen")
    }
    assert list(sizes.values()) == [4, 2, 4, 4]
    register_all()


def test_part_of_the_official_images_must_be_asked_for(arguments, capsys):
    assert main([word for word in arguments if word != "--subset"]) == 2
    assert "4 PNGs, the official download has 118287" in capsys.readouterr().err


def test_check_reports_problems(arguments, tmp_path, capsys):
    assert main([*arguments, "--check"]) == 1
    assert "missing or unreadable; prepare again" in capsys.readouterr().out
    assert not (tmp_path / "coco" / "stuff_zss").exists(), "--check wrote something"
    assert main(arguments) == 0
    path = tmp_path / "coco" / "annotations" / "zss" / "stuff_train2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["unseen_pixels"] = 0  # would let an image with unseen classes pass "drop_image"
    path.write_text(json.dumps(content))
    assert main([*arguments, "--check"]) == 1
    assert "stuff_train2017.json" in capsys.readouterr().out


def test_stray_file_is_a_leak(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "coco" / "stuff_zss" / "train2017" / "99.png")
    assert main(arguments) == 1
    assert "LEAK" in capsys.readouterr().err
