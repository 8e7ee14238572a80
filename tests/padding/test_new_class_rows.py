# SPDX-License-Identifier: Apache-2.0
"""Fitting rows of new classes: the weighted loss, fixed old rows, balance of false alarms and misses."""

import math

import pytest
import torch
from torch.nn import functional as F

from padding.new_class_rows import (
    MAX_SHIFT,
    Rows,
    WeightedFeatures,
    balance,
    balancing_shift,
    fit_added_rows,
    largest_logit_change,
    refit_all_rows,
    score_group,
    with_added_rows,
)

K, A, D = 4, 2, 8
NO_OBJECT = K + A


def classifier() -> Rows:
    return Rows(torch.randn(K + 1, D), torch.randn(K + 1))


def labelled(count: int = 120) -> WeightedFeatures:
    labels = torch.arange(count) % (K + A + 1)
    centres = 2 * torch.randn(K + A + 1, D)
    return WeightedFeatures(centres[labels] + torch.randn(count, D), labels, torch.rand(count) + 0.1)


def loss_of(rows: Rows, data: WeightedFeatures, decayed: Rows, weight_decay: float) -> torch.Tensor:
    """The objective in its plainest form."""
    losses = F.cross_entropy(rows.logits(data.features), data.labels, reduction="none")
    decay = 0.5 * weight_decay * (decayed.weight.square().sum() + decayed.bias.square().sum())
    return (losses * data.weights).sum() / data.weights.sum() + decay


def test_added_rows_stand_before_no_object() -> None:
    old, added = classifier(), Rows(torch.ones(A, D), torch.ones(A))
    wide = with_added_rows(old, added)
    assert torch.equal(wide.weight[:K], old.weight[:K])
    assert torch.equal(wide.weight[K:-1], added.weight)
    assert torch.equal(wide.weight[-1], old.weight[-1])
    assert torch.equal(wide.bias, torch.cat([old.bias[:K], added.bias, old.bias[-1:]]))


def test_fitted_rows_are_a_minimum_of_the_weighted_loss_over_all_classes() -> None:
    old, data = classifier(), labelled()
    added = fit_added_rows(old, data, A, weight_decay=0.01, iterations=100)
    leaf = Rows(*(parameter.clone().requires_grad_() for parameter in added))
    loss_of(with_added_rows(old, leaf), data, leaf, 0.01).backward()
    assert leaf.weight.grad is not None
    assert leaf.weight.grad.abs().max() < 1e-3
    assert leaf.bias.grad is not None
    assert leaf.bias.grad.abs().max() < 1e-3
    start = Rows(torch.zeros(A, D), torch.zeros(A))
    best = loss_of(with_added_rows(old, added), data, added, 0.01)
    assert best < 0.9 * loss_of(with_added_rows(old, start), data, start, 0.01)


def test_refitting_all_rows_lowers_the_loss_further() -> None:
    old, data = classifier(), labelled()
    added = fit_added_rows(old, data, A, weight_decay=0.01, iterations=50)
    start = with_added_rows(old, added)
    final = refit_all_rows(start, data, weight_decay=0.01, iterations=50)
    assert loss_of(final, data, final, 0.01) < loss_of(start, data, start, 0.01) - 0.1
    assert torch.equal(start.weight[:K], old.weight[:K])  # its argument is left alone


GROUP, RIVALS = torch.tensor([K, K + 1]), torch.tensor([0, 1, 3, NO_OBJECT])  # class 2 is another unseen one


def fitted() -> tuple[Rows, WeightedFeatures, WeightedFeatures]:
    """A classifier that knows the group, real features of the rivals and features of the group."""
    data = labelled(210)
    rows = refit_all_rows(
        Rows(torch.zeros(K + A + 1, D), torch.zeros(K + A + 1)), data, weight_decay=0.01, iterations=20
    )
    of_group, of_rivals = torch.isin(data.labels, GROUP), torch.isin(data.labels, RIVALS)
    return rows, WeightedFeatures(*(x[of_rivals] for x in data)), WeightedFeatures(*(x[of_group] for x in data))


def shifted_by(rows: Rows, shift: float) -> Rows:
    bias = rows.bias.clone()
    bias[GROUP] += shift
    return Rows(rows.weight, bias)


def test_balance_is_the_mean_probability_of_either_mistake() -> None:
    rows, real, own = fitted()
    got = balance(score_group(rows, GROUP, RIVALS, real, own))
    columns = torch.cat([GROUP, RIVALS])
    pairs = zip(real.features, real.weights, strict=True)
    taken = [rows.logits(x[None])[0, columns].softmax(0)[:A].mean() * w for x, w in pairs]
    lost = [rows.logits(x[None])[0, columns].softmax(0)[A:].sum() for x in own.features]
    assert got.false_alarm == pytest.approx(float(sum(taken) / real.weights.sum()), rel=1e-4)
    assert got.miss == pytest.approx(float(sum(lost) / len(lost)), rel=1e-4)
    assert got.log_ratio == pytest.approx(math.log(got.false_alarm) - math.log(got.miss), abs=1e-5)


@pytest.mark.parametrize("target", [-3.0, 0.0, 1.5])
def test_shift_reaches_the_wanted_ratio(target: float) -> None:
    rows, real, own = fitted()
    shift = balancing_shift(score_group(rows, GROUP, RIVALS, real, own), target)
    assert abs(shift) < MAX_SHIFT
    shifted = balance(score_group(shifted_by(rows, shift), GROUP, RIVALS, real, own))
    assert shifted.log_ratio == pytest.approx(target, abs=1e-3)


def test_shift_undoes_a_bias_that_swamps_or_is_swamped() -> None:
    """Whatever constant is added to the group before, the balanced classifier is the same."""
    rows, real, own = fitted()
    totals = [
        constant + balancing_shift(score_group(shifted_by(rows, constant), GROUP, RIVALS, real, own), 0.0)
        for constant in (-2.5, 0.0, 2.5)
    ]
    assert totals == pytest.approx([totals[0]] * 3, abs=1e-3)


def test_hopeless_groups_get_a_bounded_shift() -> None:
    rows, real, own = fitted()
    scores = score_group(shifted_by(rows, -50.0), GROUP, RIVALS, real, own)
    assert balancing_shift(scores, 0.0) == pytest.approx(MAX_SHIFT, abs=1e-6)


def test_change_of_logits_is_exact() -> None:
    before, features = classifier(), torch.randn(50, D)
    assert largest_logit_change(before, before, features) == 0.0
    weight = before.weight.clone()
    weight[2] += 0.25
    after = Rows(weight, before.bias)
    expected = (after.logits(features) - before.logits(features)).abs().max()
    assert largest_logit_change(before, after, features) == pytest.approx(float(expected), rel=1e-4)
