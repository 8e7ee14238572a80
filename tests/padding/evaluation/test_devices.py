# SPDX-License-Identifier: Apache-2.0
"""Evaluators take predictions from a device that is not the CPU, by one copy of each tensor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from padding.data.class_split import ClassSplit
from padding.engine.dry_run import LiveMemory, Waits, can_run_dry, dry
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from padding.evaluation.saliency import SaliencyEvaluator
from padding.evaluation.semantic import SemSegEvaluator
from tests.dry_device import DEVICE

SIZE = (24, 32)

pytestmark = pytest.mark.skipif(not can_run_dry(), reason="torch 2.4 knows too little of tensors without values")


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


def instances() -> Instances:
    """Two masks."""
    fields = {"scores": on_device(2), "pred_classes": on_device(2, dtype=torch.int64)}
    return Instances(SIZE, pred_masks=on_device(2, *SIZE, dtype=torch.bool), **fields)


CASES: dict[str, tuple[Callable[[str], Any], Callable[[], Any], int]] = {
    "sem_seg": (SemSegEvaluator, lambda: on_device(5, *SIZE), 1),
    "panoptic_seg": (PanopticEvaluator, lambda: (on_device(*SIZE, dtype=torch.int32), []), 1),
    "instances": (InstanceEvaluator, instances, 3),
    "saliency": (SaliencyEvaluator, lambda: on_device(1, 12, 16), 1),
}


@pytest.fixture
def dataset(
    panoptic_dataset: Callable[..., Any], random_scene: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    """A set of one image with the truth of every task."""

    def write(task: str) -> tuple[str, list[dict[str, Any]]]:
        name, records = panoptic_dataset([random_scene(np.random.default_rng(0), size=SIZE)])
        if task == "saliency":
            path = tmp_path / "saliency.png"
            Image.fromarray(np.repeat(np.uint8([[0, 255]]), SIZE[0], 0).repeat(SIZE[1] // 2, 1)).save(path)
            records[0]["saliency_file_name"] = str(path)
        return name, records

    return write


@pytest.mark.parametrize("task", [task for task in CASES if task != "instances"])
def test_predictions_of_a_device(task: str, dataset: Callable[..., Any]) -> None:
    make, prediction, copies = CASES[task]
    name, records = dataset(task)
    check(make(name), records, {task: prediction}, copies)


def test_instances_of_a_device(tmp_path: Path, register: Callable[..., str], split: ClassSplit) -> None:
    make, prediction, copies = CASES["instances"]
    square = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [2, 2, 4, 4], "area": 16}
    square["segmentation"] = [[2, 2, 6, 2, 6, 6, 2, 6]]
    images = [{"id": 1, "height": SIZE[0], "width": SIZE[1], "file_name": "1.jpg"}]
    things = [{"id": i, "name": n} for i, n in zip(split.dataset_ids[:3], split.names[:3], strict=True)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": [square], "categories": things}))
    records = [{"file_name": "1.jpg", "image_id": 1}]
    name = register("tiny_instances", records, class_split=split, json_file=str(path))
    check(make(name), records, {"instances": prediction}, copies)


def check(evaluator: Any, records: list[dict[str, Any]], outputs: dict[str, Callable[[], Any]], copies: int) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    waits = Waits(mode, DEVICE)
    with dry(waits, LiveMemory()):
        evaluator.process(records, [{task: make() for task, make in outputs.items()}])
        assert dict(waits.counts) == {"copy to the CPU": copies}
    [found] = {part["num_images"] for part in evaluator.evaluate().values()}
    assert found == 1
