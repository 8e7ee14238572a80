# SPDX-License-Identifier: Apache-2.0
"""Tests of what training the threshold network does to the diffused labels, on scenes whose truth is known."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from psi.label_diffusion import DiffusionOptions, ThresholdNetwork, diffuse
from psi.label_quality import label_quality
from psi.losses import threshold_losses
from psi.supervision import Supervision

VOID = 255


def toy_scenes() -> tuple[Tensor, Tensor, Tensor]:
    """Four discs on a ground: true classes, scores that are sure at the scribbles and noisy far off, scribbles."""
    size = 64
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    truths, all_scores, scribbles = [], [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        cy, cx = ((torch.rand(2, generator=generator) * 0.3 + 0.35) * size).tolist()
        radius = size * (0.2 + 0.1 * torch.rand((), generator=generator).item())
        truth = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2).long()
        drawn = torch.full((size, size), VOID)
        drawn[int(cy), int(cx - radius / 2) : int(cx + radius / 2)] = 1
        drawn[3, 5 : size - 5], drawn[5 : size // 2, 3] = 0, 0
        noise = torch.randn(1, 1, size // 4, size // 4, generator=generator)
        noise = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)[0, 0]
        distance = torch.from_numpy(distance_transform_edt((drawn == VOID).numpy())).float()
        logits = 2.0 * (2 * truth - 1) + 2.0 * noise * (distance / 16).clamp(max=1)
        logits = F.avg_pool2d(logits[None, None], 5, 1, 2)[0, 0]
        truths.append(truth)
        all_scores.append(torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)]))
        scribbles.append(drawn)
    return torch.stack(truths), torch.stack(all_scores), torch.stack(scribbles)


def train_thresholds(weight: float, gate: bool, iterations: int) -> list[tuple[float, float]]:
    """Accuracy of the diffused labels and coverage before and after training theta on the toy scenes."""
    truth, scores, scribbles = toy_scenes()
    valid = torch.ones_like(truth, dtype=torch.bool)
    start = Supervision.of_labels(scribbles, num_classes=2)
    options = DiffusionOptions(radii=(4, 8, 12), gate_argmax=gate)
    torch.manual_seed(0)
    network = ThresholdNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-2)
    results = []
    for iteration in range(iterations + 1):
        steps = diffuse(scores, start, valid, threshold_net=network, options=options)
        if iteration in (0, iterations):
            quality = label_quality(steps[-1].supervision, valid, truth)
            results.append((quality.diffused_accuracy, quality.coverage))
        recall, diffused = threshold_losses(steps, valid)
        optimizer.zero_grad()
        (recall + weight * diffused).backward()
        optimizer.step()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("gate", [True, False])
def test_training_the_threshold_makes_labels_more_accurate(gate: bool) -> None:
    """Measured: raw prediction 94.9 %; gated 96.8 -> 98.8 % (coverage 62 -> 64 %), free 91.9 -> 98.8 %."""
    truth, scores, _ = toy_scenes()
    assert 0.94 < (scores.argmax(dim=1) == truth).float().mean() < 0.96
    (accuracy, coverage), (trained_accuracy, trained_coverage) = train_thresholds(1.0, gate, 300)
    assert trained_accuracy > accuracy + 0.01
    assert trained_accuracy > 0.98
    assert trained_coverage > 0.55
    assert not gate or trained_coverage > coverage - 0.05


def test_without_the_second_term_thresholds_collapse() -> None:
    """The control of the test above: nothing holds the thresholds up, windows fill with wrong labels."""
    (accuracy, _), (trained_accuracy, coverage) = train_thresholds(0.0, False, 100)
    assert coverage > 0.8
    assert trained_accuracy < accuracy - 0.1
