# SPDX-License-Identifier: Apache-2.0
"""A cohort and each of its exported students on images from disk: the same predictions, results and label maps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import default_argument_parser

import demo
import train_net
from padding.data.catalog import register_all
from padding.engine import Predictor
from padding.engine.commands import load_config
from padding.engine.evaluation_loop import evaluate
from tcc.export_student import main
from tcc.meta_arch import TCC
from tests.tiny_segmentor import write_dozen_shapes
from tests.tiny_tcc import tiny_tcc_cfg

PLAN = (
    *("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", (64, 64), "TEST.SEM_SEG.STRIDE", (32, 32)),
    *("TEST.SEM_SEG.FLIP", True, "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 80),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a cohort with moving averages that differ from its students."""
    folder = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    (folder / "config.yaml").write_text(tiny_tcc_cfg(*PLAN).dump())
    register_all(folder)
    for decay in (0.0, 0.9):
        opts = ["MODEL.TCC.EMA.DECAY", str(decay)]
        model = TCC(load_config(folder / "config.yaml", opts))
        torch.manual_seed(2)
        for parameter in model.parameters():  # fresh heads give all classes the same score
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        torch.save({"model": model.state_dict()}, folder / f"cohort_{decay}.pth")
    return folder


def cohort_cfg(root: Path, output: Path, decay: float, *opts: str) -> CfgNode:
    paths = ["MODEL.WEIGHTS", str(root / f"cohort_{decay}.pth"), "OUTPUT_DIR", str(output)]
    words = [*paths, "MODEL.TCC.EMA.DECAY", str(decay), *opts]
    return load_config(root / "config.yaml", words)


def images(cfg: CfgNode) -> list[np.ndarray]:
    return [read_image(record["file_name"], "RGB") for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_exported_students_predict_what_they_did_in_the_cohort(
    root: Path, tmp_path: Path, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = cohort_cfg(root, tmp_path / "cohort", decay)
    together = Predictor(cfg)
    expected = evaluate(cfg, together.model)
    assert list(expected) == ["sem_seg", "sem_seg_cnn", "sem_seg_vit", "sem_seg_ensemble"]
    assert expected["sem_seg"] == expected["sem_seg_vit"] != expected["sem_seg_cnn"]
    for student in ("cnn", "vit"):
        paths = ["--config-file", str(root / "config.yaml"), "--weights", cfg.MODEL.WEIGHTS]
        words = ["--student", student, "--output", str(tmp_path / f"{student}.pth")]
        file = main([*paths, *words, "--opts", "MODEL.TCC.EMA.DECAY", str(decay)])
        own = load_config(str(file), ["MODEL.DEVICE", "cpu"])
        alone = Predictor(own)
        assert list(alone.model.students) == [student]
        assert evaluate(own, alone.model) == {"sem_seg": expected[f"sem_seg_{student}"]}
        for image in images(cfg)[:2]:
            assert torch.equal(alone(image)["sem_seg"], together(image)[f"sem_seg_{student}"])
        for name, value in alone.model.state_dict().items():
            source = name if decay == 0 else f"averages.{name}"
            assert torch.equal(value, together.model.state_dict()[source]), name


def test_options_pick_the_student_of_a_prediction(root: Path, tmp_path: Path) -> None:
    picture = images(cohort_cfg(root, tmp_path, 0.0))[0]
    found: dict[str, Any] = {}
    for student in ("cnn", "vit", "ensemble"):
        opts = ("MODEL.TCC.TEST.STUDENT", student, "TEST.SEM_SEG.PARTS", "()")
        prediction = Predictor(cohort_cfg(root, tmp_path, 0.0, *opts))(picture)
        assert list(prediction) == ["sem_seg"]
        found[student] = prediction["sem_seg"]
    torch.testing.assert_close(found["ensemble"], (found["cnn"] + found["vit"]) / 2)
    assert (found["cnn"] - found["vit"]).abs().max() > 0.01
    torch.testing.assert_close(found["vit"].sum(dim=0), torch.ones(picture.shape[:2]))


@pytest.mark.smoke
def test_exported_student_runs_from_the_commands(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a cohort with train_net.py, export from what that wrote, evaluate with train_net.py, draw with demo.py."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    opts = ("TEST.BEST_METRIC", "sem_seg/mIoU", "TEST.EVAL_PERIOD", 1, "OUTPUT_DIR", str(tmp_path / "cohort"))
    unlabeled = ("DATASETS.TRAIN_UNLABELED", ("shapes_train_sem_seg_coarse",))
    (tmp_path / "tiny.yaml").write_text(tiny_tcc_cfg("SOLVER.MAX_ITER", 3, *opts, *unlabeled).dump())
    trained = train(str(tmp_path / "tiny.yaml"))
    assert {"sem_seg", "sem_seg_cnn", "sem_seg_vit", "sem_seg_ensemble", "best"} == set(trained)
    assert trained["best"]["sem_seg_cnn"]["num_images"] == 4
    for weights, expected in (("model_final", trained), ("model_best", trained["best"])):
        paths = ["--weights", str(tmp_path / "cohort" / f"{weights}.pth"), "--output", str(tmp_path / f"{weights}.pth")]
        file = main(["--config-file", str(tmp_path / "cohort" / "config.yaml"), "--student", "cnn", *paths])
        assert train(str(file), "--eval-only") == {"sem_seg": expected["sem_seg_cnn"]}
    pictures = ["--input", str(root / "shapes" / "images" / "val"), "--output", str(tmp_path / "out"), "--label-maps"]
    assert len(demo.main(["--config-file", str(file), *pictures])) == 4
    assert len(list((tmp_path / "out" / "label_maps").glob("*.png"))) == 4


def train(file: str, *flags: str) -> dict[str, Any]:
    return train_net.main(default_argument_parser().parse_args(["--config-file", file, *flags]))
