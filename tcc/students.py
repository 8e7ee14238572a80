# SPDX-License-Identifier: Apache-2.0
"""The two students of a cohort behind one interface: image -> logits and the features they are computed from.

A student is a backbone and a DeepLabV3+ head of its own (TCC, Sec. 3.1 and 4.1). Any pair can be named, also the same
backbone twice: then the initial values differ by their seeds, because equal students would agree for ever.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, CNNBlockBase, ResNet
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.deeplab import DeepLabOptions, DeepLabV3PlusHead
from padding.modeling.recompute import recompute_blocks
from padding.modeling.small_resnet import build_small_resnet_backbone
from padding.modeling.timm_backbone import TimmBackbone
from tcc.pvt import PVT_VARIANTS, PVTBlock, build_pvt

_RESNET_DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_BLOCKS = (CNNBlockBase, PVTBlock, ConvNeXtBlock)
# Far enough apart that runs with neighbouring seeds share no initial values.
_SEED_STEP = 100_003


class Student(nn.Module):
    """Backbone and head.

    Attributes:
        backbone: image -> maps by name.
        head: two of these maps -> logits and features.
        pixels: brings images to the normalisation of the backbone's weights; None: they have it.
    """

    def __init__(self, backbone: Backbone, head: DeepLabV3PlusHead, pixels: "Renormalize | None" = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pixels = pixels

    def forward(self, images: Tensor, *, feature_dropout: float = 0.0) -> dict[str, Tensor]:
        """Segment a batch.

        Args:
            images: (B, 3, H, W) float, normalised by MODEL.PIXEL_MEAN and PIXEL_STD; H and W are multiples of 32.
            feature_dropout: in training, the probability of dropping a channel of both maps that the head reads.

        Returns:
            ``logits`` (B, K, H/4, W/4); ``decoder`` (B, D, H/4, W/4), the features before the classifier; ``aspp``
            (B, A, h, w); ``backbone`` (B, C, h, w), the last map, and ``low_level`` (B, C', H/4, W/4), both as the
            backbone gives them, without the dropout.
        """
        features = self.backbone(images if self.pixels is None else self.pixels(images))
        low, last = features[self.head.low_name], features[self.head.high_name]
        # Both maps that the head reads, and only in training; what is compared (CFCD) stays whole.
        drop = feature_dropout if self.training else 0.0
        maps = {self.head.low_name: _drop_channels(low, drop), self.head.high_name: _drop_channels(last, drop)}
        return {**self.head(maps), "backbone": last, "low_level": low}


class Renormalize(nn.Module):
    """Images normalised by one mean and deviation, (B, 3, H, W), as if by another; padding keeps the first one's mean.

    So each student sees what its weights expect of one batch that both share.
    """

    factor: Tensor
    offset: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
    ):
        """Take mean and standard deviation of each channel in [0, 255], before and after."""
        super().__init__()
        of = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std, new_mean, new_std))
        old_mean, old_std, wanted_mean, wanted_std = of
        # Not persistent: numbers of the configuration, as the model's own.
        self.register_buffer("factor", (old_std / wanted_std).float(), persistent=False)
        self.register_buffer("offset", ((old_mean - wanted_mean) / wanted_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Same shape."""
        return images * self.factor + self.offset


def _renormalize(cfg: CfgNode, name: str) -> Renormalize | None:
    """Between the normalisation of the model and that of a student; None where they are one.

    Raises:
        ConfigError: if only one of the two keys is set, or to another number of channels.
    """
    node = cfg.MODEL.TCC[name]
    old = (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    new = (tuple(node.PIXEL_MEAN), tuple(node.PIXEL_STD))
    if not any(new) or new == old:
        return None
    if [len(values) for values in new] != [len(values) for values in old]:
        raise ConfigError(
            f"MODEL.TCC.{name}.PIXEL_MEAN {new[0]} and PIXEL_STD {new[1]} belong together: set both, to one number for "
            f"each of the {len(old[0])} channels of MODEL.PIXEL_MEAN, or neither"
        )
    return Renormalize(*old, *new)


def _drop_channels(features: Tensor, probability: float) -> Tensor:
    return F.dropout2d(features, probability) if probability > 0 else features


def build_student(cfg: CfgNode, name: str, num_classes: int) -> Student:
    """Build one student with random weights; the global random state is left as it is.

    Args:
        cfg: the full configuration; ``MODEL.TCC.<name>`` describes the student. The initial values follow from SEED and
            its SEED_OFFSET, or, with a negative SEED, from torch's current seed.
        name: "CNN" or "VIT".
        num_classes: K.

    Raises:
        ConfigError: for an unknown backbone, an output stride it does not have, or maps it does not give.
    """
    node = cfg.MODEL.TCC[name]
    # A seed of its own for each student: two students of one architecture would else start equal.
    seed = cfg.SEED if cfg.SEED >= 0 else torch.initial_seed()
    with seeded_torch(seed + _SEED_STEP * node.SEED_OFFSET):
        backbone = build_backbone_of(cfg, name)
        head = DeepLabV3PlusHead(
            input_channels=_input_channels(backbone, node, name),
            num_classes=num_classes,
            options=DeepLabOptions.from_node(node.HEAD),
        )
    if node.CHECKPOINT_ACTIVATIONS and not recompute_blocks(backbone, _BLOCKS):
        raise ConfigError(f"MODEL.TCC.{name}.CHECKPOINT_ACTIVATIONS: {node.BACKBONE} has no blocks that can do it")
    return Student(backbone, head, _renormalize(cfg, name))


def has_blocks(backbone: nn.Module) -> bool:
    """Whether CHECKPOINT_ACTIVATIONS can do something for a network."""
    return any(isinstance(module, _BLOCKS) for module in backbone.modules())


def build_backbone_of(cfg: CfgNode, name: str) -> Backbone:
    """Backbone of student ``name``, "CNN" or "VIT", with random weights.

    Raises:
        ConfigError: for an unknown backbone, or an output stride or kept part that it does not have.
    """
    node = cfg.MODEL.TCC[name]
    if node.BACKBONE in _RESNET_DEPTHS:
        backbone: Backbone = build_resnet(
            node.BACKBONE, output_stride=node.OUTPUT_STRIDE, norm=node.NORM, freeze_at=node.FREEZE_AT
        )
    elif node.BACKBONE == "small_resnet":
        backbone = _build_small_resnet(cfg, node)
    elif node.BACKBONE in PVT_VARIANTS:
        if node.FREEZE_AT:
            raise ConfigError(f"MODEL.TCC.{name}.FREEZE_AT is {node.FREEZE_AT}: no part of {node.BACKBONE} can be kept")
        backbone = build_pvt(node.BACKBONE, output_stride=node.OUTPUT_STRIDE, drop_path=node.DROP_PATH)
    elif node.BACKBONE in BACKBONE_REGISTRY:
        backbone = BACKBONE_REGISTRY.get(node.BACKBONE)(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    elif timm.is_model(node.BACKBONE):
        backbone = TimmBackbone(
            node.BACKBONE,
            output_stride=node.OUTPUT_STRIDE,
            drop_path=node.DROP_PATH,
            out_features=tuple(node.HEAD.IN_FEATURES) or ("res2", "res5"),
            norm=node.NORM,
            freeze_at=node.FREEZE_AT,
            channels_last=node.CHANNELS_LAST,
        )
    else:
        known = (*_RESNET_DEPTHS, *PVT_VARIANTS, "small_resnet")
        raise ConfigError(
            f"MODEL.TCC.{name}.BACKBONE is '{node.BACKBONE}'; there are {', '.join(known)}, every network of timm "
            "(timm.list_models() names them) and the names of Detectron2's BACKBONE_REGISTRY"
        )
    return backbone


def build_resnet(name: str, *, output_stride: int, norm: str = "BN", freeze_at: int = 0) -> ResNet:
    """Detectron2's ResNet in torchvision's form: 7x7 stem, stride in the 3x3 convolutions.

    Args:
        name: "resnet50" or "resnet101".
        output_stride: 32, 16 (res5 keeps the resolution, dilation 2) or 8 (also res4; dilations 2 and 4).
        norm: a name that Detectron2 knows.
        freeze_at: first parts that are not trained, 0 for none.

    Returns:
        Backbone with the maps res2 and res5.

    Raises:
        ConfigError: for another output stride.
    """
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"OUTPUT_STRIDE of {name} is {output_stride}; expected 8, 16 or 32")
    stages, stride, dilation, channels = [], 4, 1, 64
    for stage, num_blocks in enumerate(_RESNET_DEPTHS[name]):
        step = 1 if stage == 0 else 2  # the stem has reduced by 4 already
        # Past the output stride a stage keeps the resolution, and its convolutions are spread to see as far.
        if stride * step > output_stride:
            step, dilation = 1, dilation * 2
        stride *= step
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                stride_per_block=[step] + [1] * (num_blocks - 1),
                in_channels=channels,
                out_channels=256 * 2**stage,
                bottleneck_channels=64 * 2**stage,
                dilation=dilation,
                stride_in_1x1=False,
                norm=norm,
            )
        )
        channels = 256 * 2**stage
    stem = BasicStem(in_channels=3, out_channels=64, norm=norm)
    return ResNet(stem, stages, out_features=["res2", "res5"], freeze_at=freeze_at)


