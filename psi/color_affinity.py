# SPDX-License-Identifier: Apache-2.0
"""Colour affinity: how much a cell looks like the labels of a class around it, for label diffusion on photographs.

The paper's growth asks the network's scores alone. Colours are known before the network has learned anything, and they
change where objects end; this extension is off by default (MODEL.PSI.SLD.AFFINITY).

Shape letters: B images, S slots (classes present in an image), h w cells of the grid.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from padding.errors import ConfigError, check_choice

MODES = ("none", "gate", "factor")
_KEY = "MODEL.PSI.SLD.AFFINITY"


@dataclass(frozen=True)
class AffinityOptions:
    """What the keys MODEL.PSI.SLD.AFFINITY say.

    Attributes:
        mode: "none"; "gate": a cell enters a class only with an affinity of at least ``minimum``; "factor": scores are
            multiplied with it before they meet the threshold, which is the threshold divided by it.
        sigma: distance of colours at which the affinity is exp(-1/2), > 0; black and white are sqrt(3) apart.
        minimum: in (0, 1].

    Raises:
        ConfigError: names the key.
    """

    mode: str = "none"
    sigma: float = 0.1
    minimum: float = 0.5

    def __post_init__(self) -> None:
        check_choice(f"{_KEY}.MODE", self.mode, MODES)
        if self.sigma <= 0:
            raise ConfigError(f"{_KEY}.SIGMA is {self.sigma}; expected a distance of colours in 0 to 1, positive")
        if not 0 < self.minimum <= 1:
            raise ConfigError(f"{_KEY}.MIN is {self.minimum}; expected an affinity above 0, at most 1")

    @classmethod
    def from_node(cls, node: CfgNode) -> "AffinityOptions":
        """Read MODEL.PSI.SLD.AFFINITY."""
        return cls(mode=node.MODE, sigma=node.SIGMA, minimum=node.MIN)


def cell_colors(images: Tensor, size: tuple[int, int], *, stride: int) -> Tensor:
    """Mean colour of each cell.

    Args:
        images: (B, 3, H, W), values in [0, 255].
        size: (h, w) of the grid.
        stride: input pixels per cell.

    Returns:
        (B, 3, h, w) float32 in [0, 1]; a cell that the image cuts has the mean of what it shows.
    """
    height, width = images.shape[-2:]
    colors = F.pad(images.float(), (0, size[1] * stride - width, 0, size[0] * stride - height))
    # Zeros of the padding are divided out again.
    shown = F.pad(torch.ones_like(images[:1, :1], dtype=torch.float32), (0, size[1] * stride - width, 0, 0))
    shown = F.pad(shown, (0, 0, 0, size[0] * stride - height))
    return F.avg_pool2d(colors, stride) / F.avg_pool2d(shown, stride) / 255.0


def color_affinity(colors: Tensor, labeled: Tensor, radius: int, *, sigma: float) -> Tensor:
    """exp(-d^2 / (2 sigma^2)), d the distance of a cell's colour to the mean colour of the labels around it.

    "Around" is the square window of the diffusion: cells at a Chebyshev distance of at most ``radius``.

    Args:
        colors: (B, 3, h, w) float in [0, 1].
        labeled: (B, S, h, w) bool, labels of each class.
        radius: in cells.
        sigma: > 0.

    Returns:
        (B, S, h, w) float32 in [0, 1]; 0 where no label of the class is near.
    """
    masks = labeled.float()
    count = _window_mean(masks, radius)
    # (B, 3, S, h, w) as (B, 3 S, h, w): the colours of each class alone.
    colored = (colors[:, :, None] * masks[:, None]).flatten(1, 2)
    means = _window_mean(colored, radius).unflatten(1, (3, -1)) / count[:, None].clamp_min(1e-6)
    distance = (colors[:, :, None] - means).square().sum(dim=1)
    return torch.exp(-distance / (2.0 * sigma**2)) * (count > 0)


def _window_mean(maps: Tensor, radius: int) -> Tensor:
    """Mean over square windows, zeros beyond the border: two one-dimensional means in place of a square one."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(maps, (side, 1), stride=1, padding=(radius, 0))
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, radius))
