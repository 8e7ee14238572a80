# SPDX-License-Identifier: Apache-2.0
"""What would stop a training after its last iteration stops it before the first, in one line that says why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from padding.data.folders import register_own_data
from padding.data.own_data import OWN_NAMES
from padding.data.registration import _registered, listed_once
from padding.engine.commands import load_config
from padding.engine.start_check import check_run, find_faults, try_evaluation
from padding.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Six images with labels of two classes; the last two are for evaluation."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(6):
        Image.new("RGB", (40, 32), (0, index, 0)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(np.eye(32, 40, dtype=np.uint8)).save(tmp_path / "labels" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("ground\nwater\n")
    (tmp_path / "val.txt").write_text("4\n5\n")
    yield tmp_path
    for name in OWN_NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
            _registered.discard(name)


def config(folder: Path, *opts: Any) -> CfgNode:
    keys = {"IMAGES": "images", "LABELS": "labels", "CLASSES": "classes.txt", "VAL_LIST": "val.txt"}
    words = [word for key, name in keys.items() for word in (f"DATASETS.FOLDERS.{key}", str(folder / name))]
    words += ["DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)", "INPUT.FORMAT", "RGB"]
    words += ["INPUT.DATASET_MAPPER_NAME", "semantic_resize", "INPUT.CROP.SIZE", "[32, 40]", "OUTPUT_DIR", "out"]
    cfg = load_config("", [*words, *map(str, opts)])
    register_own_data(cfg)
    return cfg


class Constant(nn.Module):
    """Predicts class 0 everywhere, with a random number drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        self.modes.append(self.training)
        torch.rand(1)
        scores = torch.zeros(2, inputs[0]["height"], inputs[0]["width"])
        scores[0] = 1.0
        return [{"sem_seg": scores}]


def test_sound_data_pass(folder: Path) -> None:
    cfg = config(folder)
    assert [finding for finding in find_faults(cfg) if finding.level != "note"] == []
    check_run(cfg)


def damage_missing_label(folder: Path) -> None:
    (folder / "labels" / "3.png").unlink()


def damage_missing_validation_label(folder: Path) -> None:
    (folder / "labels" / "5.png").unlink()


def damage_value(folder: Path) -> None:
    Image.fromarray(np.full((32, 40), 9, np.uint8)).save(folder / "labels" / "0.png")


def damage_size(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "labels" / "4.png")


def damage_void(folder: Path) -> None:
    for index in range(6):
        Image.fromarray(np.full((32, 40), 255, np.uint8)).save(folder / "labels" / f"{index}.png")


def damage_list(folder: Path) -> None:
    (folder / "val.txt").write_text("4\n50\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_label, r"own_train \(DATASETS.TRAIN\): 1 \(.*3\.png\) of 4 label images do not exist"),
        (damage_missing_validation_label, r"own_val \(DATASETS.TEST\): 1 \(.*5\.png\) of 2 label images do not exist"),
        (damage_value, r"own_train .* 1 label files hold 9, which is neither one of the 2 classes nor void"),
        (damage_size, r"own_val .*4\.png is 8 x 8, its image 32 x 40"),
        (damage_void, r"own_train .*all 4 label images looked at hold void alone"),
        (damage_list, r"own_val .*has no image 50"),
    ],
)
def test_faults_stop_a_run_before_it_starts(damage: Any, message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        check_run(config(folder))
    assert "python -m padding.data.doctor" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_set_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no_such_set \(DATASETS.TEST\): .*is not registered"):
        check_run(config(folder, "DATASETS.TEST", "('no_such_set',)"))


def test_evaluation_is_tried_without_a_trace(folder: Path) -> None:
    cfg = config(folder, "TEST.BEST_METRIC", "sem_seg/mIoU")
    model, state = Constant().train(), torch.get_rng_state()
    try_evaluation(cfg, model)
    assert model.modes == [False, False]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not Path("out").exists()


def test_a_misspelt_metric_is_found_at_the_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"TEST.BEST_METRIC is 'sem_seg/mIOU', which no .*nearest: sem_seg/mIoU"):
        try_evaluation(config(folder, "TEST.BEST_METRIC", "sem_seg/mIOU"), Constant())


def test_a_set_is_listed_once(folder: Path) -> None:
    config(folder)
    with listed_once():
        first, second = DatasetCatalog.get("own_train"), DatasetCatalog.get("own_train")
        assert first is not second
        assert all(one is other for one, other in zip(first, second, strict=True))
    (folder / "images" / "0.png").unlink()
    assert len(DatasetCatalog.get("own_train")) == len(first) - 1
