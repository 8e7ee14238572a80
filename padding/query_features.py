# SPDX-License-Identifier: Apache-2.0
"""What of the backbone lies under each query's mask, beside the query's own embedding (not in the paper).

A segmentor that saw a hundred photographs knows little of classes it was not taught; the frozen backbone below it knows
more. Pure arithmetic.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-6


def pool_under_masks(features: Sequence[Tensor], mask_logits: Tensor) -> Tensor:
    """Mean of each backbone map under each query's mask, brought to mean 0 and variance 1 over the channels.

    Args:
        features: maps (B, C_i, h_i, w_i) float, of any strides.
        mask_logits: (B, Q, H, W) float; the sigmoid weighs the pixels, so that no mask is empty.

    Returns:
        (B, Q, C) float32, C the sum of the C_i.
    """
    shares = mask_logits.float().sigmoid()
    parts = []
    for level in features:
        # (B, Q, h w) @ (B, h w, C): a weighted mean of the cells.
        share = F.interpolate(shares, size=level.shape[-2:], mode="area").flatten(2)
        pooled = share @ level.float().flatten(2).mT / share.sum(dim=-1, keepdim=True).clamp_min(_SMALLEST)
        # Maps of different stages differ in scale by orders of magnitude.
        parts.append(F.layer_norm(pooled, pooled.shape[-1:]))
    return torch.cat(parts, dim=-1)
