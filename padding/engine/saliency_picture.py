# SPDX-License-Identifier: Apache-2.0
"""Pictures of predicted saliency: a heat map over the image, from dark violet (0) to light yellow (1)."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

GAP_PX = 8
COLORS = "inferno"  # as bright as it is salient, so that it reads in grey as well


def draw_saliency(
    image: npt.NDArray[np.uint8], saliency: Tensor | npt.NDArray[np.floating], *, alpha: float = 0.7
) -> npt.NDArray[np.uint8]:
    """Draw saliency over its image.

    Args:
        image: (h, w, 3) uint8, RGB.
        saliency: (h, w) float in [0, 1], a tensor on the CPU or an array.
        alpha: opacity of the heat map, 0 shows the image alone.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        ValueError: if sizes differ or a value leaves [0, 1].
    """
    import matplotlib as mpl

    values = np.asarray(saliency, dtype=np.float64)
    if values.shape != image.shape[:2]:
        raise ValueError(f"saliency has shape {values.shape}, the image is {image.shape[:2]}; resize one of them")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"saliency must lie in [0, 1], got {values.min():.3g} to {values.max():.3g}")
    heat = 255 * mpl.colormaps[COLORS](values)[..., :3]
    return np.asarray(np.rint(alpha * heat + (1 - alpha) * image), dtype=np.uint8)


def beside(*pictures: npt.NDArray[np.uint8], axis: int = 1) -> npt.NDArray[np.uint8]:
    """Pictures (h, w, 3) uint8 of equal height in a row, or of equal width in a column (axis 0), with white gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP_PX
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for picture in pictures for piece in (picture, gap)][:-1], axis=axis)
