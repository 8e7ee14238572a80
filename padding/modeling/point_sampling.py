# SPDX-License-Identifier: Apache-2.0
"""Points at which masks are compared instead of whole maps (PointRend, Sec. 3; Mask2Former, Sec. 3.3).

Coordinates are (x, y) in [0, 1] of the image. Random draws can be tied to one generator per image, so that a batch
split over several processes sees exactly the points of the undivided batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from padding.modeling.batching import to_device

Generators = torch.Generator | Sequence[torch.Generator] | None
_ROWS_AT_A_TIME = 4  # of points: what is computed of them stays in the cache of a CPU


def image_generators(seeds: Sequence[int] | None) -> list[torch.Generator] | None:
    """One CPU generator per image; the same seed gives the same points on every device. None stays None."""
    return None if seeds is None else [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def draw_points(
    counts: Sequence[int], num_points: int, *, device: torch.device, generators: Generators = None
) -> Tensor:
    """Draw uniform points for the rows of several images.

    Args:
        counts: rows of each image.
        num_points: points of each row.
        device: where the result lives.
        generators: None for the global state, one for all images, or one per image.

    Returns:
        (sum of counts, num_points, 2) float in [0, 1).
    """
    if generators is None:
        return torch.rand(sum(counts), num_points, 2, device=device)
    per_image = [generators] * len(counts) if isinstance(generators, torch.Generator) else generators
    drawn = [
        torch.rand(count, num_points, 2, generator=generator, device=generator.device)
        for count, generator in zip(counts, per_image, strict=True)
    ]
    return to_device(torch.cat(drawn), device)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly at points; outside the outermost pixel centres the border fades to zero.

    Args:
        maps: (N, C, H, W) float.
        points: (N, P, 2) float in [0, 1].

    Returns:
        (N, C, P) float.
    """
    # (N, P, 2) -> (N, P, 1, 2) in [-1, 1]: a grid of one column; (N, C, P, 1) comes back.
    grid = (2.0 * points - 1.0).unsqueeze(2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(3)


class MaskReader:
    """Masks of one image that are read at points again and again: what ``sample_at`` reads, without float copies.

    Args:
        masks: (N, H, W) bool.
    """

    def __init__(self, masks: Tensor) -> None:
        self._size = (masks.shape[-2], masks.shape[-1])
        # (N, H + 1, W + 1) uint8: the four pixels around every place between pixel centres, a bit each, so that one
        # byte is read in place of four. Outside the mask is no mask.
        self._corners = torch.cat([_corner_bits(part) for part in masks.split(1)])

    def at(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Read bilinearly.

        Args:
            points: (M, P, 2) float in [0, 1], those of each row; or (1, P, 2), the same for all N masks.
            rows: (M,) int64, the mask that is read at each row of points; None: all N at the same points.

        Returns:
            (M, P) or (N, P) float in [0, 1], without gradient.
        """
        if rows is None:
            return self._read(points, None)
        parts = zip(points.split(_ROWS_AT_A_TIME), rows.split(_ROWS_AT_A_TIME), strict=True)
        return torch.cat([self._read(*part) for part in parts]) if len(rows) else points.new_zeros(points.shape[:2])

    @torch.no_grad()
    def _read(self, points: Tensor, rows: Tensor | None) -> Tensor:
        height, width = self._size
        # As grid_sample computes places: pixel centres lie at k + 1/2.
        x, y = (((2.0 * points[..., i] - 1.0 + 1.0) * size - 1.0) / 2.0 for i, size in ((0, width), (1, height)))
        left, top = x.floor(), y.floor()
        across, down = x - left, y - top
        place = (top.long() + 1) * (width + 1) + (left.long() + 1)
        if rows is None:
            bits = self._corners.flatten(1).index_select(1, place[0])
        else:
            place += rows[:, None] * ((height + 1) * (width + 1))
            bits = self._corners.flatten().index_select(0, place.flatten()).view(place.shape)
        corner = [((bits >> i) & 1).to(points.dtype) for i in range(4)]
        upper = torch.lerp(corner[0], corner[1], across)
        return torch.lerp(upper, torch.lerp(corner[2], corner[3], across), down)


def _corner_bits(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, H + 1, W + 1) uint8: bits 0 to 3 for upper left and right, lower left and right."""
    padded = F.pad(masks.view(torch.uint8), (1, 1, 1, 1))
    pairs = padded[:, :, :-1] | (padded[:, :, 1:] << 1)
    return pairs[:, :-1] | (pairs[:, 1:] << 2)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    counts: Sequence[int],
    *,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generators: Generators = None,
) -> Tensor:
    """Points near the predicted borders, mixed with uniform ones (PointRend, importance sampling).

    Args:
        mask_logits: (M, H, W) float, the rows of all images one after the other.
        counts: rows of each image, sum M.
        num_points: points kept of each row.
        oversample_ratio: candidates per kept point, >= 1.
        importance_sample_ratio: share of the points that are the candidates of smallest |logit|, in [0, 1].
        generators: as in ``draw_points``.

    Returns:
        (M, num_points, 2) float in [0, 1).
    """
    num_uncertain = int(importance_sample_ratio * num_points)
    device = mask_logits.device
    candidates = draw_points(counts, int(num_points * oversample_ratio), device=device, generators=generators)
    # The logit at the point decides: between pixels of logit -1 and 1 lies a border, though neither is uncertain.
    logits = sample_at(mask_logits.unsqueeze(1), candidates).squeeze(1)
    nearest = logits.abs().topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    # (M, uncertain) places among the candidates -> (M, uncertain, 2) points.
    chosen = candidates.gather(1, nearest.unsqueeze(2).expand(-1, -1, 2))
    uniform = draw_points(counts, num_points - num_uncertain, device=device, generators=generators)
    return torch.cat([chosen, uniform], dim=1)
