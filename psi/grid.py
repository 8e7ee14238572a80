# SPDX-License-Identifier: Apache-2.0
"""Between pixels of the input and cells of the grid on which labels grow (PSI).

Cell (i, j) of stride s covers the pixels s i to s i + s - 1 and s j to s j + s - 1, as bilinear upsampling of the
scores has it; the grid of an H x W input is ceil(H / s) x ceil(W / s).
"""

import torch.nn.functional as F
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from psi.supervision import PixelSupervision, Supervision, is_label


def labels_to_grid(labels: Tensor, *, num_classes: int, stride: int) -> Tensor:
    """Label of each cell: the one that its labeled pixels share.

    A line of three pixels would vanish from a grid of four if the pixel in the corner decided.

    Args:
        labels: (B, H, W) int64; what is no class in [0, K) is unlabeled.
        num_classes: K.
        stride: s.

    Returns:
        (B, h, w) int64; ``IGNORE_LABEL`` for a cell without a labeled pixel, or with two classes.
    """
    # Lowest and highest class of each cell's s x s pixels; unlabeled ones are K for the first, -1 for the second.
    cells = _cells(labels.masked_fill(~is_label(labels, num_classes), num_classes), stride, num_classes)
    lowest = cells.amin(dim=(2, 4))
    highest = cells.masked_fill(cells == num_classes, -1).amax(dim=(2, 4))
    return lowest.masked_fill(lowest != highest, IGNORE_LABEL)


def valid_cells(valid: Tensor, *, stride: int) -> Tensor:
    """Cells with a pixel of the image: (B, H, W) bool -> (B, h, w) bool."""
    return _cells(valid, stride, False).any(dim=(2, 4))


def cells_to_pixels(maps: Tensor, *, size: tuple[int, int], stride: int) -> Tensor:
    """Give every pixel the value of its cell: (..., h, w) of any dtype -> (..., H, W)."""
    return maps.repeat_interleave(stride, dim=-2).repeat_interleave(stride, dim=-1)[..., : size[0], : size[1]]


def supervision_on_grid(
    scribbles: Tensor,
    valid: Tensor,
    *,
    num_classes: int,
    stride: int,
    stored: PixelSupervision | None = None,
) -> tuple[Supervision, Tensor]:
    """Bring scribbles, and labels that an earlier round diffused, to the grid.

    Args:
        scribbles: (B, H, W) int64.
        valid: (B, H, W) bool, False in padding; nothing there counts.
        num_classes: K.
        stride: s.
        stored: labels and weights as ``supervision_at_pixels`` made them of the same grid; None: scribbles alone.

    Returns:
        The supervision, and (B, h, w) bool, the cells of the image.
    """
    scribbles = scribbles.masked_fill(~valid, IGNORE_LABEL)
    on_grid = labels_to_grid(scribbles, num_classes=num_classes, stride=stride)
    cells = valid_cells(valid, stride=stride)
    if stored is None:
        return Supervision.of_labels(on_grid, num_classes=num_classes), cells
    drawn = is_label(on_grid, num_classes)
    touched = valid_cells(is_label(scribbles, num_classes), stride=stride)
    # All pixels of a cell that no scribble touches are equal. One with two classes drawn is as empty as at first.
    on_grid = on_grid.where(touched, stored.labels[:, ::stride, ::stride])
    strength = drawn.float().where(touched, stored.weights[:, ::stride, ::stride].float()) * cells
    supervision = Supervision.of_labels(on_grid, num_classes=num_classes, weights=strength, scribbles=drawn)
    return supervision, cells


def supervision_at_pixels(
    supervision: Supervision, scribbles: Tensor, valid: Tensor, *, stride: int, num_classes: int, soft: bool = False
) -> PixelSupervision:
    """Bring grown labels to the pixels and put the scribbles on top, which are finer than the grid.

    Args:
        supervision: on the grid.
        scribbles: (B, H, W) int64, the labels drawn by hand.
        valid: (B, H, W) bool; padding stays unlabeled.
        stride: s.
        num_classes: K.
        soft: keep several classes a pixel, at the cost of S maps.
    """
    size = (scribbles.shape[1], scribbles.shape[2])
    drawn = is_label(scribbles, num_classes) & valid
    labels = cells_to_pixels(supervision.labels, size=size, stride=stride).masked_fill(~valid, IGNORE_LABEL)
    labels = labels.where(~drawn, scribbles)
    weights = (cells_to_pixels(supervision.weights, size=size, stride=stride) * valid).masked_fill(drawn, 1.0)
    if not soft:
        return PixelSupervision(labels, weights, drawn)
    # A slot of several classes a pixel, without the drawn ones: these have one label, of weight 1.
    targets = cells_to_pixels(supervision.targets, size=size, stride=stride) * (valid & ~drawn)[:, None]
    return PixelSupervision(labels, weights, drawn, supervision.classes, targets)


def _cells(maps: Tensor, stride: int, fill: int) -> Tensor:
    """(B, H, W) -> (B, h, s, w, s), padded with ``fill`` below and on the right."""
    height, width = maps.shape[1:]
    padded = F.pad(maps, (0, -width % stride, 0, -height % stride), value=fill)
    return padded.view(len(maps), padded.shape[1] // stride, stride, padded.shape[2] // stride, stride)
