# SPDX-License-Identifier: Apache-2.0
"""Running moments are those of all rows so far; a batch is filled up with rows that have them."""

import torch

from padding.bank.feature_bank import FeatureBatch
from padding.class_moments import ClassMoments


def batch_of(labels: list[int], seed: int) -> FeatureBatch:
    embeddings = 3.0 + torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed))
    return FeatureBatch(embeddings, torch.tensor(labels), torch.ones(len(labels)))


def test_moments_are_those_of_all_rows() -> None:
    moments, batches = ClassMoments(3, 4, rows=2), [batch_of([0, 1, 0, 3], 0), batch_of([0, 3, 1], 1), batch_of([0], 2)]
    for batch in batches:
        moments.fill(batch)
    rows = torch.cat([batch.embeddings[batch.labels == 0] for batch in batches])
    mean, variance = moments.mean_and_variance(torch.tensor([0]))
    torch.testing.assert_close(mean[0], rows.mean(0))
    torch.testing.assert_close(variance[0], rows.var(0))
    assert moments.counts.tolist() == [4, 2, 0]


def test_classes_are_filled_up_and_others_left_alone() -> None:
    torch.manual_seed(0)
    moments = ClassMoments(3, 4, rows=500)
    moments.fill(batch_of([1] * 200, 0))
    filled = moments.fill(batch_of([1, 3, 3], 1))
    assert filled.labels.bincount(minlength=4).tolist() == [0, 500, 0, 2]
    assert filled.weights.shape == filled.labels.shape
    drawn = filled.embeddings[3:]
    mean, variance = moments.mean_and_variance(torch.tensor([1]))
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.2, rtol=0.0)
    torch.testing.assert_close(drawn.var(0), variance[0], atol=0.4, rtol=0.0)
    enough = moments.fill(batch_of([1] * 500, 2))
    assert len(enough.labels) == 500
    nothing = moments.fill(batch_of([3], 3))
    assert nothing.labels.tolist() == [3]


def test_state_goes_on() -> None:
    first, second = ClassMoments(3, 4, rows=2), ClassMoments(3, 4, rows=2)
    first.fill(batch_of([0, 1, 2], 0))
    second.load_state_dict(first.state_dict())
    first.fill(batch_of([0, 1], 1))
    assert second.counts.tolist() == [1, 1, 1]
    second.fill(batch_of([0, 1], 1))
    assert torch.equal(first.squares, second.squares)
