# SPDX-License-Identifier: Apache-2.0
"""Losses against loops over pixels, void and soft labels, empty batches, sums over passes."""

import math

import pytest
import torch

from salseg.losses import LossSum, join, saliency_loss, segmentation_loss
from salseg.task_weighting import TASKS

CPU = torch.device("cpu")


def value(part: LossSum) -> float:
    return (part.total / part.weight).item()


def some_logits(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, 5, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_cross_entropy_is_the_weighted_mean_over_labeled_pixels() -> None:
    logits = some_logits(3)
    labels = torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    labels[:, :2] = 255
    weights = torch.tensor([1.0, 7.0, 50.5])
    total = normalizer = 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        c = int(labels[b, y, x])
        total -= weights[c].item() * logits[b, :, y, x].log_softmax(0)[c].item()
        normalizer += weights[c].item()
    found = segmentation_loss(logits, labels, weights)
    assert found.weight.item() == pytest.approx(normalizer)
    assert value(found) == pytest.approx(total / normalizer, rel=1e-5)
    # Normalized by the weights, the scale of the loss is that of the plain one.
    assert value(segmentation_loss(logits, labels, weights * 20)) == pytest.approx(value(found), rel=1e-5)
    plain = segmentation_loss(logits, labels)
    assert value(plain) == pytest.approx(value(segmentation_loss(logits, labels, torch.ones(3))), rel=1e-6)


def test_saliency_is_the_two_class_cross_entropy_of_known_pixels() -> None:
    logits = some_logits(1)
    target = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(1))
    known = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(2)) > 0.3
    expected = []
    for b, y, x in known.nonzero().tolist():
        p, t = torch.sigmoid(logits[b, 0, y, x]).item(), target[b, 0, y, x].item()
        expected.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    found = saliency_loss(logits, target, known)
    assert found.weight.item() == len(expected)
    assert value(found) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    found.total.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 0] != 0, known)


def test_without_a_known_pixel_loss_and_gradient_are_zero() -> None:
    logits, maps = some_logits(3), some_logits(1)
    parts = {
        "seg": [segmentation_loss(logits, torch.full((2, 5, 6), 255), torch.tensor([1.0, 2.0, 3.0]))],
        "saliency": [saliency_loss(maps, torch.ones(2, 1, 5, 6), torch.zeros(2, 5, 6, dtype=torch.bool))],
    }
    joined = join(parts, TASKS, CPU)
    for task in TASKS:
        assert joined[task].mean.item() == 0
        assert joined[task].present.item() == 0
        assert joined[task].share.item() == 0
    sum(loss.mean for loss in joined.values()).backward()
    for tensor in (logits, maps):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_parts_of_a_batch_join_to_the_whole() -> None:
    logits, weights = some_logits(3), torch.tensor([1.0, 7.0, 50.5])
    labels = torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    labels[1, :4] = 255  # the images' means differ in weight
    whole = segmentation_loss(logits, labels, weights)
    parts = [segmentation_loss(logits[i : i + 1], labels[i : i + 1], weights) for i in range(2)]
    joined = join({"seg": parts}, TASKS, CPU)
    assert set(joined) == {"seg"}
    assert joined["seg"].mean.item() == pytest.approx(value(whole), rel=1e-6)
    assert joined["seg"].present.item() == 1
    assert joined["seg"].share.item() == 1


def test_share_of_a_task_is_its_pixels_over_their_mean_number() -> None:
    """Whatever the number of passes; a class of weight 3 counts three times, and who is absent not at all."""
    three, one = torch.tensor(3.0), torch.tensor(1.0)
    parts = {"seg": [LossSum(one, three * 20), LossSum(one, one * 30)], "saliency": [LossSum(one, one * 10)]}
    joined = join(parts, TASKS, CPU)
    assert {task: loss.share.item() for task, loss in joined.items()} == pytest.approx({"seg": 1.8, "saliency": 0.2})
    alone = join({"seg": parts["seg"], "saliency": [LossSum(one * 0, one * 0)]}, TASKS, CPU)
    assert {task: loss.share.item() for task, loss in alone.items()} == {"seg": 1.0, "saliency": 0.0}
