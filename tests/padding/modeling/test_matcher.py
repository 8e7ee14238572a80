# SPDX-License-Identifier: Apache-2.0
"""Tests of the assignment: formulas against loops, obvious matches, edge cases, the error for non-finite costs."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from padding.modeling.matcher import HungarianMatcher, pairwise_bce, pairwise_dice


def quadrants(size: int = 16) -> torch.Tensor:
    """(4, size, size) bool: the four quarters of a square."""
    half = size // 2
    masks = torch.zeros(4, size, size, dtype=torch.bool)
    for i, (row, column) in enumerate(itertools.product((0, half), repeat=2)):
        masks[i, row : row + half, column : column + half] = True
    return masks


def perfect_outputs(order: list[int], num_classes: int = 4) -> dict[str, torch.Tensor]:
    """One image whose query k predicts quadrant ``order[k]`` and class ``order[k]``."""
    masks = quadrants()[order].float() * 20 - 10
    logits = torch.zeros(1, len(order), num_classes + 1)
    logits[0, torch.arange(len(order)), torch.tensor(order)] = 8.0
    return {"pred_logits": logits, "pred_masks": masks[None]}


def target(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(labels, dtype=torch.int64), "masks": quadrants()[labels]}


def test_pairwise_costs_equal_loops_over_pairs() -> None:
    logits, targets = 4 * torch.randn(5, 40), (torch.rand(3, 40) > 0.6).float()
    bce, dice = pairwise_bce(logits, targets), pairwise_dice(logits, targets)
    for q, n in itertools.product(range(5), range(3)):
        torch.testing.assert_close(bce[q, n], F.binary_cross_entropy_with_logits(logits[q], targets[n]))
        p, t = logits[q].sigmoid(), targets[n]
        torch.testing.assert_close(dice[q, n], 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))


def test_pairwise_bce_stays_finite_for_huge_logits() -> None:
    cost = pairwise_bce(torch.tensor([[300.0, -300.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(cost, torch.tensor([[0.0, 300.0]]))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (2.0, 5.0, 5.0)])
def test_each_cost_alone_finds_the_permutation(weights: tuple[float, float, float]) -> None:
    order = [2, 0, 3, 1]
    matcher = HungarianMatcher(*weights, num_points=400)
    [(queries, targets)] = matcher(perfect_outputs(order), [target([0, 1, 2, 3])])
    assert [order[q] for q in queries] == targets.tolist()
    assert queries.dtype == torch.int64


def test_more_queries_than_targets_and_the_reverse() -> None:
    matcher = HungarianMatcher(1.0, 1.0, 1.0, num_points=400)
    [(queries, targets)] = matcher(perfect_outputs([0, 1, 2, 3]), [target([3, 1])])
    assert queries.tolist() == [1, 3]
    assert targets.tolist() == [1, 0]
    [(queries, targets)] = matcher(perfect_outputs([2, 0]), [target([0, 1, 2, 3])])
    assert queries.tolist() == [0, 1]
    assert targets.tolist() == [2, 0]


def test_images_without_targets_and_without_queries() -> None:
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    outputs = {key: value.repeat(2, 1, *[1] * (value.dim() - 2)) for key, value in perfect_outputs([0, 1]).items()}
    matches = matcher(outputs, [target([]), target([1])])
    assert [len(queries) for queries, _ in matches] == [0, 1]
    no_queries = {"pred_logits": torch.zeros(1, 0, 5), "pred_masks": torch.zeros(1, 0, 4, 4)}
    [(queries, targets)] = matcher(no_queries, [target([0])])
    assert len(queries) == len(targets) == 0
    assert matcher({key: value[:0] for key, value in outputs.items()}, []) == []


def test_masks_of_another_resolution_match() -> None:
    outputs = perfect_outputs([1, 0])
    outputs["pred_masks"] = F.interpolate(outputs["pred_masks"], size=(4, 4))
    [(queries, targets)] = HungarianMatcher(0.0, 1.0, 1.0, num_points=400)(outputs, [target([0, 1])])
    assert dict(zip(queries.tolist(), targets.tolist(), strict=True)) == {0: 1, 1: 0}


def test_a_generator_fixes_the_points_and_no_gradient_flows() -> None:
    matcher = HungarianMatcher(1.0, 1.0, 1.0, num_points=3)
    outputs = {"pred_logits": torch.randn(1, 9, 5, requires_grad=True), "pred_masks": torch.randn(1, 9, 16, 16)}
    targets = [target([0, 1, 2, 3])]
    runs = [matcher(outputs, targets, generator=[torch.Generator().manual_seed(7)])[0] for _ in range(2)]
    torch.testing.assert_close(runs[0], runs[1])
    assert not runs[0][0].requires_grad


def test_costs_are_float32_under_autocast() -> None:
    outputs = {key: value.bfloat16() for key, value in perfect_outputs([2, 0, 3, 1]).items()}
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matcher._cost(
            *(outputs[key][0].float() for key in ("pred_logits", "pred_masks")), target([0]), torch.rand(1, 100, 2)
        )
        [(queries, _)] = matcher(outputs, [target([0, 1, 2, 3])])
    assert cost.dtype == torch.float32
    assert len(queries) == 4


@pytest.mark.parametrize(("key", "value"), [("pred_masks", float("nan")), ("pred_logits", float("inf"))])
def test_non_finite_cost_names_image_and_cure(key: str, value: float) -> None:
    outputs = perfect_outputs([0, 1])
    outputs = {name: tensor.repeat(2, 1, *[1] * (tensor.dim() - 2)) for name, tensor in outputs.items()}
    outputs[key][1, 0] = value
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    names = ["000001.png (id 1)", "000002.png (id 2)"]
    with pytest.raises(FloatingPointError, match=r"000002.png \(id 2\).*1 of 2 .*SOLVER.BASE_LR"):
        matcher(outputs, [target([0]), target([1])], image_names=names)
    with pytest.raises(FloatingPointError, match="number 1 of the batch"):
        matcher(outputs, [target([0]), target([1])])


def test_useless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="all three matching costs are 0"):
        HungarianMatcher(0, 0, 0, num_points=10)
    with pytest.raises(ValueError, match="num_points is 0"):
        HungarianMatcher(1, 1, 1, num_points=0)