def _build_small_resnet(cfg: CfgNode, node: CfgNode) -> Backbone:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SMALL_RESNET.NORM = node.NORM
    cfg.MODEL.BACKBONE.FREEZE_AT = node.FREEZE_AT
    return build_small_resnet_backbone(cfg, ShapeSpec(channels=3))


def _input_channels(backbone: Backbone, node: CfgNode, name: str) -> dict[str, int]:
    """Names and channels of the low-level and the last map; checks that they are what the head expects."""
    shapes = backbone.output_shape()
    names = tuple(node.HEAD.IN_FEATURES) or (next(iter(shapes)), list(shapes)[-1])
    if len(names) != 2 or names[0] == names[1] or any(feature not in shapes for feature in names):
        raise ConfigError(
            f"MODEL.TCC.{name}.HEAD.IN_FEATURES is {tuple(node.HEAD.IN_FEATURES)}; expected a low-level and a last map "
            f"of {node.BACKBONE}, which gives {', '.join(shapes)}"
        )
    low, last = (shapes[feature] for feature in names)
    if last.stride != node.OUTPUT_STRIDE:
        raise ConfigError(
            f"MODEL.TCC.{name}.OUTPUT_STRIDE is {node.OUTPUT_STRIDE}, but '{names[1]}' of {node.BACKBONE} has stride "
            f"{last.stride}: set it to that, and HEAD.ASPP_DILATIONS to fit ((6, 12, 18) at 16, (3, 6, 9) at 32)"
        )
    return {names[0]: low.channels, names[1]: last.channels}


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from ``seed``; afterwards they go on as before."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the accelerators.
        torch.default_generator.manual_seed(seed % 2**63)
        yield
