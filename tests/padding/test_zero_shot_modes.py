# SPDX-License-Identifier: Apache-2.0
"""The three tasks with a model on generated images: GZSL and ZSL evaluation, and the sweep over gamma.

The network is not trained: what is tested is which classes compete and which count, not how good they are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.streams import build_eval_loader
from padding.engine.evaluation_loop import evaluate
from padding.meta_arch import PADing
from padding.study.seen_bias import main, sweep_model, sweep_summary
from tests.tiny_padding import tiny_padding_cfg
from tests.tiny_segmentor import write_dozen_shapes

# task -> training set, test set, key and quantity of the results, seen classes, mapper
TASKS = {
    "PANOPTIC": ("shapes_train_panoptic_zsp", "shapes_val_panoptic_zsp", "panoptic_seg", "PQ", 35, "panoptic"),
    "SEMANTIC": ("shapes_train_sem_seg_zss", "shapes_val_sem_seg_zss", "sem_seg", "mIoU", 35, "semantic"),
    "INSTANCE": ("shapes_train_instances_zsi", "shapes_val_instances_zsi", "segm", "AP50", 25, "instance"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dozen_shapes(tmp_path_factory.mktemp("modes"))


@pytest.fixture
def make_cfg(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_all()

    def make(task: str, *opts: Any, unseen_only: bool = False) -> CfgNode:
        train, test, _, _, num_classes, mapper = TASKS[task]
        switches = [entry for name in TASKS for entry in (f"MODEL.MASK_FORMER.TEST.{name}_ON", name == task)]
        return tiny_padding_cfg(
            root, tmp_path / "out", "DATASETS.TRAIN", (train,),
            "DATASETS.TEST", (test + "_unseen" if unseen_only else test,),
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes, "INPUT.DATASET_MAPPER_NAME", f"mask_former_{mapper}",
            "INPUT.MIN_SIZE_TEST", 64, "MODEL.PADING.EMBEDDINGS.PATH", "shapes/class_embeddings.npz",
            "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0,
            *switches, *opts,
        )  # fmt: skip

    return make


def build(cfg: CfgNode) -> PADing:
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.new_fc.weight, std=1.0)  # classes should differ, in favour of none
    with torch.no_grad():
        model.new_fc.bias[-1] = -4.0
    return model


def predicted_classes(model: PADing, cfg: CfgNode) -> set[int]:
    found: set[int] = set()
    for batch in build_eval_loader(cfg, cfg.DATASETS.TEST[0]):
        (prediction,) = model(batch)
        if "panoptic_seg" in prediction:
            found |= {segment["category_id"] for segment in prediction["panoptic_seg"][1]}
        if "sem_seg" in prediction:
            found |= set(prediction["sem_seg"].argmax(0).unique().tolist())
        if "instances" in prediction:
            found |= set(prediction["instances"].pred_classes.tolist())
    return found


@pytest.mark.parametrize("task", TASKS)
def test_zsl_predicts_unseen_classes_alone(task: str, make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg(task, "MODEL.PADING.TEST.MODE", "zsl", unseen_only=True)
    split = class_split_of(cfg.DATASETS.TEST[0])
    classes = predicted_classes(build(cfg), cfg)
    assert classes
    assert classes <= set(split.unseen_ids)
    both = make_cfg(task)
    everything = predicted_classes(build(both), both)
    assert everything & set(split.seen_ids), "with all classes competing, some seen ones should win"


@pytest.mark.parametrize("task", TASKS)
def test_zsl_counts_unseen_classes_alone(task: str, make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg(task, "MODEL.PADING.TEST.MODE", "zsl", unseen_only=True)
    results = evaluate(cfg, build(cfg))[TASKS[task][2]]
    quantity = TASKS[task][3]
    assert results[quantity] == results[f"{quantity}_unseen"]
    assert np.isnan(results[f"{quantity}_seen"])
    assert results["num_classes"] == results["num_classes_unseen"] > 0
    assert results["num_classes_seen"] == 0


@pytest.mark.parametrize("task", TASKS)
def test_gzsl_reports_seen_unseen_and_their_harmonic_mean(task: str, make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg(task)
    results = evaluate(cfg, build(cfg))[TASKS[task][2]]
    quantity = TASKS[task][3]
    assert {quantity, f"{quantity}_seen", f"{quantity}_unseen", f"{quantity}_hm"} <= set(results)
    assert results["num_classes_seen"] > 0
    if task == "INSTANCE":
        assert {"recall100_seen", "recall100_unseen", "recall100_hm"} <= set(results)


@pytest.mark.parametrize("task", TASKS)
def test_sweep_at_gamma_zero_is_the_evaluation(task: str, make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg(task)
    model, quantity = build(cfg), TASKS[task][3]
    expected = evaluate(cfg, model)[TASKS[task][2]]
    summary = sweep_summary(cfg, model, (-1000.0, 0.0, 1000.0))
    assert next(iter(summary)) == quantity, "the leading quantity of the task comes first"
    seen_only, plain, unseen_only = summary[quantity]["curve"]
    assert plain["seen"] == pytest.approx(expected[f"{quantity}_seen"], abs=1e-6)
    assert plain["unseen"] == pytest.approx(expected[f"{quantity}_unseen"], abs=1e-6)
    assert seen_only["unseen"] == unseen_only["seen"] == 0
    assert set(summary[quantity]) >= {"AUSUC", "best_hm", "best_hm_gamma"}


@pytest.mark.parametrize("task", ["SEMANTIC", "INSTANCE"])
def test_gamma_far_up_is_zsl(task: str, make_cfg: Callable[..., CfgNode]) -> None:
    """Infinite gamma leaves unseen classes and no-object, as MODE zsl does."""
    cfg = make_cfg(task)
    model, quantity = build(cfg), TASKS[task][3]
    unseen = sweep_summary(cfg, model, (0.0, 1000.0))[quantity]["curve"][-1]["unseen"]
    model.test_mode = "zsl"
    assert evaluate(cfg, model)[TASKS[task][2]][f"{quantity}_unseen"] == pytest.approx(unseen, abs=1e-6)


def test_sweep_of_an_unknown_type_is_an_error(make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg("SEMANTIC").clone()
    model = build(cfg)
    cfg.defrost()
    cfg.DATASETS.TEST = ("modes_depth",)
    MetadataCatalog.get("modes_depth").set(evaluator_type="depth")
    with pytest.raises(ValueError, match=r"evaluator_type 'depth'; gamma is swept on \['coco_instance'"):
        sweep_model(cfg, model)
    MetadataCatalog.remove("modes_depth")


@pytest.mark.parametrize("task", ["SEMANTIC", "INSTANCE"])
def test_command_line_writes_curve_and_figure(task: str, make_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    cfg = make_cfg(task)
    torch.save({"model": build(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    results = main(
        ["--config-file", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "s"),
         "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    )  # fmt: skip
    assert len(results[TASKS[task][3]]["curve"]) == 43
    assert (tmp_path / "s" / "seen_unseen_curve.png").stat().st_size > 10_000
    assert "NaN" not in (tmp_path / "s" / "seen_unseen_curve.json").read_text()
