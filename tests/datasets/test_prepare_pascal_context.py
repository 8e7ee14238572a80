# SPDX-License-Identifier: Apache-2.0
"""The command line that prepares PASCAL-Context, and the data sets that read what it writes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog
from PIL import Image

from padding.data.catalog import register_all
from padding.data.sets.pascal_context import CONTEXT_FOLDER, CONTEXT_LABELS, context_classes, context_split
from tests.scripts import load_script

main = load_script("prepare_pascal_context").main
IDS = ("2008_000008", "2008_000002")  # the first of each list


@pytest.fixture(autouse=True)
def _restore_catalogs() -> Iterator[None]:
    yield
    register_all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of each list, that show the sky, a wall, and one of the 400 other classes."""
    folder = tmp_path / CONTEXT_FOLDER
    numbers = {c.name: c.raw_id for c in context_classes()}
    raw = np.array([[numbers["sky"], numbers["wall"]], [1, numbers["person"]]], np.uint16).repeat(4, 0).repeat(5, 1)
    for name in ("trainval", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for image_id in IDS:
        scipy.io.savemat(folder / "trainval" / f"{image_id}.mat", {"LabelMap": raw})
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(folder / "JPEGImages" / f"{image_id}.jpg")
    return folder


def run(folder: Path, *arguments: str) -> int:
    return main(["--root", str(folder.parents[1]), "--num-workers", "0", *arguments])


def test_prepare_check_and_register(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--subset") == 0
    assert "2 written" in capsys.readouterr().out
    assert run(folder, "--subset", "--check") == 0
    assert "2 right already" in capsys.readouterr().out
    labels = np.asarray(Image.open(folder / CONTEXT_LABELS / f"{IDS[0]}.png"))
    names = np.array(context_split().names)[labels]
    assert names[::4, ::5].tolist() == [["sky", "wall"], ["background", "person"]]
    register_all(folder.parents[1])
    with pytest.raises(FileNotFoundError, match="nor 4996 others of the 4998"):
        DatasetCatalog.get("pascal_context_train_60")


def test_a_part_of_the_official_files_must_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 2
    assert "10101 of 10103 files are missing" in capsys.readouterr().err
    assert not (folder / CONTEXT_LABELS).exists()


def test_names_decide(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the numbers of sky and wall exchanged in labels.txt the labels are exchanged."""
    classes = {c.raw_name: c.raw_id for c in context_classes()[1:]}
    classes["sky"], classes["wall"] = classes["wall"], classes["sky"]
    numbers = {number: name for name, number in classes.items()}
    (folder / "labels.txt").write_text("".join(f"{i}: {numbers.get(i, f'other{i}')}\n" for i in range(1, 460)))
    assert run(folder, "--subset") == 0
    labels = np.asarray(Image.open(folder / CONTEXT_LABELS / f"{IDS[0]}.png"))
    assert np.array(context_split().names)[labels][0, ::5].tolist() == ["wall", "sky"]
    (folder / "labels.txt").unlink()
    assert run(folder, "--subset") == 1
    assert "2 label images differ from what they are made of" in capsys.readouterr().out
    assert run(folder, "--subset", "--overwrite") == 0


def test_damaged_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "trainval" / f"{IDS[1]}.mat").write_bytes(b"no")
    assert run(folder, "--subset") == 2
    assert f"{IDS[1]}.mat: no LabelMap can be read" in capsys.readouterr().err
    (folder / "labels.txt").write_text("1: accordion\n")
    assert run(folder, "--subset") == 2
    assert "labels.txt has no class 'aeroplane'" in capsys.readouterr().err
