# SPDX-License-Identifier: Apache-2.0
"""The projection baseline: class embeddings are the classifier (PADing, Table 1, row 2; after ZegFormer)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from padding.errors import ConfigError


class ProjectionClassifier(nn.Module):
    """Cosine of a projected query with every class embedding and a learnt no-object vector, over a temperature.

    Enter: queries (..., D) and class embeddings (K, E). Leaves: logits (..., K+1), no-object last. Since classes enter
    as embeddings, those of unseen classes are appended without training.
    """

    def __init__(self, channels: int, embedding_channels: int, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"MODEL.PADING.PROJECTION.TEMPERATURE is {temperature}; expected a number above 0.")
        self.temperature = temperature
        self.linear = nn.Linear(channels, embedding_channels)
        self.no_object = nn.Parameter(torch.randn(embedding_channels))

    def forward(self, queries: Tensor, class_embeddings: Tensor) -> Tensor:
        """(..., D), (K, E) -> (..., K+1)."""
        classes = torch.cat([class_embeddings, self.no_object[None]])
        projected = F.normalize(self.linear(queries), dim=-1)
        return projected @ F.normalize(classes, dim=-1).T / self.temperature
