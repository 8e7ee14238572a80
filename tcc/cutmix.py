# SPDX-License-Identifier: Apache-2.0
"""CutMix for segmentation: boxes of one image take the place of another's (CutMix-Seg, as used by CPS).

A mask of several boxes in which overlaps cancel; images, scores and valid pixels are mixed by the same mask. Which
image is the second one is explicit: published loaders have mixed an image with itself without meaning to.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from detectron2.config import CfgNode
from torch import Tensor

from padding.errors import ConfigError, check_choice
from padding.modeling.batching import to_device

Partner = Literal["roll", "second_stream", "self"]


def box_mask(size: tuple[int, int], *, num_boxes: int = 3, area: tuple[float, float] = (0.25, 0.5)) -> Tensor:
    """Random boxes, of which each inverts what it covers.

    For each box p ~ U(area) and u ~ U(0, 1): its height is p^u and its width p^(1 - u) of the image's, both times
    sqrt(1 / num_boxes), so that the areas of all boxes together are p; it lies inside, anywhere. Random numbers come
    from torch's global generator.

    Args:
        size: (H, W).
        num_boxes: >= 1.
        area: range of the summed area as a share of the image, in (0, 1].

    Returns:
        (H, W) bool on the CPU; True where the second image is taken.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    for _ in range(num_boxes):
        p, u, top, left = torch.rand(4).tolist()
        p = area[0] + (area[1] - area[0]) * p
        shrink = num_boxes**-0.5
        height = round(size[0] * p**u * shrink)
        width = round(size[1] * p ** (1 - u) * shrink)
        y, x = round((size[0] - height) * top), round((size[1] - width) * left)
        mask[y : y + height, x : x + width] ^= True
    return mask


@dataclass(frozen=True)
class Mixing:
    """One draw: applies the same mask to whatever belongs to the images of a batch.

    Attributes:
        mask: (B, H, W) bool; True where the partner is taken.
        partner: how the partner is found in what ``__call__`` is given.
    """

    mask: Tensor
    partner: Partner

    def __call__(self, base: Tensor, other: Tensor) -> Tensor:
        """Mix (B, ..., H, W) tensors; ``other`` is ``base`` itself unless partners come from a second stream."""
        # Partners by rolling: every image is mixed once and serves once, and none meets itself.
        if self.partner == "roll":
            other = other.roll(-1, dims=0)
        elif self.partner == "self":
            other = other.flip(-1)
        # (B, H, W) -> (B, 1, ..., H, W), for pixels, valid pixels and logits alike.
        mask = self.mask.view(len(self.mask), *[1] * (base.dim() - 3), *self.mask.shape[-2:])
        return torch.where(mask, other, base)


@dataclass(frozen=True)
class CutMix:
    """How unlabeled images are mixed (MODEL.TCC.CUTMIX).

    Attributes:
        prob: probability that an image is mixed at all.
        num_boxes: see ``box_mask``.
        area: see ``box_mask``.
        partner: "roll", the next image of the batch; "second_stream", one of another stream; "self", the image's own
            mirror image.
    """

    prob: float = 1.0
    num_boxes: int = 3
    area: tuple[float, float] = (0.25, 0.5)
    partner: Partner = "roll"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: names the key.
        """
        check_choice("MODEL.TCC.CUTMIX.PARTNER", self.partner, ("roll", "second_stream", "self"))
        if not (0 <= self.prob <= 1 and self.num_boxes >= 1 and 0 < self.area[0] <= self.area[1] <= 1):
            raise ConfigError(
                f"MODEL.TCC.CUTMIX has PROB {self.prob}, NUM_BOXES {self.num_boxes} and AREA {self.area}; expected a "
                "probability, at least one box, and shares 0 < low <= high <= 1"
            )

    def draw(self, batch_size: int, size: tuple[int, int], *, device: torch.device | str) -> Mixing:
        """Draw the masks of a batch.

        Args:
            batch_size: B.
            size: (H, W).
            device: where what is mixed lives.

        Raises:
            ConfigError: if an image would be its own partner.
        """
        if self.partner == "roll" and batch_size < 2:
            raise ConfigError(
                "MODEL.TCC.CUTMIX.PARTNER 'roll' takes the next unlabeled image of the batch, but there is one per "
                "process; use at least two (SOLVER.IMS_PER_BATCH_UNLABELED), or PARTNER 'second_stream'"
            )
        masks = []
        for chance in torch.rand(batch_size).tolist():
            # A draw for every image, mixed or not: PROB does not change the boxes of the others.
            mask = box_mask(size, num_boxes=self.num_boxes, area=self.area)
            masks.append(mask if chance < self.prob else torch.zeros_like(mask))
        return Mixing(to_device(torch.stack(masks), device), self.partner)


def build_cutmix(cfg: CfgNode) -> CutMix | None:
    """CutMix of MODEL.TCC.CUTMIX; None if it is off.

    Raises:
        ValueError: for a value that makes no sense.
    """
    node = cfg.MODEL.TCC.CUTMIX
    if not node.ENABLED:
        return None
    return CutMix(prob=node.PROB, num_boxes=node.NUM_BOXES, area=(node.AREA[0], node.AREA[1]), partner=node.PARTNER)
