# SPDX-License-Identifier: Apache-2.0
"""The segmentation network of PSI: backbone, aggregation of patterns, pyramid and decoder (PSI, Sec. 3.1 and 3.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from padding.modeling.deeplab import ASPP, DeepLabDecoder, DeepLabOptions
from padding.modeling.memory_order import build_ordered_backbone
from psi.aggregation import Aggregation, AggregationOptions, build_aggregation

HIGH_LEVELS = ("aspp", "res5")


class SegmentationHead(nn.Module):
    """DeepLabV3+ whose decoder also takes the aggregated patterns; without an aggregation, DeepLabV3+ as it is.

    ``forward`` takes the backbone's maps by name, (B, C_l, h_l, w_l), and the pixels of the image, (B, H, W) bool or
    None, and returns logits (B, K, H/4, W/4).

    Attributes:
        aggregation: from the maps to (B, C, h, w); None without.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        options: DeepLabOptions,
        aggregation: Aggregation | None,
        high_level: str = "aspp",
        pre_reduce: bool = False,
    ) -> None:
        """Build the head.

        Args:
            input_shapes: stride and channels of each level by name, from fine to coarse.
            num_classes: K.
            options: of pyramid and decoder.
            aggregation: of ``build_aggregation``.
            high_level: "aspp", the pyramid on the last map; "res5", the last map after its lateral convolution.
            pre_reduce: a 1x1 convolution joins high level and patterns before they are enlarged.

        Raises:
            ConfigError: for an unknown ``high_level``, or a choice that needs an aggregation.
        """
        super().__init__()
        check_choice("MODEL.PSI.DECODER.HIGH_LEVEL", high_level, HIGH_LEVELS)
        if aggregation is None and (high_level == "res5" or pre_reduce):
            raise ConfigError(
                "MODEL.PSI.DECODER.HIGH_LEVEL 'res5' and PRE_REDUCE concern the aggregation; with "
                "MODEL.PSI.AGGREGATION 'none' leave them at 'aspp' and False"
            )
        self.low_name, *_, self.last_name = input_shapes
        self.aggregation = aggregation
        last_channels = input_shapes[self.last_name].channels
        self.aspp = ASPP(last_channels, options) if high_level == "aspp" else None
        pattern_channels = [] if aggregation is None else [aggregation.out_channels]
        high_channels = options.aspp_channels if self.aspp is not None else pattern_channels[0]
        self.reduce = None
        if pre_reduce:
            self.reduce = _conv1x1(high_channels + pattern_channels[0], options.aspp_channels, options.norm)
            high_channels, pattern_channels = options.aspp_channels, []
        self.decoder = DeepLabDecoder(
            low_channels=input_shapes[self.low_name].channels,
            high_channels=high_channels,
            num_classes=num_classes,
            options=options,
            extra_channels=pattern_channels,
        )

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Segment; see the class."""
        patterns: list[Tensor] = []
        projected: Mapping[str, Tensor] = {}
        if self.aggregation is not None:
            # Laterals once: the decoder may take the projected last map ("res5") as well as the aggregate.
            projected = self.aggregation.laterals(features)
            # The aggregate, on the destination's grid; the mask of valid pixels keeps padding out of its neighbors.
            patterns = [self.aggregation.aggregate(projected, valid)]
        high = self.aspp(features[self.last_name]) if self.aspp is not None else projected[self.last_name]
        if self.reduce is not None:
            # Reduced at the resolution of the coarse map, where 1x1 is cheap (PRE_REDUCE).
            size = high.shape[-2:]
            resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in patterns]
            high, patterns = self.reduce(torch.cat([high, *resized], dim=1)), []
        return self.decoder(features[self.low_name], high, patterns)[0]


class SegmentationNetwork(nn.Module):
    """Backbone and head: images (B, 3, H, W) float, normalised -> logits (B, K, ceil(H/4), ceil(W/4))."""

    def __init__(self, backbone: Backbone, head: SegmentationHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Segment; ``valid`` (B, H, W) bool keeps padding out of the aggregation."""
        return self.head(self.backbone(images), valid)


def build_network(cfg: CfgNode, num_classes: int) -> SegmentationNetwork:
    """Build the network with random weights from MODEL.BACKBONE and MODEL.PSI.

    Raises:
        ValueError: if the backbone lacks a level of MODEL.PSI.IN_FEATURES, or a key has an unknown value.
    """
    node = cfg.MODEL.PSI
    backbone = build_ordered_backbone(cfg)
    shapes = _input_shapes(backbone, node.IN_FEATURES, cfg.MODEL.BACKBONE.NAME)
    head = SegmentationHead(
        shapes,
        num_classes=num_classes,
        options=replace(DeepLabOptions.from_node(node.DECODER), init=node.DECODER.INIT),
        aggregation=build_aggregation(node.AGGREGATION, shapes, AggregationOptions.from_node(node.CPP)),
        high_level=node.DECODER.HIGH_LEVEL,
        pre_reduce=node.DECODER.PRE_REDUCE,
    )
    return SegmentationNetwork(backbone, head)


def _input_shapes(backbone: Backbone, names: Sequence[str], backbone_name: str) -> dict[str, ShapeSpec]:
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing or len(names) < 2:
        raise ConfigError(
            f"MODEL.PSI.IN_FEATURES is {list(names)}, but {backbone_name} gives {', '.join(shapes)}; for Detectron2's "
            "ResNet name the levels in MODEL.RESNETS.OUT_FEATURES as well"
        )
    return {name: shapes[name] for name in names}


def _conv1x1(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    layer = Conv2d(in_channels, out_channels, 1, bias=not norm, norm=get_norm(norm, out_channels), activation=nn.ReLU())
    weight_init.c2_msra_fill(layer)
    return layer
