# SPDX-License-Identifier: Apache-2.0
"""Running mean and variance of the real features of every class, from which a batch is filled up for Eq. 2.

With a long tail of classes most of those in a batch have one or two rows, and a generator that is compared class by
class with one row learns a point. The segmentor is frozen, so that what was seen of a class before holds now.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from padding.bank.feature_bank import FeatureBatch
from padding.modeling.batching import to_device


class ClassMoments:
    """Mean and variance of each class and channel over all features so far.

    Args:
        num_classes: K; rows with the label K are no-object and are left out.
        channels: D.
        rows: of each class of a batch, real ones and drawn ones together; at least 1.
    """

    def __init__(self, num_classes: int, channels: int, rows: int) -> None:
        self.rows = rows
        # Sums of some hundred thousand squares, of which differences are taken.
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.squares = torch.zeros(num_classes, channels, dtype=torch.float64)

    def fill(self, batch: FeatureBatch) -> FeatureBatch:
        """Note the rows of a batch, and add some to each of its classes that has fewer than ``rows``.

        Args:
            batch: real features, (n, D), of all processes.

        Returns:
            The batch, behind it rows N(mean, variance) of their class with the weight 1; drawn by torch's global
            generator.
        """
        present, found = self._note(batch)
        labels = present.repeat_interleave((self.rows - found).clamp_min(0))
        mean, variance = self.mean_and_variance(labels)
        drawn = mean + variance.sqrt() * torch.randn_like(mean)
        return FeatureBatch(
            torch.cat([batch.embeddings, drawn.to(batch.embeddings.dtype)]),
            torch.cat([batch.labels, labels]),
            torch.cat([batch.weights, torch.ones_like(labels, dtype=batch.weights.dtype)]),
        )

    def mean_and_variance(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) classes that occurred -> float32 mean and unbiased variance (n, D); the latter is 0 after one row."""
        counts = self.counts[labels, None]
        mean = self.sums[labels] / counts
        spread = (self.squares[labels] - counts * mean.square()).clamp_min(0.0)
        return mean.float(), (spread / (counts - 1.0).clamp_min(1.0)).float()

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"counts": self.counts.cpu(), "sums": self.sums.cpu(), "squares": self.squares.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.counts, self.sums, self.squares = (state[name].clone() for name in ("counts", "sums", "squares"))

    def _note(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Add the rows to the sums; classes present and their numbers of rows."""
        self._move_to(batch.embeddings.device)
        real = batch.labels < len(self.counts)
        labels, rows = batch.labels[real], batch.embeddings[real].detach().double()
        present, found = labels.unique(return_counts=True)
        self.counts[present] += found.double()
        self.sums.index_add_(0, labels, rows)
        self.squares.index_add_(0, labels, rows.square())
        return present, found

    def _move_to(self, device: torch.device) -> None:
        if self.counts.device != device:
            self.counts, self.sums, self.squares = (
                to_device(x, device) for x in (self.counts, self.sums, self.squares)
            )
