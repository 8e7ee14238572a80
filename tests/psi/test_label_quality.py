# SPDX-License-Identifier: Apache-2.0
"""Tests of coverage, accuracy and thresholds as they are reported."""

import math

import pytest
import torch

from psi.label_diffusion import DiffusionOptions, ThresholdNetwork, diffuse
from psi.label_quality import LabelQuality, label_quality, mean_thresholds
from psi.supervision import Supervision

VOID = 255


def test_counts_of_a_small_map() -> None:
    """Six valid cells: a right and a wrong scribble, a right, a wrong and an unknown diffused label, one unlabeled."""
    labels = torch.tensor([[[0, 1, 2, 2, 1, VOID, 0]]])
    truth = torch.tensor([[[0, 0, 2, 1, VOID, 1, 0]]])
    drawn = torch.tensor([[[True, True, False, False, False, False, True]]])
    valid = torch.tensor([[[True, True, True, True, True, True, False]]])
    quality = label_quality(Supervision.of_labels(labels, num_classes=3, scribbles=drawn), valid, truth)
    assert quality == LabelQuality(6, 5, 3, 2, 1, 2, 1)
    assert quality.coverage == pytest.approx(5 / 6)
    assert quality.accuracy == pytest.approx(2 / 4)
    assert quality.diffused_accuracy == pytest.approx(1 / 2)


def test_batches_add_up() -> None:
    labels, truth = torch.randint(0, 3, (2, 4, 5)), torch.randint(0, 3, (2, 4, 5))
    drawn, valid = torch.rand(2, 4, 5) < 0.3, torch.rand(2, 4, 5) < 0.8
    whole = label_quality(Supervision.of_labels(labels, num_classes=3, scribbles=drawn), valid, truth)
    parts = [
        label_quality(
            Supervision.of_labels(labels[i : i + 1], num_classes=3, scribbles=drawn[i : i + 1]),
            valid[i : i + 1],
            truth[i : i + 1],
        )
        for i in range(2)
    ]
    assert sum(parts, LabelQuality()) == whole


def test_without_truth_there_is_coverage_but_no_accuracy() -> None:
    labels = torch.tensor([[[0, VOID]]])
    quality = label_quality(Supervision.of_labels(labels, num_classes=1), torch.ones(1, 1, 2, dtype=torch.bool))
    assert quality.coverage == pytest.approx(0.5)
    assert math.isnan(quality.accuracy)
    assert math.isnan(LabelQuality().coverage)


def test_quality_is_reported_from_the_scribbles_to_the_last_step() -> None:
    labels = torch.full((1, 12, 12), VOID)
    labels[0, 2, 2:5], labels[0, 9, 2:5] = 0, 1
    truth = (torch.arange(12)[:, None].expand(12, 12) >= 6).long()[None]
    scores = torch.where(truth[:, None] == torch.arange(2)[None, :, None, None], 0.8, 0.2)
    scores = scores + 0.1 * torch.rand(1, 2, 12, 12)
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    start = Supervision.of_labels(labels, num_classes=2)
    options = DiffusionOptions(radii=(1, 2, 3))
    steps = diffuse(scores, start, valid, threshold_net=ThresholdNetwork(), options=options)
    qualities = [label_quality(state, valid, truth) for state in (start, *(step.supervision for step in steps))]
    assert [quality.scribbles_correct for quality in qualities] == [6] * 4
    assert qualities[0].diffused == 0
    coverages = [quality.coverage for quality in qualities]
    assert coverages == sorted(coverages)
    assert coverages[-1] > coverages[1] > coverages[0] == 6 / 144
    assert qualities[-1].accuracy == 1.0


def test_thresholds_are_means_over_the_images_that_show_a_class() -> None:
    labels = torch.full((2, 6, 6), VOID)
    labels[0, 0, 0], labels[0, 5, 5], labels[1, 3, 3] = 1, 3, 3
    scores = torch.rand(2, 5, 6, 6).softmax(dim=1)
    valid = torch.ones(2, 6, 6, dtype=torch.bool)
    start = Supervision.of_labels(labels, num_classes=5)
    (step,) = diffuse(scores, start, valid, threshold_net=ThresholdNetwork(), options=DiffusionOptions(radii=(2,)))
    values = mean_thresholds(step, 5)
    assert values.isnan().tolist() == [True, False, True, False, True]
    torch.testing.assert_close(values[1], step.threshold[0, 0].detach())
    torch.testing.assert_close(values[3], (step.threshold[0, 1] + step.threshold[1, 0]).detach() / 2)
