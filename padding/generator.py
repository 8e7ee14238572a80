# SPDX-License-Identifier: Apache-2.0
"""Generators of class features from class embeddings (PADing, section 3.2).

``PrimitiveTransformer`` is the released architecture, ``PrimitivePaper`` Eq. 1 as printed, ``Gmmn`` the baseline after
ZS3. A primitive generator is called with projected class embeddings (n, D) and the shared primitives (P, D); all n
conditions are queries over one set of keys and values, which equals repeating the primitives for each of them.
Gaussian noise is drawn in training and in evaluation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GENERATORS = ("primitive_transformer", "primitive_paper", "gmmn")
# Slope and initial bias of the baseline as published with ZS3.
GMMN_NEGATIVE_SLOPE = 0.2
GMMN_BIAS = 0.01


def _noise_like(x: Tensor, std: float) -> Tensor:
    return torch.randn_like(x) * std


class PrimitiveTransformerLayer(nn.Module):
    """One post-norm decoder layer: a condition with itself, then with the primitives, then a two-layer network.

    A condition is a sequence of length 1, so its self-attention has the weight 1: only the value and output projections
    act. The published parameters (queries and keys included) are kept, for checkpoints.
    """

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float, noise_std: float) -> None:
        super().__init__()
        self.noise_std = noise_std
        self.self_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, primitives: Tensor) -> Tensor:
        """(n, D), (P, D) -> (n, D)."""
        x = self.norm1(x + self.dropout(self._attend_to_itself(x)))
        # All n conditions query the same P primitives: no (n, P, D) copy of them.
        attended = self.multihead_attn(x, primitives, primitives, need_weights=False)[0]
        x = x + self.dropout(attended)
        # Z of Eq. 1, in evaluation too: a class has a distribution of features, not one.
        x = self.norm2(x + _noise_like(x, self.noise_std))
        hidden = self.dropout(torch.relu(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))

    def _attend_to_itself(self, x: Tensor) -> Tensor:
        attention = self.self_attn
        channels = attention.embed_dim
        # Rows 2 D to 3 D of the joint projection are the values'; queries and keys cannot matter with a single key.
        values = F.linear(x, attention.in_proj_weight[2 * channels :], attention.in_proj_bias[2 * channels :])
        # The published layer drops attention weights: here the single weight of each head.
        heads = values.new_ones(len(x), attention.num_heads, 1)
        heads = F.dropout(heads, attention.dropout, self.training)
        values = (values.view(len(x), attention.num_heads, channels // attention.num_heads) * heads).flatten(1)
        return attention.out_proj(values)


class PrimitiveSelfAttention(nn.Module):
    """The "relationship graph" of the paper: primitives attend to each other, (P, D) -> (P, D)."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads, dropout=dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, primitives: Tensor) -> Tensor:
        """(P, D) -> (P, D)."""
        attended = self.attention(primitives, primitives, primitives, need_weights=False)[0]
        return self.norm(primitives + attended)


class PrimitiveTransformer(nn.Module):
    """The released generator: a stack of decoder layers over shared primitives, then a LayerNorm.

    Enter: conditions (n, D) and primitives (P, D). Leaves: synthetic features (n, D).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int,
        num_heads: int,
        ffn_channels: int,
        dropout: float,
        noise_std: float,
        primitive_self_attention: bool = False,
        equal_layers: bool = False,
    ) -> None:
        super().__init__()
        self.graph = PrimitiveSelfAttention(channels, num_heads, dropout) if primitive_self_attention else None
        self.layers = nn.ModuleList(
            PrimitiveTransformerLayer(channels, num_heads, ffn_channels, dropout, noise_std) for _ in range(num_layers)
        )
        if equal_layers:  # as nn.TransformerDecoder starts, whose layers are deep copies of one
            for layer in self.layers[1:]:
                layer.load_state_dict(self.layers[0].state_dict())
        self.norm = nn.LayerNorm(channels)

    def forward(self, conditions: Tensor, primitives: Tensor) -> Tensor:
        """(n, D), (P, D) -> (n, D)."""
        if self.graph is not None:
            primitives = self.graph(primitives)
        x = conditions
        for layer in self.layers:
            x = layer(x, primitives)
        return self.norm(x)


class PrimitivePaper(nn.Module):
    """Eq. 1 as printed, ``num_layers`` times: X' = W1(softmax(Q K^T / sqrt(d)) V + A + Z).

    A, the projected class embedding, is the query's source and the residual; each further layer takes X' for A. One
    attention head and no normalisation, as in the equation.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int,
        num_heads: int,
        dropout: float,
        noise_std: float,
        primitive_self_attention: bool = False,
    ) -> None:
        super().__init__()
        self.noise_std = noise_std
        self.graph = PrimitiveSelfAttention(channels, num_heads, dropout) if primitive_self_attention else None
        self.queries = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_layers))
        self.keys = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_layers))
        self.values = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_layers))
        self.outputs = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, conditions: Tensor, primitives: Tensor) -> Tensor:
        """(n, D), (P, D) -> (n, D)."""
        if self.graph is not None:
            primitives = self.graph(primitives)
        x = conditions
        for query, key, value, output in zip(self.queries, self.keys, self.values, self.outputs, strict=True):
            # (n, P) attention of each condition to the primitives, scaled by 1 / sqrt(d).
            scores = query(x) @ key(primitives).T * x.shape[1] ** -0.5
            mixed = self.dropout(scores.softmax(1)) @ value(primitives)
            x = output(mixed + x + _noise_like(x, self.noise_std))
        return x


class Gmmn(nn.Module):
    """Generative moment matching network, the baseline of Table 1: (n, E) class embeddings -> (n, D) features."""

    def __init__(self, embedding_channels: int, channels: int, *, dropout: float, noise_std: float) -> None:
        super().__init__()
        self.noise_std = noise_std
        self.network = nn.Sequential(
            nn.Linear(2 * embedding_channels, channels),
            nn.LeakyReLU(GMMN_NEGATIVE_SLOPE),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
        )
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, GMMN_BIAS)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(n, E) -> (n, D)."""
        # E numbers of noise beside the E of the embedding: (n, 2 E).
        return self.network(torch.cat([embeddings, _noise_like(embeddings, self.noise_std)], dim=1))
