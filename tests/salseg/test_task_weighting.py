# SPDX-License-Identifier: Apache-2.0
"""Weights of the losses: equivalences, optimum, absent tasks, bounds."""

import math

import pytest
import torch

from salseg.losses import TaskLoss
from salseg.task_weighting import TaskWeighting, liebel_terms, tasks_of, uncertainty_terms


def losses(seg: float | None = 0.7, saliency: float | None = 0.3, present: float = 1.0) -> dict[str, TaskLoss]:
    given = {"seg": seg, "saliency": saliency}
    one = torch.tensor(1.0)
    return {k: TaskLoss(torch.tensor(v), present * one, one) for k, v in given.items() if v is not None}


def trained(weighting: TaskWeighting, steps: int, *absent: str, every: int = 2, lr: float = 0.4) -> dict[str, float]:
    """s after training on constant losses 0.7 and 0.3; ``absent`` tasks are there in one of ``every`` steps."""
    optimizer = torch.optim.SGD(weighting.parameters(), lr=lr)
    for step in range(steps):
        here = losses()
        if step % every:
            here = {task: loss for task, loss in here.items() if task not in absent}
        optimizer.zero_grad()
        sum(weighting(here).values()).backward()
        optimizer.step()
    return {task: s.item() for task, s in weighting.log_variances.items()}


def test_terms_are_those_of_the_paper_with_sigma_squared_as_exponential() -> None:
    sigma = 1.7
    s = torch.tensor(math.log(sigma**2))
    weight, term = uncertainty_terms(s)
    assert weight.item() == pytest.approx(1 / sigma**2)
    assert term.item() == pytest.approx(math.log(sigma))
    weight, term = liebel_terms(s)
    assert weight.item() == pytest.approx(0.5 / sigma**2)
    assert term.item() == pytest.approx(math.log(1 + sigma**2))


def test_at_the_start_uncertainty_is_the_plain_sum() -> None:
    terms = TaskWeighting("uncertainty")(losses())
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"loss_seg": 0.7, "loss_saliency": 0.3, "loss_uncertainty": 0.0}
    )


def test_uniform_is_fixed_one_half_each() -> None:
    uniform, fixed = TaskWeighting("uniform"), TaskWeighting("fixed", weights=(0.5, 0.5))
    assert uniform(losses()) == fixed(losses())
    assert uniform.weights == fixed.weights == {"seg": 0.5, "saliency": 0.5}
    assert TaskWeighting("fixed", weights=(0.8, 0.2)).weights == {"seg": 0.8, "saliency": 0.2}
    assert not list(fixed.parameters())


@pytest.mark.parametrize("absent", [(), ("saliency",)], ids=["always", "half-of-the-steps"])
def test_log_variance_converges_to_log_2l(absent: tuple[str, ...]) -> None:
    weighting = TaskWeighting("uncertainty")
    found = trained(weighting, 100, *absent)
    assert found == pytest.approx({"seg": math.log(1.4), "saliency": math.log(0.6)}, abs=1e-3)
    assert weighting.weights == pytest.approx({"seg": 1 / 1.4, "saliency": 1 / 0.6}, rel=2e-3)


def test_regularizer_of_an_absent_task_alone_would_double_its_weight() -> None:
    """Why both terms are skipped: 3.33 instead of 1.67 for L = 0.3 in half of the steps."""
    s = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([s], lr=0.1)
    for step in range(250):
        weight, term = uncertainty_terms(s)
        optimizer.zero_grad()
        (term + weight * 0.3 * (step % 2)).backward()
        optimizer.step()
    assert math.exp(-s.item()) == pytest.approx(3.33, rel=0.1)


@pytest.mark.parametrize("kind", ["uncertainty", "liebel"])
def test_absent_task_has_no_gradient_and_a_void_one_none_either(kind: str) -> None:
    weighting = TaskWeighting(kind)
    terms = weighting(losses(saliency=None))
    assert "loss_saliency" not in terms
    sum(terms.values()).backward()
    assert weighting.log_variances["saliency"].grad is None
    weighting.zero_grad()
    sum(weighting(losses(seg=0.0, saliency=0.0, present=0.0)).values()).backward()
    for s in weighting.log_variances.values():  # there, so that data-parallel training does not wait for it; but 0
        assert s.grad is not None
        assert s.grad.item() == 0


def test_total_may_be_negative_but_not_with_liebel() -> None:
    small = losses(0.01, 0.02)
    for kind, negative in (("uncertainty", True), ("liebel", False)):
        weighting = TaskWeighting(kind)
        optimizer = torch.optim.Adam(weighting.parameters(), lr=0.3)
        for _ in range(40):
            optimizer.zero_grad()
            total = sum(weighting(small).values())
            total.backward()
            optimizer.step()
        assert (total.item() < 0) is negative


def test_log_variances_stay_within_their_bounds_and_find_back() -> None:
    weighting = TaskWeighting("uncertainty", clamp=2.0)
    for task in weighting.tasks:
        weighting.log_variances[task].data.fill_(9.0)
    assert weighting.weights == pytest.approx({"seg": math.exp(-2), "saliency": math.exp(-2)})
    found = trained(weighting, 120)
    assert found == pytest.approx({"seg": math.log(1.4), "saliency": math.log(0.6)}, abs=1e-3)


def test_single_tasks_and_unknown_words() -> None:
    assert tasks_of("seg_only") == ("seg",)
    assert TaskWeighting("saliency_only").weights == {"saliency": 1.0}
    with pytest.raises(ValueError, match=r"MODEL\.SALSEG\.WEIGHTING is 'gradnorm'"):
        TaskWeighting("gradnorm")
    for options in ({"weights": (1.0,)}, {"weights": (1.0, -1.0)}, {"clamp": 0.0}):
        with pytest.raises(ValueError, match=r"two numbers >= 0"):
            TaskWeighting("fixed", **options)  # type: ignore[arg-type]
