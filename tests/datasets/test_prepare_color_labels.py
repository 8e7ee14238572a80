# SPDX-License-Identifier: Apache-2.0
"""The command line that turns label images in colors into index images, on two images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.readers import read_label_map
from tests.scripts import load_script

main = load_script("prepare_color_labels").main
COLORS = np.array([(0, 0, 0), (128, 64, 128), (255, 0, 0)], np.uint8)
IDS = {name: np.random.default_rng(i).integers(0, 3, (6, 8)) for i, name in enumerate(("a", "sub/b"))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ids in IDS.items():
        path = tmp_path / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLORS[ids]).save(path)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb\nbackground:0,0,0::\nroad:128,64,128::\ncar:255,0,0::\n")
    return tmp_path


def run(folder: Path, *words: str) -> int:
    paths = {"labels": "SegmentationClass", "colors": "labelmap.txt", "output": "labels"}
    options = [word for key, name in paths.items() for word in (f"--{key}", str(folder / name))]
    return main([*options, "--num-workers", "0", *words])


def test_index_images_and_names_are_written_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--check") == 1
    assert not (folder / "labels").exists()
    assert not (folder / "classes.txt").exists()
    assert run(folder, "--void", "background") == 0
    assert (folder / "classes.txt").read_text() == "road\ncar\n"
    for name, ids in IDS.items():
        np.testing.assert_array_equal(read_label_map(folder / "labels" / f"{name}.png"), np.array([255, 0, 1])[ids])
    capsys.readouterr()
    assert run(folder, "--void", "background") == 0
    assert "2 right already" in capsys.readouterr().out


def test_another_order_does_not_replace_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 0
    assert run(folder, "--void", "background") == 2
    assert "lists other classes" in capsys.readouterr().err
    assert run(folder, "--void", "background", "--classes", str(folder / "two.txt")) == 1
    assert "2 label images differ" in capsys.readouterr().out
    assert run(folder, "--void", "background", "--overwrite") == 0
    assert (folder / "classes.txt").read_text() == "road\ncar\n"


def test_the_source_is_never_the_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(folder, "--output", str(folder / "SegmentationClass"))
    assert "name another one" in capsys.readouterr().err
