# SPDX-License-Identifier: Apache-2.0
"""The command line that brings Clothing Co-Parsing into its layout."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import padding.data.sets.ccp as ccp
from padding.data.prepare.ccp import read_ccp_labels
from padding.data.readers import read_label_map
from tests.scripts import load_script

main = load_script("prepare_ccp").main


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two labeled images to train on, one to evaluate, in the place of the shipped lists."""
    (tmp_path / "lists" / "ccp" / "all").mkdir(parents=True)
    (tmp_path / "lists" / "ccp" / "val.txt").write_text("0002\n")
    (tmp_path / "lists" / "ccp" / "all" / "labeled.txt").write_text("0001\n0003\n")
    monkeypatch.setattr(ccp, "splits_dir", lambda: tmp_path / "lists")


def tags() -> np.ndarray:
    """(6, 10) uint8, every tag, 0 to 58."""
    return (np.arange(60, dtype=np.uint8) % 59).reshape(6, 10)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Four photographs, three of them with labels, as the repository has them."""
    folder = tmp_path / "clone"
    (folder / "photos").mkdir(parents=True)
    (folder / "annotations" / "pixel-level").mkdir(parents=True)
    for i in range(1, 5):
        Image.new("RGB", (10, 6)).save(folder / "photos" / f"{i:04d}.jpg")
    for i in range(1, 4):
        scipy.io.savemat(folder / "annotations" / "pixel-level" / f"{i:04d}.mat", {"groundtruth": tags()})
    return folder


@pytest.mark.usefixtures("lists")
def test_clone_is_converted_linked_and_checked(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path), "--source", str(clone), "--num-workers", "0"]
    assert main(words) == 1, "a few images are not the whole of it"
    out = capsys.readouterr().out
    assert "label images: 3 written, 0 right already" in out
    assert "ccp_val_sem_seg: 1 images, CCP has 200" in out
    assert np.array_equal(read_label_map(tmp_path / "ccp" / "labels" / "0001.png"), tags())
    main(words)
    assert "label images: 0 written, 3 right already" in capsys.readouterr().out
    names = [Path(entry["file_name"]).stem for entry in DatasetCatalog.get("ccp_train_sem_seg")]
    assert names == ["0001", "0003", "0004"], "all but the evaluated one, labeled or not"


@pytest.mark.usefixtures("lists")
def test_labels_that_differ_are_left_alone(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path), "--source", str(clone), "--num-workers", "0"]
    main(words)
    Image.fromarray(np.zeros((6, 10), np.uint8)).save(tmp_path / "ccp" / "labels" / "0003.png")
    main(words)
    assert "1 label images differ from what they are made of" in capsys.readouterr().out
    main([*words, "--overwrite"])
    assert np.array_equal(read_label_map(tmp_path / "ccp" / "labels" / "0003.png"), tags())


@pytest.mark.usefixtures("lists")
def test_copy_with_labels_is_linked(clone: Path, tmp_path: Path) -> None:
    main(["--root", str(tmp_path), "--source", str(clone), "--num-workers", "0"])
    main(["--root", str(tmp_path / "b"), "--source", str(tmp_path / "ccp")])
    assert (tmp_path / "b" / "ccp" / "images").resolve() == clone / "photos"
    assert (tmp_path / "b" / "ccp" / "labels").resolve() == tmp_path / "ccp" / "labels"


def test_inputs_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--source", str(tmp_path)]) == 2
    assert "holds neither photos and annotations/pixel-level" in capsys.readouterr().err
    assert main(["--root", str(tmp_path)]) == 2
    assert "datasets/README.md says where CCP comes from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--check", "--source", "x"])


@pytest.mark.parametrize("content", [{"groundtruth": np.full((2, 2), 59)}, {"labels": tags()}, {"groundtruth": [[]]}])
def test_labels_of_another_kind_are_refused(content: dict[str, np.ndarray], tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", content)
    with pytest.raises(ValueError, match=r"a\.mat: .*check the file out again"):
        read_ccp_labels(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(40))
    with pytest.raises(ValueError, match=r"a\.mat: no groundtruth can be read"):
        read_ccp_labels(tmp_path / "a.mat")


def test_rare_tags_are_one_class() -> None:
    label_map, split = ccp.ccp_label_map(), ccp.ccp_split()
    assert split.num_classes == 16
    assert [split.names[label_map[tag]] for tag in (0, 41, 14, 48, 24, 58)] == [
        "background",
        "skin",
        "dress",
        "sweater",
        "other",
        "other",
    ]
    assert sorted(label_map) == [*range(59), 255]
    assert set(label_map.values()) == {*range(16), 255}


@pytest.mark.data
def test_real_ccp_is_sound(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(real_data), "--check"]) == 0
    assert "804 images, 804 label files read" in capsys.readouterr().out
    assert MetadataCatalog.get("ccp_val_sem_seg").class_split.names[-1] == "other"
    # A class of its own has at least 0.5 % of the pixels of all labels; the next tag, jacket, has 0.46 %.
    counts = np.zeros(59, np.int64)
    for path in sorted((real_data / "ccp" / "labels").glob("*.png")):
        counts += np.bincount(read_label_map(path).ravel(), minlength=59)
    own = {tag for tag, label in ccp.ccp_label_map().items() if label < ccp.OTHER}
    assert own == set(np.flatnonzero(counts >= 0.005 * counts.sum()).tolist())
