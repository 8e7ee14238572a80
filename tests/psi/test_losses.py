# SPDX-License-Identifier: Apache-2.0
"""Tests of PSI's losses: partial cross entropy, smoothness, and the threshold's two terms."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padding.modeling.class_balance import ClassBalance
from psi.grid import supervision_at_pixels, supervision_on_grid
from psi.label_diffusion import DiffusionOptions, DiffusionStep, ThresholdNetwork, diffuse
from psi.losses import (
    diffused_score_loss,
    scribble_recall_loss,
    segmentation_loss,
    smoothness,
    threshold_losses,
)
from psi.supervision import PixelSupervision, Supervision

VOID = 255
K = 4


def random_supervision(size: tuple[int, int] = (6, 9)) -> tuple[Tensor, PixelSupervision]:
    """Logits, some scribbles and more diffused pixels with weights in (0, 1)."""
    labels = torch.randint(0, K, (2, *size))
    drawn = torch.rand(2, *size) < 0.2
    diffused = (torch.rand(2, *size) < 0.5) & ~drawn
    weights = torch.where(drawn, 1.0, torch.rand(2, *size) * diffused)
    return 2 * torch.randn(2, K, *size), PixelSupervision(labels.masked_fill(weights == 0, VOID), weights, drawn)


def slow_mean(logits: Tensor, labels: Tensor, weights: Tensor, where: Tensor) -> float:
    """Sum of w CE / max(1, sum of w) over some pixels, one by one."""
    total, mass = 0.0, 0.0
    for image, row, column in where.nonzero().tolist():
        label = int(labels[image, row, column])
        if label == VOID:
            continue
        weight = float(weights[image, row, column])
        total -= weight * float(logits[image, :, row, column].log_softmax(0)[label])
        mass += weight
    return total / max(1.0, mass)


def scene(soft: bool = False) -> tuple[Tensor, PixelSupervision, list[DiffusionStep], Tensor, ThresholdNetwork]:
    """Leaf logits of a 32 x 40 input on the grid, what diffusion makes of them, and the network of thresholds."""
    scribbles = torch.full((2, 32, 40), VOID)
    scribbles[0, 5, 4:14], scribbles[0, 24, 20:36], scribbles[1, 16, 8:30] = 1, 3, 2
    valid = torch.ones(2, 32, 40, dtype=torch.bool)
    valid[1, 26:] = False
    start, cells = supervision_on_grid(scribbles, valid, num_classes=K, stride=4)
    logits = (2 * torch.randn(2, K, 8, 10)).requires_grad_()
    network = ThresholdNetwork()
    nn.init.normal_(network.layers[-1].weight, std=0.3)
    options = DiffusionOptions(radii=(2, 3), target="soft" if soft else "hard", gate_argmax=not soft)
    steps = diffuse(logits.softmax(dim=1), start, cells, threshold_net=network, options=options)
    final = steps[-1].supervision
    pixels = supervision_at_pixels(final, scribbles, valid, stride=4, num_classes=K, soft=soft)
    return logits, pixels, steps, cells, network


def test_partial_cross_entropy_is_the_mean_over_labeled_pixels() -> None:
    logits, supervision = random_supervision()
    labels, weights = supervision.labels, supervision.weights
    drawn = PixelSupervision.of_scribbles(labels, num_classes=K)
    torch.testing.assert_close(segmentation_loss(logits, drawn), F.cross_entropy(logits, labels, ignore_index=VOID))
    weighted = slow_mean(logits, labels, weights, labels != VOID)
    found = segmentation_loss(logits, PixelSupervision(labels, weights, drawn.scribbles), region_norm="joint")
    assert found.item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("norm", ["separate", "joint"])
@pytest.mark.parametrize("soft", [True, False])
def test_crop_without_a_label_costs_nothing_and_is_finite(norm: str, soft: bool) -> None:
    logits = (50 * torch.randn(2, K, 5, 5)).requires_grad_()
    empty = PixelSupervision.of_scribbles(torch.full((2, 5, 5), VOID), num_classes=K)
    if soft:
        classes, targets = torch.full((2, 1), -1), torch.zeros(2, 1, 5, 5)
        empty = PixelSupervision(empty.labels, empty.weights, empty.scribbles, classes, targets)
    loss = segmentation_loss(logits, empty, region_norm=norm)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_without_diffusion_the_loss_is_partial_cross_entropy() -> None:
    logits, supervision = random_supervision()
    alone = PixelSupervision.of_scribbles(supervision.labels, num_classes=K)
    expected = F.cross_entropy(logits, supervision.labels, ignore_index=VOID)
    for norm in ("separate", "joint"):
        torch.testing.assert_close(segmentation_loss(logits, alone, region_norm=norm), expected)


@pytest.mark.parametrize("factor", [1.0, 0.25, 0.0])
def test_both_norms_equal_sums_over_pixels(factor: float) -> None:
    logits, supervision = random_supervision()
    labels, weights, drawn = supervision.labels, supervision.weights, supervision.scribbles
    separate = slow_mean(logits, labels, weights, drawn) + factor * slow_mean(logits, labels, weights, ~drawn)
    found = segmentation_loss(logits, supervision, region_norm="separate", diffused_weight=factor)
    assert found.item() == pytest.approx(separate, rel=1e-5)
    scaled = torch.where(drawn, weights, factor * weights)
    joint = slow_mean(logits, labels, scaled, torch.ones_like(drawn))
    found = segmentation_loss(logits, supervision, region_norm="joint", diffused_weight=factor)
    assert found.item() == pytest.approx(joint, rel=1e-5)
    with pytest.raises(ValueError, match="REGION_NORM"):
        segmentation_loss(logits, supervision, region_norm="other")


def test_soft_targets_of_one_class_equal_hard_labels() -> None:
    logits, hard = random_supervision()
    classes = torch.arange(K).expand(2, K)
    one_hot = (hard.labels[:, None] == classes[:, :, None, None]) * (hard.weights * ~hard.scribbles)[:, None]
    soft = PixelSupervision(hard.labels, hard.weights, hard.scribbles, classes, one_hot)
    for norm in ("separate", "joint"):
        torch.testing.assert_close(
            segmentation_loss(logits, soft, region_norm=norm, diffused_weight=0.5),
            segmentation_loss(logits, hard, region_norm=norm, diffused_weight=0.5),
        )


def test_soft_targets_add_up_over_classes_without_renormalizing() -> None:
    """One diffused pixel with targets 0.8 and 0.6: costs of both, divided by max(1, 0.8)."""
    logits = torch.randn(1, 3, 1, 1)
    no_scribble = torch.zeros(1, 1, 1, dtype=torch.bool)
    targets = torch.tensor([0.8, 0.6]).view(1, 2, 1, 1)
    pixels = PixelSupervision(
        torch.tensor([[[0]]]), torch.tensor([[[0.8]]]), no_scribble, torch.tensor([[0, 2]]), targets
    )
    p = logits.flatten().log_softmax(0)
    torch.testing.assert_close(segmentation_loss(logits, pixels), -(0.8 * p[0] + 0.6 * p[2]))


@pytest.mark.parametrize("soft", [True, False])
def test_network_and_thresholds_learn_apart(soft: bool) -> None:
    """L_seg moves the network alone and L_sld the thresholds alone, in one graph."""
    logits, pixels, steps, cells, network = scene(soft)
    full = F.interpolate(logits, size=(32, 40), mode="bilinear")
    parameters = list(network.parameters())
    seg = segmentation_loss(full, pixels) + smoothness(full, torch.ones(2, 32, 40, dtype=torch.bool))
    grads = torch.autograd.grad(seg, [logits, *parameters], retain_graph=True, allow_unused=True)
    assert grads[0] is not None
    assert grads[0].abs().sum() > 0
    assert all(grad is None for grad in grads[1:])
    sld = sum(threshold_losses(steps, cells))
    grads = torch.autograd.grad(sld, [logits, *parameters], allow_unused=True)
    assert grads[0] is None
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads[1:])


def slow_smoothness(prediction: Tensor, valid: Tensor, reduction: str) -> float:
    """Mean over all ordered pairs of valid neighbors, eight for each pixel."""
    images, _, height, width = prediction.shape
    total, pairs = 0.0, 0
    for image, row, column in itertools.product(range(images), range(height), range(width)):
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            other = (row + down, column + right)
            if (down, right) == (0, 0) or not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            if not (valid[image, row, column] and valid[image, other[0], other[1]]):
                continue
            distance = (prediction[image, :, row, column] - prediction[image, :, other[0], other[1]]).abs()
            total += float(distance.mean() if reduction == "mean" else distance.sum())
            pairs += 1
    return total / max(pairs, 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("on", ["probability", "argmax"])
def test_smoothness_equals_the_mean_over_pairs_of_neighbors(on: str, reduction: str) -> None:
    logits = 2 * torch.randn(2, 3, 5, 6)
    valid = torch.rand(2, 5, 6) < 0.8
    prediction = logits.softmax(dim=1)
    if on == "argmax":
        prediction = F.one_hot(prediction.argmax(dim=1), 3).permute(0, 3, 1, 2).float()
    expected = slow_smoothness(prediction, valid, reduction)
    assert smoothness(logits, valid, on=on, reduction=reduction).item() == pytest.approx(expected, rel=1e-5)


def half_plane(height: int, width: int, channels: int = 2) -> Tensor:
    """Logits that are one-hot after the softmax: class 0 on the left, class 1 on the right."""
    logits = torch.full((1, channels, height, width), -200.0)
    logits[:, 0, :, : width // 2] = 200.0
    logits[:, 1, :, width // 2 :] = 200.0
    return logits


def test_smoothness_of_a_constant_map_is_zero() -> None:
    logits = torch.randn(2, K, 1, 1).expand(2, K, 7, 8).contiguous()
    assert smoothness(logits, torch.ones(2, 7, 8, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize(("height", "width"), [(8, 10), (5, 4), (1, 6)])
def test_smoothness_of_a_half_plane_has_its_analytic_value(height: int, width: int) -> None:
    # Across the border run H horizontal and 2 (H - 1) diagonal pairs, each 2 apart in the sum of two channels.
    pairs = height * (width - 1) + (height - 1) * width + 2 * (height - 1) * (width - 1)
    expected = 2 * (height + 2 * (height - 1)) / pairs
    valid = torch.ones(1, height, width, dtype=torch.bool)
    for on in ("probability", "argmax"):
        logits = half_plane(height, width)
        assert smoothness(logits, valid, on=on, reduction="sum").item() == pytest.approx(expected)
        assert smoothness(logits, valid, on=on).item() == pytest.approx(expected / 2)
    assert smoothness(half_plane(height, width, 20), valid).item() == pytest.approx(expected / 20)


def test_smoothness_does_not_see_padding() -> None:
    logits = torch.randn(1, K, 9, 9)
    valid = torch.zeros(1, 9, 9, dtype=torch.bool)
    valid[:, :6, :5] = True
    inside = smoothness(logits[..., :6, :5], valid[:, :6, :5])
    torch.testing.assert_close(smoothness(logits, valid), inside)
    assert smoothness(logits, torch.zeros_like(valid)).item() == 0.0


def test_smoothness_has_the_gradient_of_its_formula() -> None:
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float32)
    valid = torch.ones(1, 4, 5, dtype=torch.bool)
    valid[0, 0, 0] = False
    own, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    smoothness(own, valid).backward()
    p = plain.softmax(dim=1)
    shifts = (
        (slice(0, 4), slice(0, 4), slice(0, 4), slice(1, 5)),
        (slice(0, 3), slice(0, 5), slice(1, 4), slice(0, 5)),
    )
    shifts += (
        (slice(0, 3), slice(0, 4), slice(1, 4), slice(1, 5)),
        (slice(0, 3), slice(1, 5), slice(1, 4), slice(0, 4)),
    )
    total, pairs = torch.zeros(()), 0
    for y0, x0, y1, x1 in shifts:
        both = valid[:, y0, x0] & valid[:, y1, x1]
        total = total + ((p[..., y0, x0] - p[..., y1, x1]).abs().mean(dim=1) * both).sum()
        pairs += int(both.sum())
    (total / pairs).backward()
    torch.testing.assert_close(own.grad, plain.grad)
    # the paper's form is inert
    inert = logits.clone().requires_grad_()
    smoothness(inert, valid, on="argmax").backward()
    assert inert.grad is not None
    assert not inert.grad.any()


@pytest.mark.parametrize(("key", "choice"), [("on", "SMOOTH_ON"), ("reduction", "SMOOTH_REDUCTION")])
def test_unknown_kinds_of_smoothness_are_refused(key: str, choice: str) -> None:
    with pytest.raises(ValueError, match=choice):
        smoothness(torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool), **{key: "x"})


def test_recall_is_the_mean_over_scribbles() -> None:
    b = torch.tensor([0.5, 0.9, 0.6, 0.7]).view(1, 2, 1, 2)
    own = torch.tensor([True, False, False, True]).view(1, 2, 1, 2)
    assert scribble_recall_loss(b, own).item() == pytest.approx(-(math.log(0.5) + math.log(0.7)) / 2)
    assert scribble_recall_loss(b, torch.zeros_like(own)).item() == 0.0
    # "rescaled" is 0 below the threshold: wrong, not infinite
    assert scribble_recall_loss(torch.zeros_like(b), own).isfinite()


def test_diffused_scores_are_costs_of_the_selected_classes() -> None:
    b, m = torch.tensor([0.9, 0.5, 0.7, 0.8]), torch.tensor([0.6, 0.3, 0.4, 0.7])
    selected = torch.tensor([True, False, True, True])
    b, m, selected = (x.view(1, 2, 1, 2) for x in (b, m, selected))
    region = selected.any(dim=1)
    expected = -(0.9 * math.log(0.6) + 0.7 * math.log(0.4) + 0.8 * math.log(0.7)) / 2
    assert diffused_score_loss(b, m, selected, region).item() == pytest.approx(expected)
    assert diffused_score_loss(b, m, selected, torch.zeros_like(region)).item() == 0.0


def test_cells_at_the_floor_carry_no_loss() -> None:
    """Scores of cells that no class selects may be anything below the threshold."""
    _, _, steps, cells, _ = scene()
    recall, diffused = threshold_losses(steps, cells)
    unselected = ~steps[0].selected.any(dim=1, keepdim=True)
    assert (steps[0].window & unselected).any()
    other = [step._replace(scores=step.scores.where(step.selected, 1e-3 * torch.rand(()))) for step in steps]
    changed = threshold_losses(other, cells)
    torch.testing.assert_close(changed, (recall, diffused))


def test_first_term_asks_for_the_scribbles_in_every_step() -> None:
    _, _, steps, cells, _ = scene()
    assert (steps[1].before.region & ~steps[1].before.scribbles).any()  # diffused labels are there and do not count
    for step in steps:
        costs = [
            -step.binarized[image, slot, row, column].log()
            for image, row, column in step.before.scribbles.nonzero().tolist()
            for slot in range(step.scores.shape[1])
            if step.before.classes[image, slot] == step.before.labels[image, row, column]
        ]
        torch.testing.assert_close(threshold_losses([step], cells)[0], torch.stack(costs).mean())


def test_scores_get_no_gradient_from_the_second_term() -> None:
    binarized, scores = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    everywhere = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    diffused_score_loss(binarized, scores, everywhere, everywhere[:, 0]).backward()
    assert scores.grad is None
    assert binarized.grad is not None


def test_threshold_losses_are_means_over_steps() -> None:
    _, _, steps, cells, _ = scene()
    for region in ("selected", "all"):
        single = [threshold_losses([step], cells, region=region) for step in steps]
        both = threshold_losses(steps, cells, region=region)
        for index in range(2):
            torch.testing.assert_close(both[index], (single[0][index] + single[1][index]) / 2)
    assert threshold_losses(steps, cells, region="all")[1] < threshold_losses(steps, cells)[1]
    assert both[0] <= math.log(2)
    with pytest.raises(ValueError, match="STEPS"):
        threshold_losses([], cells)
    with pytest.raises(ValueError, match="DIFFUSION_REGION"):
        threshold_losses(steps, cells, region="x")


def shifted_threshold(shift: float, binarizer: str = "relu_sigmoid") -> tuple[Tensor, Tensor, Tensor]:
    """Both terms and a shared offset of all thresholds, to see which way each pulls."""

    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(shift))

        def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
            return self.value.expand_as(mean)

    torch.manual_seed(3)
    scores = F.interpolate(2 * torch.randn(2, K, 5, 5), size=(20, 20), mode="bilinear").softmax(dim=1)
    labels = torch.full((2, 20, 20), VOID)
    labels[0, 4, 3:9], labels[0, 15, 10:16], labels[1, 9, 9:15] = 0, 1, 2
    valid = torch.ones(2, 20, 20, dtype=torch.bool)
    offset = Offset()
    options = DiffusionOptions(radii=(3,), binarizer=binarizer)
    start = Supervision.of_labels(labels, num_classes=K)
    steps = diffuse(scores, start, valid, threshold_net=offset, options=options)
    recall, diffused = threshold_losses(steps, valid)
    return recall, diffused, offset.value


@pytest.mark.parametrize("binarizer", ["relu_sigmoid", "rescaled", "sigmoid"])
def test_terms_pull_thresholds_in_opposite_directions(binarizer: str) -> None:
    recall, diffused, offset = shifted_threshold(0.0, binarizer)
    (down,) = torch.autograd.grad(recall, offset, retain_graph=True)
    (up,) = torch.autograd.grad(diffused, offset)
    assert down > 0  # descent lowers gamma, so that scribbles are selected
    assert up < 0  # descent raises gamma, so that low scores are not


def test_losses_stay_in_float32_under_autocast() -> None:
    logits, supervision = random_supervision((8, 8))
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = logits.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            found = (segmentation_loss(rounded, supervision), smoothness(rounded, valid))
        expected = (segmentation_loss(rounded.float(), supervision), smoothness(rounded.float(), valid))
        assert all(loss.dtype == torch.float32 for loss in found)
        torch.testing.assert_close(found, expected)
        sum(found).backward()
        assert rounded.grad is not None
        assert rounded.grad.isfinite().all()


def test_class_weights_of_scribbles_and_of_what_grew() -> None:
    """Means of both regions by torch, each divided by the weights of its own pixels."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    scribbles = torch.zeros(2, 6, 6, dtype=torch.bool)
    scribbles[:, :2] = True
    supervision = PixelSupervision(labels=labels, weights=torch.ones(2, 6, 6), scribbles=scribbles)
    balance = ClassBalance(3)
    torch.testing.assert_close(
        segmentation_loss(logits, supervision, balance=balance), segmentation_loss(logits, supervision)
    )
    weights = torch.tensor([0.5, 1.0, 3.0])
    balance.set_weights(weights)
    parts = [
        F.cross_entropy(logits, labels.masked_fill(~region, 255), weight=weights, ignore_index=255)
        for region in (scribbles, ~scribbles)
    ]
    loss = segmentation_loss(logits, supervision, diffused_weight=0.3, balance=balance)
    torch.testing.assert_close(loss, parts[0] + 0.3 * parts[1])
