# SPDX-License-Identifier: Apache-2.0
"""Processes beside the model change no result; their errors reach the user, and none of them stays."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators

from padding.errors import ConfigError, DataError, MissingFileError
from padding.evaluation.build import build_evaluator
from padding.evaluation.panoptic import PanopticEvaluator
from padding.evaluation.semantic import SemSegEvaluator
from padding.evaluation.workers import ParallelEvaluators, ending_workers

Case = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture
def case(panoptic_dataset: Callable[..., Any], random_scene: Any, as_prediction: Any) -> Case:
    """Nine images and their predictions."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(9)]
    name, records = panoptic_dataset(scenes)
    outputs = []
    for scene in scenes:
        pred_map, segments = as_prediction(*scene, rng)
        segments = [s for s in segments if (pred_map == s["id"]).any()]
        scores = torch.from_numpy(rng.random((5, *pred_map.shape), np.float32))
        outputs.append({"sem_seg": scores, "panoptic_seg": (torch.from_numpy(pred_map.astype(np.int32)), segments)})
    return name, records, outputs


def evaluators(name: str) -> list[Any]:
    return [SemSegEvaluator(name), PanopticEvaluator(name)]


def test_results_are_the_same_to_the_last_bit(case: Case) -> None:
    name, records, outputs = case
    results = []
    for evaluator in (DatasetEvaluators(evaluators(name)), *(ParallelEvaluators(evaluators(name), n) for n in (1, 2))):
        for _ in range(2):  # once more after a reset
            evaluator.reset()
            for start in range(0, 9, 2):
                evaluator.process(records[start : start + 2], outputs[start : start + 2])
            results.append(evaluator.evaluate())
    assert results[0]["sem_seg"]["num_images"] == results[0]["panoptic_seg"]["num_images"] == 9
    assert all(repr(result) == repr(results[0]) for result in results)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_a_process_is_the_users(case: Case, tmp_path: Path, number: int) -> None:
    name, records, outputs = case
    error: Any = (MissingFileError, DataError)[number]
    if number:
        outputs[3]["panoptic_seg"] = (outputs[3]["panoptic_seg"][0][:5], outputs[3]["panoptic_seg"][1])
    else:
        (tmp_path / "panoptic" / "4.png").unlink()
    with ending_workers(ParallelEvaluators(evaluators(name), 1)) as evaluator:
        evaluator.process(records[:4], outputs[:4])  # three of them wait
        with pytest.raises(error, match=r"4\.[jp]"):
            evaluator.evaluate()
    assert not multiprocessing.active_children()


class Dying(SemSegEvaluator):
    def counted(self, record: Any, reduced: Any) -> Any:
        os._exit(1)


def test_a_process_that_dies_names_the_key(case: Case) -> None:
    name, records, outputs = case
    evaluator = ParallelEvaluators([Dying(name)], 2)
    with pytest.raises(ConfigError, match=r"one of the 2 processes .* died.*lower TEST\.EVALUATION_WORKERS"):
        evaluator.process(records, outputs)


def test_no_more_than_a_few_images_wait(case: Case) -> None:
    name, records, outputs = case
    with ending_workers(ParallelEvaluators(evaluators(name), 1)) as evaluator:
        evaluator.process(records, outputs)
        assert len(evaluator._waiting) <= 3


def test_the_key_chooses(case: Case, tmp_path: Path) -> None:
    switches = {"SEMANTIC_ON": True, "PANOPTIC_ON": True, "INSTANCE_ON": False}
    test = {"SEM_SEG": {"MODE": "whole", "PARTS": ()}, "EVALUATION_WORKERS": 3}
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path), "MODEL": {"MASK_FORMER": {"TEST": switches}}, "TEST": test})
    evaluator = build_evaluator(cfg, case[0])
    assert isinstance(evaluator, ParallelEvaluators)
    assert evaluator._num_workers == 3
