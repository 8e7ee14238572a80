# SPDX-License-Identifier: Apache-2.0
"""Disentanglement of features into a semantic-related and a semantic-unrelated part (PADing, section 3.3).

``FeatureEncoder`` is E_R or E_U, ``FeatureDecoder`` is D, ``RelationNet`` the scorer of the released code. The variant
``official`` has the parameter names and shapes of the released checkpoints; ``ours`` follows the paper's text.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from padding.errors import check_choice

ARCHITECTURES = ("ours", "official")
# Slope of every LeakyReLU in the paper and in the released code.
NEGATIVE_SLOPE = 0.2


class FeatureEncoder(nn.Module):
    """E_R or E_U: (n, D) features -> (n, out) parts.

    ``ours``: an MLP with one hidden layer of width D. ``official``: two linear maps in a row, then activation and
    dropout, so that its outputs are never very negative.
    """

    def __init__(self, in_channels: int, out_channels: int, *, arch: str, dropout: float) -> None:
        super().__init__()
        check_choice("MODEL.PADING.DISENTANGLE.ARCH", arch, ARCHITECTURES)
        first, last = nn.Linear(in_channels, in_channels), nn.Linear(in_channels, out_channels)
        activation = (nn.LeakyReLU(NEGATIVE_SLOPE), nn.Dropout(dropout))
        # As released, two linear maps in a row are one, and the activation at the end cuts negative parts.
        layers = (first, *activation, last) if arch == "ours" else (first, last, *activation)
        self.encoder = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) -> (n, out)."""
        return self.encoder(features)


class FeatureDecoder(nn.Module):
    """D: (n, E) related and (n, U) unrelated part -> (n, D) reconstructed features.

    ``official`` ends with an activation and dropout, so that negative targets can only be approached; ``ours`` with the
    linear map.
    """

    def __init__(self, related_channels: int, unrelated_channels: int, out_channels: int, *, arch: str, dropout: float):
        super().__init__()
        check_choice("MODEL.PADING.DISENTANGLE.ARCH", arch, ARCHITECTURES)
        layers: list[nn.Module] = [
            nn.Linear(related_channels + unrelated_channels, out_channels),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Dropout(dropout),
            nn.Linear(out_channels, out_channels),
        ]
        if arch == "official":
            layers += [nn.LeakyReLU(NEGATIVE_SLOPE), nn.Dropout(dropout)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, related: Tensor, unrelated: Tensor) -> Tensor:
        """(n, E), (n, U) -> (n, D)."""
        return self.decoder(torch.cat([related, unrelated], dim=1))


class RelationNet(nn.Module):
    """Learnt similarity of each feature to each class: (n, E), (C, E) -> (n, C) in (0, 1).

    The released code feeds these probabilities to a cross-entropy as if they were logits.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.fc1 = nn.Linear(2 * channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, 1)

    def forward(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """(n, E), (C, E) -> (n, C)."""
        # fc1 on all (n, C) pairs is a sum of two small products; the pairs themselves are never concatenated.
        weight = self.fc1.weight
        rows = features @ weight[:, : self.channels].T
        cols = embeddings @ weight[:, self.channels :].T + self.fc1.bias
        # W [f; e] = W_f f + W_e e, then (n, 1, hidden) + (1, C, hidden).
        hidden = torch.relu(rows[:, None, :] + cols[None, :, :])
        return torch.sigmoid(self.fc2(hidden)).squeeze(2)


class Disentangled(NamedTuple):
    """The parts of n features."""

    related: Tensor  # (n, E)
    unrelated: Tensor  # (n, D), the mean of the posterior when log_variance is given
    log_variance: Tensor | None  # (n, D), variational form only
    decoded: Tensor  # (n, D)


def disentangle(
    features: Tensor,
    related_encoder: nn.Module,
    unrelated_encoder: nn.Module,
    decoder: nn.Module,
    *,
    variational: bool,
) -> Disentangled:
    """Split (n, D) features into their two parts and put them together again.

    In the variational form the unrelated encoder gives means and log-variances side by side, and the decoder sees a
    sample of that posterior.
    """
    related, unrelated = related_encoder(features), unrelated_encoder(features)
    if not variational:
        return Disentangled(related, unrelated, None, decoder(related, unrelated))
    mean, log_variance = unrelated.chunk(2, dim=1)
    # sigma = exp(log_variance / 2); the gradient passes through mean and variance, not through the draw.
    sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return Disentangled(related, mean, log_variance, decoder(related, sample))
