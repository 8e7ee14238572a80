# SPDX-License-Identifier: Apache-2.0
"""Backbones whose weights and maps have the channels of a pixel side by side in memory."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn


def build_ordered_backbone(cfg: CfgNode) -> Backbone:
    """Backbone of ``MODEL.BACKBONE.NAME``, in channels-last order if ``MODEL.BACKBONE.CHANNELS_LAST`` says so.

    The maps keep the order, so that what follows computes in it as well. Sums are taken in another order.
    """
    backbone: Backbone = build_backbone(cfg)
    if cfg.MODEL.BACKBONE.CHANNELS_LAST:
        backbone.to(memory_format=torch.channels_last)
        backbone.register_forward_pre_hook(_order_images)
    return backbone


def _order_images(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    images: Tensor = arguments[0]
    return (images.contiguous(memory_format=torch.channels_last), *arguments[1:])
