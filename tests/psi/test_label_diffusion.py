# SPDX-License-Identifier: Apache-2.0
"""Tests of semantic label diffusion: formulas against loops over classes and pixels, and what no step may break."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from torch import Tensor, nn

from psi import add_psi_config
from psi.label_diffusion import (
    DiffusionOptions,
    DiffusionStep,
    ThresholdNetwork,
    binarize,
    diffuse,
    diffusion_step,
    dilate,
    region_moments,
    strength_above,
    window_radii,
)
from psi.losses import threshold_losses
from psi.supervision import Supervision

VOID = 255
K = 5


def random_case(seed: int, size: tuple[int, int] = (17, 22)) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth scores of three images, some scribbled cells of few classes, and padding at the right and below."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, K, 6, 7, generator=generator)
    scores = F.interpolate(2.5 * noise, size=size, mode="bilinear").softmax(dim=1)
    labels = torch.full((3, *size), VOID)
    for image, classes in enumerate(((0, 3), (1, 2, 4), (2,))):
        for label in classes:
            row, column = (int(torch.randint(0, n - 4, (), generator=generator)) for n in size)
            labels[image, row, column : column + 4] = label
    valid = torch.ones(3, *size, dtype=torch.bool)
    valid[0, :, -5:] = False
    valid[1, -3:] = False
    return scores, labels.masked_fill(~valid, VOID), valid


def random_network(seed: int = 1) -> ThresholdNetwork:
    """A threshold network whose output is not zero."""
    torch.manual_seed(seed)
    network = ThresholdNetwork()
    nn.init.normal_(network.layers[-1].weight, std=0.7)
    return network


def run(seed: int, network: nn.Module | None = None, **changes: object) -> tuple[list[DiffusionStep], Tensor, Tensor]:
    scores, labels, valid = random_case(seed)
    options = replace(DiffusionOptions(radii=(2, 4, 6)), **changes)  # type: ignore[arg-type]
    start = Supervision.of_labels(labels, num_classes=K)
    return diffuse(scores, start, valid, threshold_net=network or random_network(), options=options), scores, valid


def slow_dilation(mask: Tensor, radius: int) -> Tensor:
    """Every cell with a cell of the mask at a Chebyshev distance of at most the radius."""
    out = torch.zeros_like(mask)
    for j, i in mask.nonzero().tolist():
        out[max(0, j - radius) : j + radius + 1, max(0, i - radius) : i + radius + 1] = True
    return out


@torch.no_grad()
def slow_step(  # one image; labels and weights as dense maps, loops over all classes and pixels
    scores: Tensor, labels: Tensor, weights: Tensor, drawn: Tensor, valid: Tensor, radius: int, network: nn.Module
) -> tuple[Tensor, Tensor]:
    new_labels, new_weights = labels.clone(), weights.clone()
    strengths: dict[int, Tensor] = {}
    for label in range(len(scores)):
        own = labels == label
        if not own.any():
            continue
        window = slow_dilation(own, radius) & valid
        values = scores[label][window]
        mean, variance = values.mean(), values.var(unbiased=False)
        threshold = (mean + network(mean, variance) * (variance + 1e-6).sqrt()).clamp(0, 0.999)
        b = 1 / (1 + torch.exp(-20 * (scores[label] - threshold).clamp_min(0)))
        strengths[label] = torch.where(window, 2 * b - 1, 0.0)
    for y, x in itertools.product(*map(range, labels.shape)):
        if drawn[y, x]:
            continue
        if labels[y, x] != VOID:
            stronger = strengths[int(labels[y, x])][y, x]
            new_weights[y, x] = torch.maximum(weights[y, x], stronger)
            continue
        best = int(scores[:, y, x].argmax())
        if best in strengths and strengths[best][y, x] > 0:
            new_labels[y, x], new_weights[y, x] = best, strengths[best][y, x]
    return new_labels, new_weights


@pytest.mark.parametrize("radius", [1, 2, 5, 30])
def test_dilation_equals_chebyshev_distance(radius: int) -> None:
    masks = torch.rand(2, 3, 9, 13) < 0.05
    masks[1, 2] = False
    grown = dilate(masks, radius)
    for image, slot in itertools.product(range(2), range(3)):
        assert torch.equal(grown[image, slot], slow_dilation(masks[image, slot], radius))


def test_moments_equal_those_of_the_masked_values() -> None:
    scores, masks = torch.rand(2, 3, 6, 7), torch.rand(2, 3, 6, 7) < 0.4
    masks[0, 1] = False
    mean, variance = region_moments(scores, masks)
    for image, slot in itertools.product(range(2), range(3)):
        values = scores[image, slot][masks[image, slot]]
        expected = (values.mean(), values.var(unbiased=False)) if len(values) else (torch.zeros(()), torch.zeros(()))
        torch.testing.assert_close((mean[image, slot], variance[image, slot]), expected)


@pytest.mark.parametrize(
    ("margin", "value"),  # 1 / (1 + exp(-20 margin)), by hand
    [(0.01, 0.550), (0.02, 0.599), (0.05, 0.731), (0.1, 0.881), (0.2, 0.982), (0.0, 0.5), (-0.3, 0.5)],
)
def test_soft_binarization_has_its_known_values(margin: float, value: float) -> None:
    margins = torch.tensor(margin, dtype=torch.float64)
    assert binarize(margins, 20.0).item() == pytest.approx(value, abs=5e-4)
    assert binarize(margins, 20.0, "rescaled").item() == pytest.approx(2 * value - 1, abs=1e-3)
    assert strength_above(margins, 20.0).item() == pytest.approx(2 * value - 1, abs=1e-3)


def test_soft_binarization_lies_between_one_half_and_one() -> None:
    margins = torch.linspace(-1, 1, 501, dtype=torch.float64)
    values = binarize(margins, 20.0)
    assert ((values >= 0.5) & (values < 1)).all()
    assert ((values == 0.5) == (margins <= 0)).all()
    assert (strength_above(margins, 20.0) > 0).equal(margins > 0)
    torch.testing.assert_close(binarize(margins, 20.0, "sigmoid"), torch.sigmoid(20 * margins))


def test_a_margin_of_one_float_is_selected() -> None:
    margin = torch.tensor(6e-8)  # 2 B - 1 in float32 would be 0
    assert strength_above(margin, 20.0) > 0


def test_threshold_is_the_mean_at_first() -> None:
    steps, _, _ = run(0, ThresholdNetwork())
    for step in steps:
        mean, _ = region_moments(step.scores, step.window)
        torch.testing.assert_close(step.threshold, mean)


def test_threshold_network_is_bounded() -> None:
    network = random_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(50.0)
    output = network(torch.rand(200), 0.25 * torch.rand(200))
    assert output.abs().max() <= 3.0
    assert output.abs().max() > 2.9  # the bound is reached, not merely never tested
    with pytest.raises(ValueError, match="BOUND"):
        ThresholdNetwork(bound=0.0)


@pytest.mark.parametrize("seed", range(4))
def test_steps_equal_loops_over_classes_and_pixels(seed: int) -> None:
    network = random_network(seed)
    steps, scores, valid = run(seed, network)
    for image in range(3):
        labels, weights = steps[0].before.labels[image], steps[0].before.weights[image]
        drawn = labels != VOID
        for step, radius in zip(steps, (2, 4, 6), strict=True):
            labels, weights = slow_step(scores[image], labels, weights, drawn, valid[image], radius, network)
            assert torch.equal(step.supervision.labels[image], labels)
            torch.testing.assert_close(step.supervision.weights[image], weights)
    assert (steps[-1].supervision.region.sum() > 1.5 * steps[0].before.region.sum()).item()


VARIANTS = [
    {},
    {"scope": "global"},
    {"gate_argmax": False},
    {"keep_diffused": False, "gate_argmax": False},
    {"target": "soft", "gate_argmax": False},
    {"target": "soft", "gate_argmax": False, "keep_diffused": False},
    {"binarizer": "sigmoid"},
    {"binarizer": "rescaled"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_scribbles_never_change_and_regions_only_grow(changes: dict[str, object]) -> None:
    for seed in range(3):
        steps, _, valid = run(seed, **changes)
        start = steps[0].before
        grown = 0
        for before, after in itertools.pairwise([start, *(step.supervision for step in steps)]):
            drawn = start.scribbles[:, None].expand_as(start.targets)
            assert torch.equal(after.targets[drawn], start.targets[drawn])
            assert torch.equal(after.labels[start.scribbles], start.labels[start.scribbles])
            assert not (before.region & ~after.region).any()
            assert not (after.region & ~valid).any()
            assert after.targets.min() >= 0
            assert after.targets.max() <= 1
            grown += int((after.region & ~before.region).sum())
        assert grown > 0


def test_diffused_labels_stay_unless_a_stronger_class_may_replace_them() -> None:
    replaced = 0
    for seed in range(6):
        for keep in (True, False):
            steps, _, _ = run(seed, keep_diffused=keep, gate_argmax=False)
            for step in steps[1:]:
                before, after = step.before, step.supervision
                changed = before.region & (before.labels != after.labels)
                assert not (keep and changed.any())
                assert (after.weights[before.region] >= before.weights[before.region]).all()
                replaced += int(changed.sum())
    assert replaced > 0


def test_hard_targets_have_one_class_and_soft_ones_several() -> None:
    several = 0
    for seed in range(3):
        for target in ("hard", "soft"):
            final = run(seed, target=target, gate_argmax=False)[0][-1].supervision
            classes = (final.targets > 0).sum(dim=1)
            assert not (target == "hard" and (classes > 1).any())
            several += int((classes > 1).sum())
    assert several > 0


def test_padding_never_enters_a_window() -> None:
    for scope in ("window", "global"):
        steps, scores, valid = run(1, scope=scope)
        assert not any((step.window & ~valid[:, None]).any() for step in steps)
        assert not any((step.selected & ~valid[:, None]).any() for step in steps)
        _, labels, _ = random_case(1)
        other = torch.where(valid[:, None], scores, torch.rand_like(scores))
        again = diffuse(
            other,
            Supervision.of_labels(labels, num_classes=K),
            valid,
            threshold_net=random_network(),
            options=DiffusionOptions(radii=(2, 4, 6), scope=scope),
        )
        assert torch.equal(again[-1].supervision.targets, steps[-1].supervision.targets)


def test_global_scope_selects_outside_the_window() -> None:
    steps, _, _ = run(2, scope="global")
    assert (steps[0].selected & ~steps[0].window).any()
    assert not (run(2)[0][0].selected & ~run(2)[0][0].window).any()


def test_gate_lets_in_only_the_first_class_but_leaves_the_selection_alone() -> None:
    gated, scores, _ = run(3)
    free, _, _ = run(3, gate_argmax=False)
    entered = gated[0].supervision.region & ~gated[0].before.region
    assert (gated[0].supervision.labels == scores.argmax(dim=1))[entered].all()
    entered = free[0].supervision.region & ~free[0].before.region
    assert (free[0].supervision.labels != scores.argmax(dim=1))[entered].any()
    assert torch.equal(gated[0].selected, free[0].selected)
    assert torch.equal(gated[0].binarized, free[0].binarized)


def test_gate_guards_the_way_in_and_not_the_weight() -> None:
    """A label of an earlier round may get a larger weight though the network now ranks its class second."""
    scores = torch.tensor([0.1, 0.45, 0.1]).view(1, 1, 1, 3)
    scores = torch.cat([scores, 1 - scores], dim=1)
    labels = torch.tensor([[[0, 0, VOID]]])
    start = Supervision.of_labels(
        labels,
        num_classes=2,
        weights=torch.tensor([[[1.0, 0.1, 0.0]]]),
        scribbles=torch.tensor([[[True, False, False]]]),
    )
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    network = ConstantThreshold(-1e6)
    options = DiffusionOptions(radii=(1,))
    after = diffuse(scores, start, valid, threshold_net=network, options=options)[0].supervision
    assert after.labels.tolist() == [[[0, 0, VOID]]]
    assert after.weights[0, 0, 1].item() == pytest.approx(math.tanh(10 * 0.45))


def test_ties_stay_unlabeled() -> None:
    """Two classes with mirrored scores and scribbles: the middle column is a tie, to the last bit."""
    ramp = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1])
    scores = torch.stack([ramp, ramp.flip(0)])[None, :, None].expand(1, 2, 3, 5).contiguous()
    labels = torch.full((1, 3, 5), VOID)
    labels[0, :, 0], labels[0, :, 4] = 0, 1
    start = Supervision.of_labels(labels, num_classes=2)
    options = DiffusionOptions(radii=(9,))
    constant = ConstantThreshold(-1e6)  # both thresholds are exactly 0
    for gate in (True, False):
        step = diffusion_step(
            scores,
            start,
            torch.ones(1, 3, 5, dtype=torch.bool),
            radius=9,
            threshold_net=constant,
            options=replace(options, gate_argmax=gate),
        )
        assert step.selected[0, :, :, 2].all()
        assert step.supervision.labels[0].tolist() == [[0, 0, VOID, 1, 1]] * 3


class ConstantThreshold(nn.Module):
    """g that gives one number whatever it sees."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.full_like(mean, self.value)


