# SPDX-License-Identifier: Apache-2.0
"""Points at which masks are compared instead of whole maps (PointRend, Sec. 3; Mask2Former, Sec. 3.3).

Coordinates are (x, y) in [0, 1] of the image. Random draws can be tied to one generator per image, so that a batch
split over several processes sees exactly the points of the undivided batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


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
    return torch.cat(drawn).to(device)


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
    nearest = logits.abs().topk(num_uncertain, dim=1, largest=False).indices
    # (M, uncertain) places among the candidates -> (M, uncertain, 2) points.
    chosen = candidates.gather(1, nearest.unsqueeze(2).expand(-1, -1, 2))
    uniform = draw_points(counts, num_points - num_uncertain, device=device, generators=generators)
    return torch.cat([chosen, uniform], dim=1)
