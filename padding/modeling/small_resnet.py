# SPDX-License-Identifier: Apache-2.0
"""A small residual network for generated data and tests, made of Detectron2's own blocks.

At the default widths (24, 48, 96, 96) it has 0.57 M parameters. Maps res2 to res5 have strides 4, 8, 16 and 32, so it
takes the place of ResNet-50 in every model here; with OUTPUT_STRIDE 16 that of a dilated one (res5 keeps the size of
res4, without dilation: its maps are small enough).
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from fvcore.nn import weight_init

from padding.errors import ConfigError

_STAGES = ("res2", "res3", "res4", "res5")


class StridedBasicBlock(BasicBlock):
    """Detectron2's basic block, which cannot shrink a map without changing its channels; this one can."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        if in_channels == out_channels and stride != 1:
            self.shortcut = Conv2d(
                in_channels, out_channels, kernel_size=1, stride=stride, bias=False, norm=get_norm(norm, out_channels)
            )
            weight_init.c2_msra_fill(self.shortcut)


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the network from ``MODEL.SMALL_RESNET``; ``MODEL.BACKBONE.FREEZE_AT`` counts as for Detectron2's ResNet.

    Args:
        cfg: the config.
        input_shape: channels of the image.

    Returns:
        Backbone with maps res2, res3, res4, res5.

    Raises:
        ConfigError: if channels or block counts are not given for exactly four stages, or for another output stride.
    """
    node = cfg.MODEL.SMALL_RESNET
    for key in ("OUT_CHANNELS", "NUM_BLOCKS"):
        if len(node[key]) != len(_STAGES):
            raise ConfigError(
                f"MODEL.SMALL_RESNET.{key} is {list(node[key])}, expected one number for each of {', '.join(_STAGES)}"
            )
    stem = BasicStem(in_channels=input_shape.channels, out_channels=node.STEM_OUT_CHANNELS, norm=node.NORM)
    if node.OUTPUT_STRIDE not in (16, 32):
        raise ConfigError(f"MODEL.SMALL_RESNET.OUTPUT_STRIDE is {node.OUTPUT_STRIDE}, expected 16 or 32")
    stages: list[Any] = []
    in_channels = node.STEM_OUT_CHANNELS
    for index, (out_channels, num_blocks) in enumerate(zip(node.OUT_CHANNELS, node.NUM_BLOCKS, strict=True)):
        # The stem has reduced by 4 already.
        first_stride = 1 if index == 0 or (index == 3 and node.OUTPUT_STRIDE == 16) else 2
        stages.append(
            ResNet.make_stage(
                block_class=StridedBasicBlock,
                num_blocks=num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=node.NORM,
            )
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=list(_STAGES), freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
