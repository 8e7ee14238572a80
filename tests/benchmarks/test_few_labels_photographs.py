# SPDX-License-Identifier: Apache-2.0
"""The run behind `make few-labels`, on the photographs that ship."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import few_labels_photographs
from padding.data.readers import read_label_map
from padding.data.sets.coco import coco_zsp_split
from padding.data.sets.coco_photographs import photograph_files, samples_dir


def test_classes_get_the_number_of_their_group() -> None:
    number = few_labels_photographs.group_numbers(photograph_files(samples_dir(), "train")["panoptic_json"])
    names, groups = coco_zsp_split().names, list(few_labels_photographs.GROUPS)
    for name, group in (
        ("giraffe", "animal"),
        ("bus", "vehicle"),
        ("sky-other-merged", "sky"),
        ("floor-wood", "ground"),
    ):
        assert number[names.index(name)] == groups.index(group)
    assert number[names.index("tie")] == 255
    assert (number[len(names) :] == 255).all()
    assert set(number.tolist()) == {*range(len(groups)), 255}


@pytest.mark.slow
@pytest.mark.usefixtures("restored_catalogs", "_lite0")
def test_labels_alone_and_all_photographs_are_trained_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGMENTATION_TEST_DATA", "")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["--preset", "smoke", "--output", str(tmp_path)]
    assert few_labels_photographs.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("$ python train_net.py") == 2
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["trained_on"] == "coco_samples"
    assert 0 <= last["labels_alone"]["mIoU"] <= 100
    assert 0 <= last["with_unlabeled"]["mIoU"] <= 100
    folder = tmp_path / "smoke"
    assert (folder / "few_labels.png").stat().st_size > 0
    labeled, unlabeled = (
        set((folder / "data" / "lists" / f"{name}.txt").read_text().split()) for name in ("labeled", "unlabeled")
    )
    assert (len(labeled), len(unlabeled)) == (2, 5)
    assert not labeled & unlabeled
    for part in ("train", "val"):
        for path in (folder / "data" / f"{part}_labels").iterdir():
            assert set(np.unique(read_label_map(path))) <= {*range(len(few_labels_photographs.GROUPS)), 255}
    assert few_labels_photographs.main(words) == 0
    assert "train_net.py" not in capsys.readouterr().out
