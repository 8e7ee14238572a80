# SPDX-License-Identifier: Apache-2.0
"""States of all random generators survive a checkpoint file and come back exactly."""

import random
from pathlib import Path

import numpy as np
import torch

from padding.engine.random_state import capture_random_state, preserved_random_state, restore_random_state


def draw() -> tuple[float, ...]:
    # gauss() and normal() each keep a second value for the next call: the state must hold it.
    return (random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


def test_state_restores_every_generator_through_a_safe_file(tmp_path: Path) -> None:
    draw()
    torch.save(capture_random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]

    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))

    assert [draw() for _ in range(3)] == expected


def test_preserved_block_leaves_no_trace_even_after_an_error() -> None:
    state = capture_random_state()
    expected = draw()
    restore_random_state(state)
    try:
        with preserved_random_state():
            draw()
            random.seed(99)
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected
