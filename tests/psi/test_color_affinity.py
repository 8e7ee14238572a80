# SPDX-License-Identifier: Apache-2.0
"""Colour affinity: against loops over cells, and what it keeps out of labels that grow."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from psi.color_affinity import AffinityOptions, cell_colors, color_affinity
from psi.label_diffusion import DiffusionOptions, ThresholdNetwork, diffuse
from psi.supervision import Supervision

VOID = 255


@pytest.mark.parametrize("radius", [1, 3, 20])
def test_affinity_equals_a_loop_over_cells(radius: int) -> None:
    generator = torch.Generator().manual_seed(radius)
    colors = torch.rand(2, 3, 7, 9, generator=generator)
    labeled = torch.rand(2, 2, 7, 9, generator=generator) < 0.08
    labeled[1, 1] = False
    found = color_affinity(colors, labeled, radius, sigma=0.3)
    assert found.shape == labeled.shape
    for image, slot, y, x in itertools.product(range(2), range(2), range(7), range(9)):
        around = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
        near = labeled[image, slot][around]
        if not near.any():
            assert found[image, slot, y, x] == 0
            continue
        mean = colors[image][:, around[0], around[1]][:, near].mean(dim=1)
        distance = (colors[image, :, y, x] - mean).square().sum()
        assert found[image, slot, y, x].item() == pytest.approx(math.exp(-distance.item() / 0.18), abs=1e-4)


def test_a_cell_has_the_mean_color_of_the_pixels_it_shows() -> None:
    image = torch.zeros(1, 3, 4, 5)
    image[0, 0] = torch.arange(5.0).expand(4, 5) * 51  # red: 0, 51, ..., 204
    image[0, 1] = 255.0
    colors = cell_colors(image, (1, 2), stride=4)
    assert colors.shape == (1, 3, 1, 2)
    # The second cell shows one column of four.
    torch.testing.assert_close(colors[0, :, 0], torch.tensor([[0.3, 0.8], [1.0, 1.0], [0.0, 0.0]]))


def two_colors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores sure of class 0 everywhere; a scribble of it on the red left, which ends where the image turns blue."""
    scores = torch.full((1, 2, 8, 8), 0.1)
    scores[:, 0] = 0.8 + 0.1 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    scores[:, 0, :, 6:] = 0.2  # far off, so that the mean of the window lies between
    labels = torch.full((1, 8, 8), VOID)
    labels[0, 3:5, 1:3] = 0
    colors = torch.zeros(1, 3, 8, 8)
    colors[:, 0, :, :4], colors[:, 2, :, 4:] = 1.0, 1.0
    return scores, labels, torch.ones(1, 8, 8, dtype=torch.bool), colors


def grown(mode: str, **options: Any) -> Tensor:
    scores, labels, valid, colors = two_colors()
    diffusion = DiffusionOptions(radii=(7,), affinity=AffinityOptions(mode=mode, **options))
    start = Supervision.of_labels(labels, num_classes=2)
    network = ThresholdNetwork()
    steps = diffuse(scores, start, valid, threshold_net=network, options=diffusion, colors=colors)
    return steps[-1].supervision.labels[0]


@pytest.mark.parametrize("mode", ["gate", "factor"])
def test_labels_stop_where_the_color_changes(mode: str) -> None:
    assert (grown("none")[:, 4:6] == 0).any()
    found = grown(mode, sigma=0.2)
    assert (found[:, 4:] == VOID).all()
    assert (found[:, :4] == 0).sum() > 4


def test_a_wide_sigma_asks_nothing() -> None:
    for mode in ("gate", "factor"):
        assert torch.equal(grown(mode, sigma=1e3), grown("none"))


@pytest.mark.parametrize("mode", ["gate", "factor"])
def test_scribbles_are_selected_whatever_their_color(mode: str) -> None:
    scores, labels, valid, colors = two_colors()
    scores[:, 0, 3:5, 1:3] = 0.95
    colors[0, :, 3:5, 1] = torch.tensor([0.0, 1.0, 0.0])[:, None]  # a scribble over two colours, far from their mean
    diffusion = DiffusionOptions(radii=(7,), affinity=AffinityOptions(mode=mode, sigma=0.05))
    start = Supervision.of_labels(labels, num_classes=2)
    (step,) = diffuse(scores, start, valid, threshold_net=ThresholdNetwork(), options=diffusion, colors=colors)
    assert step.selected[0, 0, 3:5, 1:3].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "soft"}, "AFFINITY.MODE is 'soft'"),
        ({"sigma": 0.0}, "AFFINITY.SIGMA is 0.0"),
        ({"minimum": 0.0}, "AFFINITY.MIN is 0.0"),
        ({"minimum": 1.5}, "AFFINITY.MIN is 1.5"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AffinityOptions(**options)


def test_colors_that_are_missing_or_of_another_size_are_an_error() -> None:
    scores, labels, valid, colors = two_colors()
    start = Supervision.of_labels(labels, num_classes=2)
    how: dict[str, Any] = {
        "threshold_net": ThresholdNetwork(),
        "options": DiffusionOptions(radii=(2,), affinity=AffinityOptions(mode="gate")),
    }
    with pytest.raises(ValueError, match=r"AFFINITY\.MODE is 'gate', but no colours were given"):
        diffuse(scores, start, valid, **how)
    with pytest.raises(ValueError, match=r"colours \(1, 4, 8\)"):
        diffuse(scores, start, valid, **how, colors=colors[:, :, ::2])
