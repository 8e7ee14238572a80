# SPDX-License-Identifier: Apache-2.0
"""Transformer decoder with masked attention (Mask2Former, section 3.2).

Learned queries read the maps of the pixel decoder in turn, each only where its own last mask is. Parameter names are
those of published weights: the three parts of a layer stand in three parallel lists. Like the published decoder, this
one has no dropout.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.position_encoding import sine_position_encoding


class MultiHeadAttention(nn.Module):
    """``nn.MultiheadAttention`` (same parameters) whose mask is shared by the heads instead of copied for each.

    Args:
        width: D of queries, keys, values and result.
        num_heads: heads, a divisor of ``width``.

    Raises:
        ConfigError: if ``width`` is not a multiple of ``num_heads``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(
                f"MultiHeadAttention: width {width} is not a multiple of {num_heads} heads; change "
                "MODEL.MASK_FORMER.HIDDEN_DIM or MODEL.MASK_FORMER.NHEADS"
            )
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, D) float.
            key: (B, N, D) float.
            value: (B, N, D) float.
            allowed: (B, Q, N) bool, True where a query may look; None: everywhere.

        Returns:
            (B, Q, D) float.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        # (B, N, D) -> (B, heads, N, D / heads).
        q, k, v = (
            F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        # One mask of a query for all heads: (B, Q, N) -> (B, heads, Q, N), a view.
        mask = None if allowed is None else allowed[:, None].expand(-1, self.num_heads, -1, -1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        # (B, heads, Q, D / heads) -> (B, Q, D).
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _ResidualLayer(nn.Module):
    """Adds what a branch computes; layer norm after the sum, or on the branch's input if ``pre_norm``."""

    def __init__(self, width: int, *, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm

    def _residual(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x + branch(self.norm(x)) if self.pre_norm else self.norm(x + branch(x))


class CrossAttentionLayer(_ResidualLayer):
    """Queries read from a map; see ``MultiHeadAttention`` for the arguments."""

    def __init__(self, width: int, *, num_heads: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm=pre_norm)
        self.multihead_attn = MultiHeadAttention(width, num_heads)

    def forward(self, x: Tensor, query_position: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """(B, Q, D) queries and (B, N, D) keys and values -> (B, Q, D)."""
        return self._residual(x, lambda y: self.multihead_attn(y + query_position, key, value, allowed))


class SelfAttentionLayer(_ResidualLayer):
    """Queries read from each other."""

    def __init__(self, width: int, *, num_heads: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm=pre_norm)
        self.self_attn = MultiHeadAttention(width, num_heads)

    def forward(self, x: Tensor, query_position: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        return self._residual(x, lambda y: self.self_attn(y + query_position, y + query_position, y))


class FeedForwardLayer(_ResidualLayer):
    """Two-layer perceptron."""

    def __init__(self, width: int, *, dim_feedforward: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm=pre_norm)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        return self._residual(x, lambda y: self.linear2(F.relu(self.linear1(y))))


class MaskEmbedding(nn.Module):
    """Three-layer perceptron from a query to the vector that is multiplied with the mask features."""

    def __init__(self, width: int, mask_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, mask_dim)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, mask_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Dot product of every query with every pixel.

    Args:
        mask_embeddings: (B, Q, C) float.
        mask_features: (B, C, H, W) float.

    Returns:
        (B, Q, H, W) float.
    """
    return torch.einsum("bqc,bchw->bqhw", mask_embeddings, mask_features)


class MaskProduct:
    """Mask logits (B, Q, H, W) that are multiplied out where they are read: losses compare a few masks of many.

    Args:
        embeddings: (B, Q, C) float.
        features: (C, H, W) float of each of B images.
    """

    def __init__(self, embeddings: Tensor, features: Sequence[Tensor]) -> None:
        self.embeddings = embeddings
        self.features = features
        self.device = embeddings.device

    def __getitem__(self, place: int | tuple[int, Tensor]) -> Tensor:
        """All masks (Q, H, W) of an image, or those (M, H, W) of an image and some of its queries (M,)."""
        image, rows = place if isinstance(place, tuple) else (place, slice(None))
        return torch.einsum("qc,chw->qhw", self.embeddings[image][rows], self.features[image])


def attention_allowed(logits: Tensor) -> Tensor:
    """Where each query may look: inside its mask, or everywhere if its mask is empty.

    Args:
        logits: (B, Q, H, W) float mask logits at the size of the attended map.

    Returns:
        (B, Q, H * W) bool.
    """
    blocked = logits.flatten(2) < 0  # sigmoid < 0.5
    # A softmax over nothing is NaN: a query with an empty mask looks at everything.
    return ~blocked | blocked.all(dim=-1, keepdim=True)


class MaskedTransformerDecoder(nn.Module):
    """Queries refined by T layers of masked attention, with shared prediction heads before and after each layer.

    Args:
        in_channels: C of the attended maps.
        mask_dim: channels of the mask features.
        num_classes: K without no-object.
        hidden_dim: D of the queries.
        num_queries: Q.
        num_heads: attention heads.
        dim_feedforward: width of the perceptrons.
        num_layers: T.
        num_levels: L, maps attended to in turn.
        pre_norm: layer norm before each part instead of after it.
        project_input: put a 1x1 convolution before every map even if C equals D.
    """

    def __init__(  # noqa: PLR0913  (one keyword per published setting)
        self,
        *,
        in_channels: int,
        mask_dim: int,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        num_levels: int = 3,
        pre_norm: bool = False,
        project_input: bool = False,
    ) -> None:
        super().__init__()
        attention: dict[str, Any] = {"num_heads": num_heads, "pre_norm": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, **attention) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, **attention) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward=dim_feedforward, pre_norm=pre_norm) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_levels, hidden_dim)
        needs_projection = project_input or in_channels != hidden_dim
        self.input_proj = nn.ModuleList(
            _projection(in_channels, hidden_dim) if needs_projection else nn.Identity() for _ in range(num_levels)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MaskEmbedding(hidden_dim, mask_dim)

    def forward(
        self, maps: Sequence[Tensor], mask_features: Tensor, *, with_aux: bool, as_products: bool = False
    ) -> dict[str, Any]:
        """Predict a class and a mask for each query.

        Args:
            maps: L of (B, C, H, W) float, coarse to fine.
            mask_features: (B, mask_dim, H/4, W/4) float.
            with_aux: also predict before the first layer and after every layer but the last.
            as_products: leave the masks to be multiplied out where they are read, as ``MaskProduct``.

        Returns:
            ``pred_logits`` (B, Q, K+1), no-object last; ``pred_masks`` (B, Q, H/4, W/4) logits; ``pred_embeddings``
            (B, Q, D), what the class head saw; ``aux_outputs``, T dicts with the first two, empty without ``with_aux``.
        """
        keys, values = self._flatten_maps(maps)
        predict = partial(self._predict, mask_features=mask_features.unbind() if as_products else mask_features)
        # Resizing is linear, so it may come before the dot product with the queries: once per level, not per layer.
        small_features = [
            F.interpolate(mask_features.detach(), size=level.shape[-2:], mode="bilinear", align_corners=False)
            for level in maps
        ]
        B = mask_features.shape[0]
        # The same queries for all images, (Q, D) -> (B, Q, D) without a copy.
        queries = self.query_feat.weight.expand(B, -1, -1)
        position = self.query_embed.weight.expand(B, -1, -1)
        aux_outputs = []
        for i, (cross_attention, self_attention, feed_forward) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            # Coarse to fine and around again: each layer reads one map (Mask2Former, Sec. 3.2.2).
            level = i % len(maps)
            # Where a query may look follows from its own mask so far (masked attention, Sec. 3.2.1).
            embeddings = self.decoder_norm(queries)
            mask_embeddings = self.mask_embed(embeddings)
            if with_aux:
                aux_outputs.append(predict(embeddings, mask_embeddings))
            # Which pixels a query may read is a decision, through which no gradient passes.
            allowed = attention_allowed(mask_logits(mask_embeddings.detach(), small_features[level]))
            # Cross-attention first (Sec. 3.2.3): queries that have not read the image have nothing to tell each other.
            queries = cross_attention(queries, position, keys[level], values[level], allowed)
            queries = feed_forward(self_attention(queries, position))
        embeddings = self.decoder_norm(queries)
        outputs = predict(embeddings, self.mask_embed(embeddings))
        return {**outputs, "pred_embeddings": embeddings, "aux_outputs": aux_outputs}

    def _flatten_maps(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys (with position) and values (without) of each level, (B, H * W, D)."""
        keys, values = [], []
        for level, project, embedding in zip(maps, self.input_proj, self.level_embed.weight, strict=True):
            # (B, D, H, W) -> (B, H W, D), then which map it is, so that one set of projections serves all.
            value = project(level).flatten(2).transpose(1, 2) + embedding
            height, width = level.shape[-2:]
            position = sine_position_encoding(height, width, value.shape[-1], device=level.device)
            keys.append(value + position.flatten(2).transpose(1, 2))
            values.append(value)
        return keys, values

    def _predict(
        self, embeddings: Tensor, mask_embeddings: Tensor, mask_features: Tensor | Sequence[Tensor]
    ) -> dict[str, Any]:
        """Class logits, and masks: multiplied out with features (B, C, H, W), a ``MaskProduct`` with a list of them."""
        masks: Tensor | MaskProduct
        if isinstance(mask_features, Tensor):
            masks = mask_logits(mask_embeddings, mask_features)
        else:
            masks = MaskProduct(mask_embeddings, mask_features)
        return {"pred_logits": self.class_embed(embeddings), "pred_masks": masks}


def _projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1)
    weight_init.c2_xavier_fill(convolution)
    return convolution
