# SPDX-License-Identifier: Apache-2.0
"""The command line of scribbles, from dense labels to a registered training set."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data import registration
from padding.data.catalog import register_all
from padding.data.sets.pascal_context import CONTEXT_FOLDER, CONTEXT_LABELS, context_classes
from padding.data.sets.voc import VOC_FOLDER
from tests.scripts import load_script

main = load_script("prepare_scribbles").main
SIZE = (60, 80)


@pytest.fixture(autouse=True)
def _restore_catalogs() -> Iterator[None]:
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        registration._registered.discard(name)
    register_all()


def write_images(folder: Path, names: list[str], array: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(array).save(folder / name)


def dense_labels(left: int, right: int, void: int) -> np.ndarray:
    labels = np.full(SIZE, left, np.uint8)
    labels[:, 40:] = right
    labels[:4] = void
    return labels


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid with two training images: road and sky, and void 11."""
    write_images(tmp_path / "camvid/images/train", ["a.jpg", "b.jpg"], np.full((*SIZE, 3), 100, np.uint8))
    write_images(tmp_path / "camvid/labels/train", ["a.png", "b.png"], dense_labels(0, 3, 11))
    return tmp_path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--num-workers", "0"])


def test_simulate_check_and_train_on(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--root", camvid, "--dataset", "camvid_train_scribble")
    assert run("simulate", *common) == 0
    output = capsys.readouterr().out
    assert "2 images" in output
    assert "0 contradicting pixels" in output
    assert "2 written, 0 kept" in output
    assert run("simulate", *common) == 0
    assert "0 written, 2 kept" in capsys.readouterr().out
    assert run("check", *common, "--preview", camvid / "sheet.png") == 0
    output = capsys.readouterr().out
    assert "checked, nothing wrong" in output
    assert "2 images drawn" in output
    assert (camvid / "sheet.png").is_file()
    register_all(camvid)
    entries = DatasetCatalog.get("camvid_train_scribble")
    raster = np.asarray(Image.open(entries[0]["sem_seg_file_name"]))
    assert set(np.unique(raster)) == {0, 3, 255}
    assert 0.005 < (raster != 255).mean() < 0.2


def test_settings_of_the_command_line_reach_the_simulator(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("simulate", "--root", camvid, "--dataset", "camvid_train_scribble")
    assert run(*common, "--length", 0, "--erosion", 1, 2, "--width", 1, "--second-share", 1) == 0
    raster = np.asarray(Image.open(camvid / "camvid/scribble/train/a.png"))
    assert (raster != 255).sum() == 2, "one dot in each of the two parts"
    assert run(*common) == 2
    assert "made with other settings: erosion [1.0, 2.0] (now [2.0, 20.0])" in capsys.readouterr().err
    assert run(*common, "--overwrite") == 0
    assert run(*common, "--drop", 2) == 2
    assert "drop is 2.0; expected a share" in capsys.readouterr().err


def test_check_fails_on_damage(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--root", camvid, "--dataset", "camvid_train_scribble")
    assert run("simulate", *common) == 0
    (camvid / "camvid/scribble/train/b.png").unlink()
    assert run("check", *common) == 1
    output = capsys.readouterr().out
    assert "problem: " in output
    assert "b.png: no such file" in output
    assert "1 problems" in output


def test_any_registered_set_with_an_output(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("simulate", "--root", camvid, "--dataset", "camvid_train_sem_seg")
    assert run(*common) == 2
    assert "--output is missing" in capsys.readouterr().err
    assert run(*common, "--output", camvid / "out" / "scribbles") == 0
    assert len(list((camvid / "out" / "scribbles").glob("*.png"))) == 2


def test_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", ["a.png"], np.full((*SIZE, 3), 100, np.uint8))
    write_images(tmp_path / "labels", ["a.png"], dense_labels(1, 0, 7))
    (tmp_path / "classes.txt").write_text("background\nbarn\n")
    own = ["--root", tmp_path, "--images", tmp_path / "images", "--classes", tmp_path / "classes.txt"]
    own += ["--output", tmp_path / "scribbles", "--void", 7]
    assert run("simulate", *own, "--labels", tmp_path / "labels") == 0
    assert set(np.unique(np.asarray(Image.open(tmp_path / "scribbles/a.png")))) == {0, 1, 255}
    # The lines alone, without dense labels, give the same label map.
    source = ("--source", tmp_path / "scribbles_xml", "--overwrite", "--output", tmp_path / "again")
    assert run("convert", *own, *source) == 0
    assert "compared" not in capsys.readouterr().out.split("a.png")[-1].split("convert")[-1].splitlines()[-5]
    np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / d / "a.png")) for d in ("scribbles", "again")))


def split_lists(folder: Path, monkeypatch: pytest.MonkeyPatch, **lists: str) -> None:
    """Lists of images shorter than the official ones, beside the tables that stay."""
    from padding.data.roots import splits_dir

    for name in ("voc", "pascal_context", "cityscapes"):
        (folder / name).mkdir(parents=True)
        for table in [*(splits_dir() / name).glob("*.tsv"), *(splits_dir() / name).glob("*.txt")]:
            (folder / name / table.name).write_bytes(table.read_bytes())
    for path, content in lists.items():
        (folder / f"{path.replace('__', '/')}.txt").write_text(content)
    for module in ("voc", "pascal_context", "cityscapes", "scribbles"):
        monkeypatch.setattr(f"padding.data.sets.{module}.splits_dir", lambda: folder)


