# SPDX-License-Identifier: Apache-2.0
"""Evaluation over all test sets: results by data set, plain JSON, no trace in a training that goes on."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn

from padding.data.files import write_json
from padding.engine import evaluation_loop
from padding.engine.evaluation_loop import evaluate
from padding.modeling.postprocessing import InferenceOptions
from tests.toy_training import toy_cfg


class CountingEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.images, self.trained = 0, False

    def process(self, inputs: list[Any], outputs: list[Any]) -> None:
        self.images += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        return {"sem_seg": {"images": float(self.images), "mIoU": float("nan")}}


class Identity(nn.Module):
    def forward(self, batch: list[Any]) -> list[Any]:
        assert not self.training
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return batch


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"first": 3, "second": 2}
    monkeypatch.setattr(evaluation_loop, "build_eval_loader", lambda cfg, name: [[i] for i in range(sizes[name])])
    monkeypatch.setattr(evaluation_loop, "build_evaluator", lambda cfg, name, folder: CountingEvaluator())


def test_one_set_is_flat_several_are_by_name(fakes: None, tmp_path: Path) -> None:
    one = evaluate(toy_cfg(tmp_path, "DATASETS.TEST", ("first",)), Identity())
    assert one["sem_seg"]["images"] == 3
    several = evaluate(toy_cfg(tmp_path, "DATASETS.TEST", ("first", "second")), Identity())
    assert [several[name]["sem_seg"]["images"] for name in ("first", "second")] == [3, 2]
    written = json.loads((tmp_path / "inference" / "metrics.json").read_text())
    assert written["second"]["sem_seg"] == {"images": 2.0, "mIoU": None}


OPTIONS = InferenceOptions(
    semantic_on=True,
    panoptic_on=False,
    instance_on=False,
    object_mask_threshold=0.8,
    overlap_threshold=0.8,
    top_k=1,
    resize_first=True,
)


class Labelling(Identity):
    def __init__(self) -> None:
        super().__init__()
        self.inference = OPTIONS
        self.asked: list[bool] = []

    def forward(self, batch: list[Any]) -> list[Any]:
        self.asked.append(self.inference.semantic_labels)
        return super().forward(batch)


@pytest.mark.parametrize(
    ("needs", "expected"), [([False], True), ([False, False], True), ([True, False], False), ([None], False)]
)
def test_scores_are_predicted_only_where_somebody_looks(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: list[Any], expected: bool
) -> None:
    def build(*_: Any) -> DatasetEvaluator:
        parts = [CountingEvaluator() for _ in needs]
        for part, need in zip(parts, needs, strict=True):
            if need is not None:
                part.needs_scores = need
        return parts[0] if len(parts) == 1 else Several(parts)

    class Several(DatasetEvaluators):
        def evaluate(self) -> dict[str, Any]:
            return self._evaluators[0].evaluate()

    monkeypatch.setattr(evaluation_loop, "build_evaluator", build)
    model = Labelling()
    evaluate(toy_cfg(tmp_path, "DATASETS.TEST", ("first",)), model)
    assert model.asked == [expected] * 3
    assert model.inference is OPTIONS


def test_training_mode_and_random_states_come_back(fakes: None, tmp_path: Path) -> None:
    model = Identity().train()
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    evaluate(toy_cfg(tmp_path, "DATASETS.TEST", ("first",)), model)
    assert model.training
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_metrics_are_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "m.json", {"a": np.float32(0.5), "b": [torch.tensor(2), float("inf")], 3: "text"})
    text = (tmp_path / "deep" / "m.json").read_text()
    assert json.loads(text) == {"a": 0.5, "b": [2, None], "3": "text"}
