# SPDX-License-Identifier: Apache-2.0
"""The best class of each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

_NARROW = 1 << 8  # classes of which the number fits a byte
_TILE = 1 << 14  # pixels


def best_class(scores: Tensor) -> Tensor:
    """First class with the largest score of each pixel; the same as ``argmax(dim=0)``, NaN and ties included.

    Args:
        scores: (K, P) of a floating type.

    Returns:
        (P,) int64.
    """
    import torch

    if scores.device.type == "cpu" and scores.dtype == torch.float32 and len(scores) < _NARROW:
        return torch.from_numpy(_of_floats(scores.detach().numpy()))
    # A third of the time of argmax on a CPU.
    return scores.max(dim=0).indices


def _of_floats(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    num_classes = len(scores)
    best = np.empty(scores.shape[1], np.int64)
    # The first class has the largest weight: where several are equal it wins.
    weights = np.arange(num_classes, 0, -1, dtype=np.uint8)[:, None]
    for start in range(0, scores.shape[1], _TILE):
        tile = scores[:, start : start + _TILE]
        largest = tile.max(axis=0)
        # Bytes in place of numbers: comparing, weighing and the maximum cost less than finding a place.
        at_best = (tile == largest).view(np.uint8)
        if np.isnan(largest).any():
            at_best |= np.isnan(tile).view(np.uint8)
        np.multiply(at_best, weights, out=at_best)
        best[start : start + _TILE] = num_classes - at_best.max(axis=0).astype(np.int64)
    return best