@pytest.mark.parametrize(("value", "selected"), [(1e6, False), (-1e6, True)])
def test_extreme_thresholds_stay_within_the_range_of_scores(value: float, selected: bool) -> None:
    steps, _, _ = run(0, ConstantThreshold(value))
    assert ((steps[0].threshold >= 0) & (steps[0].threshold <= 0.999)).all()
    assert torch.equal(steps[0].selected, steps[0].window if selected else torch.zeros_like(steps[0].window))


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    scores, labels, valid = random_case(4)
    options, network = DiffusionOptions(radii=(2, 4, 6)), random_network()
    together = diffuse(
        scores, Supervision.of_labels(labels, num_classes=K), valid, threshold_net=network, options=options
    )
    for image in range(3):
        one = slice(image, image + 1)
        alone = diffuse(
            scores[one],
            Supervision.of_labels(labels[one], num_classes=K),
            valid[one],
            threshold_net=network,
            options=options,
        )
        assert torch.equal(alone[-1].supervision.labels[0], together[-1].supervision.labels[image])
        torch.testing.assert_close(alone[-1].supervision.weights[0], together[-1].supervision.weights[image])


def test_relabeling_the_classes_relabels_the_result() -> None:
    scores, labels, valid = random_case(5)
    order = torch.tensor([3, 0, 4, 1, 2])  # class k becomes order[k]
    renamed = torch.where(labels == VOID, VOID, order[labels.clamp(max=K - 1)])
    permuted = torch.empty_like(scores).index_copy_(1, order, scores)
    options, network = DiffusionOptions(radii=(2, 4, 6)), random_network()
    plain, other = (
        diffuse(s, Supervision.of_labels(y, num_classes=K), valid, threshold_net=network, options=options)
        for s, y in ((scores, labels), (permuted, renamed))
    )
    expected = plain[-1].supervision.labels
    expected = torch.where(expected == VOID, VOID, order[expected.clamp(max=K - 1)])
    assert torch.equal(other[-1].supervision.labels, expected)


