# SPDX-License-Identifier: Apache-2.0
"""Sine position encoding of a feature map (DETR, section "Architecture"; used by Mask2Former in both decoders)."""

import math

import torch
from torch import Tensor

_EPS = 1e-6  # keeps the normalisation of published weights, which add it to the map size


def sine_position_encoding(
    height: int, width: int, num_channels: int, *, temperature: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Encode every pixel by sines and cosines of its normalised row and column.

    Rows and columns count from 1 and are scaled so that the last one becomes 2 pi. The first half of the channels
    encodes the row, the second half the column; within a half, sine and cosine alternate.

    Args:
        height: rows H of the map, >= 1.
        width: columns W of the map, >= 1.
        num_channels: C, a multiple of 4.
        temperature: ratio between the longest and the shortest wavelength.
        device: where the result shall live.

    Returns:
        (1, C, H, W) float32 in [-1, 1], to be broadcast over the batch.

    Raises:
        ValueError: if ``num_channels`` is not a multiple of 4.
    """
    if num_channels % 4:
        raise ValueError(
            f"sine_position_encoding: got {num_channels} channels, expected a multiple of 4 "
            "(row and column, each with sine and cosine); change the width of the model"
        )
    num_waves = num_channels // 4
    exponents = torch.arange(num_waves, dtype=torch.float32, device=device) / num_waves
    wavelengths = temperature**exponents

    def encode_axis(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angles = (steps / (length + _EPS) * (2 * math.pi))[:, None] / wavelengths
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).t()  # (C/2, length)

    rows = encode_axis(height)[:, :, None].expand(-1, -1, width)
    columns = encode_axis(width)[:, None, :].expand(-1, height, -1)
    return torch.cat((rows, columns))[None]
