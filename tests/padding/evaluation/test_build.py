# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators

from padding.evaluation.build import build_evaluator
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from padding.evaluation.semantic import SemSegEvaluator

Dataset = Callable[..., tuple[str, list[dict[str, Any]]]]


def config(tmp_path: Path, **switches: bool) -> CfgNode:
    model = {"MASK_FORMER": {"TEST": {f"{name}_ON": on for name, on in switches.items()}}} if switches else {}
    test = {"SEM_SEG": {"MODE": "whole", "PARTS": ()}, "EVALUATION_WORKERS": 0}
    return CfgNode({"OUTPUT_DIR": str(tmp_path), "MODEL": model, "TEST": test})


@pytest.fixture
def dataset(panoptic_dataset: Dataset, tmp_path: Path, split: Any) -> Callable[..., str]:
    categories = [{"id": i, "name": n} for i, n in zip(split.dataset_ids[:3], split.names[:3], strict=True)]
    (tmp_path / "instances.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))

    def make(**metadata: Any) -> str:
        return panoptic_dataset([], json_file=str(tmp_path / "instances.json"), **metadata)[0]

    return make


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, [SemSegEvaluator, PanopticEvaluator, InstanceEvaluator]),
        ({"SEMANTIC": True, "PANOPTIC": True, "INSTANCE": False}, [SemSegEvaluator, PanopticEvaluator]),
        ({"SEMANTIC": False, "PANOPTIC": True, "INSTANCE": False}, [PanopticEvaluator]),
        ({"SEMANTIC": False, "PANOPTIC": False, "INSTANCE": True}, [InstanceEvaluator]),
    ],
)
def test_switches_choose_the_tasks(dataset: Callable[..., str], tmp_path: Path, switches: Any, expected: list) -> None:
    evaluator = build_evaluator(config(tmp_path, **switches), dataset())
    found = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    assert [type(part) for part in found] == expected


@pytest.mark.parametrize(("kind", "expected"), [("sem_seg", SemSegEvaluator), ("coco_instance", InstanceEvaluator)])
def test_type_chooses_the_evaluator(dataset: Callable[..., str], tmp_path: Path, kind: str, expected: type) -> None:
    cfg = config(tmp_path, SEMANTIC=False, PANOPTIC=True, INSTANCE=False)
    assert type(build_evaluator(cfg, dataset(evaluator_type=kind), tmp_path)) is expected


def test_default_folder_is_below_the_output_folder(dataset: Callable[..., str], tmp_path: Path) -> None:
    build_evaluator(config(tmp_path, SEMANTIC=True, PANOPTIC=False, INSTANCE=False), dataset()).evaluate()
    assert (tmp_path / "inference" / "tiny_panoptic" / "sem_seg_per_class.json").is_file()


def test_parts_and_the_middle_reach_the_semantic_evaluator(dataset: Callable[..., str], tmp_path: Path) -> None:
    cfg = config(tmp_path, SEMANTIC=True, PANOPTIC=False, INSTANCE=False)
    cfg.TEST.SEM_SEG.PARTS = ("cnn", "vit")
    name = dataset(evaluator_type="sem_seg")
    assert build_evaluator(cfg, name).tasks == ("sem_seg", "sem_seg_cnn", "sem_seg_vit")
    half = {"file_name": "1.jpg", "sem_seg": torch.zeros(5, 4, 4)}
    half["sem_seg"][1, :, :2] = 1.0
    for mode, expected in (("whole", 50.0), ("center_crop", 100.0)):
        cfg.TEST.SEM_SEG.MODE, cfg.TEST.SEM_SEG.PARTS = mode, ()
        evaluator = build_evaluator(cfg, name)
        labels = evaluator._labels("sem_seg", half["sem_seg"])
        evaluator.confusions["sem_seg"] += evaluator._confusion("sem_seg", labels, np.ones((4, 4), dtype=np.uint8))
        assert evaluator.evaluate()["sem_seg"]["pACC"] == expected


def test_nothing_to_do_and_unknown_type_are_errors(dataset: Callable[..., str], tmp_path: Path, register: Any) -> None:
    with pytest.raises(ValueError, match=r"set one of MODEL\.MASK_FORMER\.TEST\.SEMANTIC_ON"):
        build_evaluator(config(tmp_path, SEMANTIC=False, PANOPTIC=False, INSTANCE=False), dataset())
    with pytest.raises(ValueError, match="evaluator_type 'depth'; known are"):
        build_evaluator(config(tmp_path), register("other", [], evaluator_type="depth"))
    with pytest.raises(ValueError, match="register_all"):
        build_evaluator(config(tmp_path), register("untyped", []))
