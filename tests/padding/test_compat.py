# SPDX-License-Identifier: Apache-2.0
"""The fixes for Detectron2 v0.6, and that they leave upstream main alone."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.engine import DefaultTrainer

from padding import compat


def test_names_that_v06_uses_exist_again() -> None:
    assert PIL.Image.LINEAR == PIL.Image.BILINEAR
    assert np.zeros(1, dtype=getattr(np, "int")).dtype == np.int64
    assert np.zeros(1, dtype=getattr(np, "float")).dtype == np.float64


def test_native_schedulers_count_as_schedulers_of_v06() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert isinstance(scheduler, torch.optim.lr_scheduler._LRScheduler)


def test_sampling_from_a_set_is_deterministic() -> None:
    rng = compat._SetSamplingRandom(3)
    assert rng.sample({5, 1, 9}, 2) == random.Random(3).sample([1, 5, 9], 2)


def test_missing_operator_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match=r"detectron2\._C\.nms_rotated.*without its compiled operators"):
        _ = compat._MissingOps().nms_rotated


def test_trainer_state_holds_the_optimizer() -> None:
    class Inner:
        def state_dict(self) -> dict[str, int]:
            return {"momentum": 7}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.loaded = state

    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer._hooks, trainer.iter, trainer._trainer = [], 3, Inner()
    state = trainer.state_dict()
    assert state["_trainer"] == {"momentum": 7}
    trainer.load_state_dict(state)
    assert trainer._trainer.loaded == {"momentum": 7}


def test_coco_evaluation_needs_no_compiled_operator() -> None:
    from detectron2.evaluation import coco_evaluation

    if compat.is_detectron2_v06():
        assert coco_evaluation.COCOeval_opt is coco_evaluation.COCOeval
    else:
        assert hasattr(coco_evaluation, "COCOeval")
