# SPDX-License-Identifier: Apache-2.0
"""Samples in page-locked memory: where there is a GPU, and with the masks of their targets."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from padding.data.instances import PinnableInstances
from padding.data.streams import TrainStream
from padding.data.targets import masks_to_instances


def test_masks_and_classes_of_a_batch_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own function, with a stand-in for the driver: what it returns is a copy."""
    pinned: list[Tensor] = []

    def record(tensor: Tensor, *args: Any) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", record)
    targets = pickle.loads(pickle.dumps(masks_to_instances(np.ones((2, 3, 4), bool), np.array([5, 6]))))
    targets.name = ["a", "b"]
    [sample] = pin_memory([{"image": torch.zeros(3, 3, 4), "instances": targets, "file_name": "a.jpg"}])
    found = sample["instances"]
    assert isinstance(found, PinnableInstances)
    assert found.image_size == (3, 4)
    assert found.name == ["a", "b"]
    assert {id(sample["image"]), id(found.gt_masks), id(found.gt_classes)} == {id(tensor) for tensor in pinned}
    torch.testing.assert_close(found.gt_classes, targets.gt_classes)


@pytest.mark.parametrize("there", [False, True])
def test_streams_pin_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    stream = TrainStream([{"x": 0}, {"x": 1}], dict, batch_size=1, seed=0)
    assert stream._build_loader().pin_memory is there
