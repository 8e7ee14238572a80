# SPDX-License-Identifier: Apache-2.0
import torch
from detectron2.utils.events import EventStorage

from padding.modeling.diagnostics import event_storage, note_observations, training_iteration


def test_observations_reach_the_storage_under_their_prefix() -> None:
    with EventStorage(7) as storage:
        note_observations("method", {"weight": torch.tensor(0.5), "share": 0.25})
        assert {name: value for name, (value, _) in storage.latest().items()} == {
            "method/weight": 0.5,
            "method/share": 0.25,
        }
        assert training_iteration() == 7


def test_outside_a_training_nothing_happens() -> None:
    assert event_storage() is None
    note_observations("method", {"weight": 1.0})
    assert training_iteration(default=3) == 3
