# SPDX-License-Identifier: Apache-2.0
"""The command line that merges VOC's and SBD's labels, on a few images with the ids of the official lists."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog
from PIL import Image

from padding.data.catalog import register_all
from padding.data.loaders.listed_images import read_id_list
from padding.data.roots import splits_dir
from padding.data.sets.voc import voc_palette
from tests.scripts import load_script

main = load_script("prepare_voc").main
SIZE = (12, 16)


def listed(part: str) -> tuple[str, ...]:
    return read_id_list(splits_dir() / "voc" / f"{part}.txt")


OWN, VAL, TRAIN = listed("train")[:2], listed("val")[:1], frozenset(listed("train"))
SBD = tuple(i for i in listed("train_aug") if i not in TRAIN)[:2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of VOC's training set, two of SBD, one to evaluate on; official formats."""
    rng = np.random.default_rng(0)
    folder, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset" / "cls"
    for path in (folder / "JPEGImages", folder / "SegmentationClass", sbd):
        path.mkdir(parents=True)
    for i in (*OWN, *VAL, *SBD):
        Image.new("RGB", SIZE[::-1]).save(folder / "JPEGImages" / f"{i}.jpg")
        labels = rng.choice(np.array([0, 1, 15, 20, 255], np.uint8), SIZE)
        if i in SBD:
            labels[labels == 255] = 0  # SBD has no void
            scipy.io.savemat(sbd / f"{i}.mat", {"GTcls": {"Segmentation": labels, "Boundaries": np.zeros(20)}})
        else:
            image = Image.fromarray(labels)
            image.putpalette([channel for color in voc_palette() for channel in color])
            image.save(folder / "SegmentationClass" / f"{i}.png")
    return tmp_path


def run(root: Path, *flags: str) -> int:
    return main(["--root", str(root), "--subset", "--num-workers", "0", *flags])


def merged(root: Path, i: str) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / f"{i}.png"


def test_labels_come_from_voc_where_it_has_them_and_from_sbd_otherwise(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root) == 0
    assert "0 missing, 4 written, 0 right already" in capsys.readouterr().out
    for i in OWN:
        source = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{i}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(merged(root, i))), np.asarray(Image.open(source)))
    for i in SBD:
        content = scipy.io.loadmat(root / "benchmark_RELEASE" / "dataset" / "cls" / f"{i}.mat")
        with Image.open(merged(root, i)) as image:
            assert image.mode == "P"
            assert tuple(image.getpalette()[3 * 15 : 3 * 15 + 3]) == (192, 128, 128)  # the published color of a person
            np.testing.assert_array_equal(np.asarray(image), content["GTcls"]["Segmentation"][0, 0])
    assert not merged(root, VAL[0]).exists()
    assert run(root, "--check") == 0
    assert run(root) == 0
    assert "0 written, 4 right already" in capsys.readouterr().out


def test_check_writes_nothing_and_counts_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--check") == 1
    assert "4 missing, 0 written" in capsys.readouterr().out
    assert not merged(root, OWN[0]).parent.exists()


def test_other_labels_are_reported_and_replaced_only_when_asked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == 0
    other = Image.fromarray(np.zeros(SIZE, np.uint8))
    other.save(merged(root, SBD[0]))
    before = merged(root, SBD[0]).read_bytes()
    for flags in ((), ("--check",), ("--check", "--overwrite")):
        assert run(root, *flags) == 1
        assert (
            f"1 label images differ from what they are made of; --overwrite replaces them: {merged(root, SBD[0])}"
            in (capsys.readouterr().out)
        )
        assert merged(root, SBD[0]).read_bytes() == before
    assert run(root, "--overwrite") == 0
    assert run(root, "--check") == 0


def test_interrupted_run_is_continued(root: Path) -> None:
    assert run(root) == 0
    merged(root, OWN[0]).unlink()
    merged(root, OWN[1]).write_bytes(b"half a file")
    leftover = merged(root, OWN[0]).with_name(".x.png.123.tmp")
    leftover.touch()
    assert run(root) == 0
    assert not leftover.exists()
    assert run(root, "--check") == 0


def test_part_of_the_data_must_be_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root)]) == 2
    assert "10578 of 10582 files are missing" in capsys.readouterr().err
    assert main(["--root", str(root / "nowhere"), "--subset"]) == 2
    assert "10582 of 10582 files are missing" in capsys.readouterr().err


def test_values_and_files_that_cannot_be_used(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "benchmark_RELEASE" / "dataset" / "cls" / f"{SBD[0]}.mat"
    scipy.io.savemat(path, {"GTcls": {"Segmentation": np.full(SIZE, 21, np.uint8)}})
    assert run(root) == 2
    assert "holds the values [21]" in capsys.readouterr().err
    path.write_bytes(b"no mat")
    assert run(root) == 2
    assert "cannot be read as labels" in capsys.readouterr().err


def test_images_of_another_size_are_problems(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5, 5)).save(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{VAL[0]}.jpg")
    assert run(root) == 1
    assert "1 label files have another size" in capsys.readouterr().out


def test_prepared_folder_is_what_the_registered_set_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(root) == 0
    register_all(root)
    with pytest.raises(FileNotFoundError, match=r"no such file, nor are 10577 others of the 10582 listed.*prepare_voc"):
        DatasetCatalog.get("voc_2012_train_aug_sem_seg")
    register_all()