SCRIBBLESUP = """<annotation><size><width>80</width><height>60</height><depth>3</depth></size>
<polygon><tag>Plane</tag><point><X>5</X><Y>20</Y></point><point><X>30</X><Y>40</Y></point></polygon>
<polygon><tag>background</tag><point><X>80</X><Y>30</Y></point></polygon></annotation>"""


def test_scribblesup_zip_becomes_the_training_set_of_voc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split_lists(tmp_path / "splits", monkeypatch, voc__train_aug="2007_000032\n2007_000039\n")
    names = ["2007_000032", "2007_000039"]
    write_images(tmp_path / VOC_FOLDER / "JPEGImages", [f"{n}.jpg" for n in names], np.zeros((*SIZE, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "scribbles.zip", "w") as archive:
        for folder in ("pascal_2007", "pascal_2012"):
            archive.writestr(f"scribble_annotation/{folder}/{names[0]}.xml", SCRIBBLESUP)
    common = ("convert", "--root", tmp_path, "--dataset", "voc_2012_train_aug_scribble")
    common += ("--source", tmp_path / "scribbles.zip")
    assert run(*common) == 2
    assert "has the files" in capsys.readouterr().err
    assert run(*common, "--below", "pascal_2012") == 2
    assert "no xml file for 1 of 2 images, first 2007_000039" in capsys.readouterr().err
    assert run(*common, "--below", "pascal_2012", "--missing-as-empty") == 0
    assert "without any label: 1 2007_000039" in capsys.readouterr().out
    register_all(tmp_path)
    entries = DatasetCatalog.get("voc_2012_train_aug_scribble")
    raster = np.asarray(Image.open(entries[0]["sem_seg_file_name"]))
    assert (raster[30, 79], raster[20, 5], raster[0, 0]) == (0, 1, 255)


def test_context_scribbles_of_the_other_order_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split_lists(tmp_path / "splits", monkeypatch, pascal_context__train="2008_000008\n")
    classes = context_classes()
    names = [c.name for c in classes]
    sky, bag = names.index("sky"), names.index("bag")
    folder = tmp_path / CONTEXT_FOLDER
    write_images(folder / "JPEGImages", ["2008_000008.jpg"], np.zeros((*SIZE, 3), np.uint8))
    write_images(folder / CONTEXT_LABELS, ["2008_000008.png"], dense_labels(sky, bag, 255))
    drawn = np.full(SIZE, 255, np.uint8)
    drawn[10:13, 5:30], drawn[10:13, 45:70] = classes[sky].alphabetical_index, classes[bag].alphabetical_index
    write_images(tmp_path / "mmseg", ["2008_000008.png"], drawn)
    common = ("convert", "--root", tmp_path, "--dataset", "pascal_context_train_scribble_60")
    common += ("--source", tmp_path / "mmseg")
    assert run(*common) == 0
    assert "100 % of the scribble pixels contradict the dense labels" in capsys.readouterr().err
    assert run(*common, "--alphabetical", "--overwrite") == 0
    output = capsys.readouterr()
    assert "0 contradicting pixels" in output.out
    assert not output.err.count("warning")
    register_all(tmp_path)
    for number, first in ((60, 0), (59, 1)):
        name = f"pascal_context_train_scribble_{number}"
        (entry,) = DatasetCatalog.get(name)
        raster = np.asarray(Image.open(entry["sem_seg_file_name"]))
        label_map = MetadataCatalog.get(name).sem_seg_label_map
        assert label_map[int(raster[11, 10])] == sky - first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "name --dataset (shapes_train_scribble_coarse, "),
        (["simulate", "--dataset", "pascal_context_train_scribble_59"], "reads the files of pascal_context_train_sc"),
        (["check", "--dataset", "camvid_train_scribble", "--images", "x"], "exclude each other"),
        (["check", "--dataset", "nowhere", "--output", "x"], "data set 'nowhere' is not registered"),
        (
            ["convert", "--dataset", "camvid_train_scribble", "--source", "x", "--alphabetical"],
            "--alphabetical is for PASCAL-Context",
        ),
        (
            ["convert", "--dataset", "camvid_train_scribble", "--source", "x", "--values", "3=4"],
            "'3=4' is not VALUE:CLASS",
        ),
        (["convert", "--dataset", "camvid_train_scribble", "--source", "nowhere"], "no such folder or zip file"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], message: str, camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--root", camvid) == 2
    assert message in capsys.readouterr().err


def test_values_are_renumbered(camvid: Path) -> None:
    drawn = np.full(SIZE, 0, np.uint8)
    drawn[10:13, 5:30] = 100
    write_images(camvid / "mine", ["a.png", "b.png"], drawn)
    common = ("convert", "--root", camvid, "--dataset", "camvid_train_scribble", "--source", camvid / "mine")
    assert run(*common) == 2
    assert run(*common, "--values", "0:255", "100:3") == 0
    raster = np.asarray(Image.open(camvid / "camvid/scribble/train/a.png"))
    np.testing.assert_array_equal(raster, np.where(drawn == 100, 3, 255))