def test_no_gradient_reaches_the_scores_or_leaves_the_labels() -> None:
    scores, labels, valid = random_case(6)
    scores.requires_grad_()
    network = random_network()
    steps = diffuse(
        scores,
        Supervision.of_labels(labels, num_classes=K),
        valid,
        threshold_net=network,
        options=DiffusionOptions(radii=(2, 4)),
    )
    assert not any(step.supervision.weights.requires_grad for step in steps)
    sum(step.binarized.sum() + step.threshold.sum() for step in steps).backward()
    assert scores.grad is None
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_batch_without_labels_grows_nothing_and_is_finite() -> None:
    scores, labels, valid = random_case(7)
    start = Supervision.of_labels(torch.full_like(labels, VOID), num_classes=K)
    network = random_network()
    steps = diffuse(scores, start, valid, threshold_net=network, options=DiffusionOptions(radii=(2, 4)))
    assert not steps[-1].supervision.region.any()
    sum(threshold_losses(steps, valid)).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())


def test_no_steps_are_no_diffusion() -> None:
    assert run(0, radii=())[0] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    scores, labels, valid = random_case(8)
    start, network = Supervision.of_labels(labels, num_classes=K), random_network()
    options = DiffusionOptions(radii=(2, 4))
    expected = diffuse(scores, start, valid, threshold_net=network, options=options)
    with torch.autocast("cpu", dtype=dtype):
        found = diffuse(scores, start, valid, threshold_net=network, options=options)
    assert found[-1].binarized.dtype == torch.float32
    assert torch.equal(found[-1].threshold, expected[-1].threshold)
    assert torch.equal(found[-1].supervision.targets, expected[-1].supervision.targets)
    half = diffuse(scores.to(dtype), start, valid, threshold_net=network, options=options)
    assert half[-1].scores.dtype == torch.float32


