# SPDX-License-Identifier: Apache-2.0
"""The weight of the unsupervised losses: golden values, length, other shapes."""

import itertools
from collections.abc import Callable

import pytest
from detectron2.config import CfgNode

from padding.modeling.ramp_up import build_ramp_up, gaussian_ramp_up


def configured(kind: str = "gaussian", iterations: int = -1, max_iter: int = 1000) -> Callable[[int], float]:
    return build_ramp_up(CfgNode({"TYPE": kind, "ITERS": iterations}), max_iter=max_iter, key="MODEL.X.RAMP_UP")


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 0.00674), (0.1, 0.0174), (0.25, 0.0601), (0.5, 0.2865), (0.75, 0.7316), (0.9, 0.9512), (1.0, 1.0)],
)
def test_golden_values(progress: float, weight: float) -> None:
    """By hand: exp(-5 (1 - t)^2), which starts at exp(-5) = 0.00674."""
    assert gaussian_ramp_up(round(1000 * progress), 1000) == pytest.approx(weight, abs=5e-5)


def test_it_rises_to_one_and_stays_there() -> None:
    weights = [gaussian_ramp_up(iteration, 400) for iteration in range(1000)]
    assert all(a < b for a, b in itertools.pairwise(weights[:401]))
    assert set(weights[400:]) == {1.0}
    assert sum(weights[:400]) / 400 == pytest.approx(0.396, abs=2e-3)


def test_default_length_is_the_share_of_laine_and_aila() -> None:
    ramp_up = configured(max_iter=80000)
    assert ramp_up(21600) == 1.0
    assert ramp_up(21599) < 1.0
    assert ramp_up(10800) == pytest.approx(0.2865, abs=5e-5)


@pytest.mark.parametrize("kind", ["gaussian", "linear", "none"])
def test_length_zero_is_a_weight_of_one(kind: str) -> None:
    ramp_up = configured(kind, 0)
    assert [ramp_up(iteration) for iteration in (0, 1, 10**6)] == [1.0] * 3


def test_other_shapes() -> None:
    linear = configured("linear", 200)
    assert [linear(iteration) for iteration in (0, 50, 200, 300)] == [0.0, 0.25, 1.0, 1.0]
    constant = configured("none", 200)
    assert constant(0) == 1.0
    with pytest.raises(ValueError, match=r"MODEL\.X\.RAMP_UP\.TYPE is 'cosine'; expected one of gaussian"):
        configured("cosine")
