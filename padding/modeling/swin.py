# SPDX-License-Identifier: Apache-2.0
"""Swin as dense networks compute it: windows are filled up before they are shifted (Liu et al., 2103.14030, Sec. 3.2).

timm shifts first and fills up behind, which differs wherever a map is no multiple of the window; published segmentors
(Mask2Former's, those of ``transformers``) were trained in the other order. Imported where a Swin is built: loads timm.
"""

from typing import Any

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn


class FilledSwinBlock(SwinTransformerBlock):
    """A block of timm whose maps are whole windows; the same parameters."""

    def _attn(self, x: Tensor) -> Tensor:
        """Window attention of a map (B, h, w, C), filled up with zeros at the bottom and on the right."""
        height, width = x.shape[1:3]
        below, right = (-side % window for side, window in zip((height, width), self.window_size, strict=True))
        # (B, h, w, C): padding is given from the last dimension on.
        filled = F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x
        return super()._attn(filled)[:, :height, :width]


def fill_windows(network: nn.Module) -> None:
    """Make every block of a Swin of timm a ``FilledSwinBlock``, in place."""
    for module in network.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = FilledSwinBlock


def swin_options() -> dict[str, Any]:
    """What timm needs to build one for images of any size: every map has windows, shifted in every other block."""
    return {"strict_img_size": False, "always_partition": True}