def test_other_sizes_are_refused() -> None:
    scores, labels, valid = random_case(0)
    with pytest.raises(ValueError, match=r"SLD\.STRIDE"):
        diffusion_step(
            scores[..., :-1],
            Supervision.of_labels(labels, num_classes=K),
            valid,
            radius=2,
            threshold_net=ThresholdNetwork(),
            options=DiffusionOptions(radii=(2,)),
        )


def test_radii_grow_as_configured() -> None:
    # With r_0 = 16 pixels windows reach 16, 48, 96 and, for six steps, 336 pixels from the scribble.
    linear = window_radii(6, 16, stride=4)
    assert linear == (4, 8, 12, 16, 20, 24)
    assert [4 * sum(linear[: t + 1]) for t in (0, 1, 2, 5)] == [16, 48, 96, 336]
    assert window_radii(4, 8, growth="geometric", stride=4) == (2, 4, 8, 16)
    assert window_radii(2, 0, growth="list", radii=(3, 10, 40)) == (3, 10)
    assert window_radii(1, 1, stride=4) == (1,)
    assert window_radii(0, 16) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"growth": "cubic"}, "GROWTH"),
        ({"growth": "list", "radii": (4,)}, "RADII has 1"),
        ({"growth": "list", "radii": (8, 4)}, "shrink"),
        ({"radius": 0}, "positive"),
        ({"radius": -3}, "positive"),
    ],
)
def test_impossible_radii_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        window_radii(**{"steps": 2, "radius": 4, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("scope", "x", "SCOPE"), ("binarizer", "x", "BINARIZER"), ("target", "x", "TARGET"), ("sharpness", 0.0, "SHARP")],
)
def test_unknown_options_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionOptions(radii=(1,), **{key: value})  # type: ignore[arg-type]


def test_options_come_from_the_configuration() -> None:
    cfg = get_cfg()
    add_psi_config(cfg)
    assert DiffusionOptions.from_config(cfg) == DiffusionOptions(radii=(4, 8, 12))
    changes = {"STEPS": 2, "GROWTH": "geometric", "STRIDE": 8, "SHARPNESS": 10.0, "SCOPE": "global"}
    changes |= {"BINARIZER": "sigmoid", "GATE_ARGMAX": False, "KEEP_DIFFUSED": False, "TARGET": "soft"}
    for key, value in changes.items():
        cfg.MODEL.PSI.SLD[key] = value
    assert DiffusionOptions.from_config(cfg) == DiffusionOptions(
        (2, 4), 10.0, "global", "sigmoid", False, False, "soft"
    )
