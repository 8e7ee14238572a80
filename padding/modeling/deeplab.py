# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3+ head with true global pooling: logits and the features behind them, at any image size (1802.02611).

Detectron2's own head fixes the pooling window to the training crop, so that other sizes raise, and returns only losses
in training (detectron2 issues 1887 and 3197). Its pyramid is reused here; all resizing is bilinear to an explicit size
without aligned corners.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2 import layers
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice

_FILLS = {"xavier": weight_init.c2_xavier_fill, "kaiming": weight_init.c2_msra_fill}


@dataclass(frozen=True)
class DeepLabOptions:
    """Sizes and layers of the head; the defaults are those of Detectron2's DeepLabV3+ at output stride 16.

    Attributes:
        project_channels: of the low-level map after its 1x1 convolution.
        aspp_channels: of each branch of the pyramid and of its output.
        decoder_channels: of the two 3x3 convolutions.
        dilations: of the three atrous branches, in cells of the last map.
        dropout: probability after the pyramid.
        norm: "BN", "SyncBN", "GN", "FrozenBN" or "" for none.
        pool_norm: the same for the image-pooling branch, which sees one value per image and channel: with a batch norm,
            training needs more than one image.
        separable: atrous branches are depthwise, then pointwise (the DSC-ASPP of SalSeg).
        init: initial values of the convolutions: "xavier", with a classifier near 0; or "kaiming" (He et al.,
            1502.01852) in all of them, whose variance fits the ReLU behind.

    Raises:
        ConfigError: for another ``init``.
    """

    project_channels: int = 48
    aspp_channels: int = 256
    decoder_channels: int = 256
    dilations: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1
    norm: str = "BN"
    pool_norm: str = ""
    separable: bool = False
    init: str = "xavier"

    def __post_init__(self) -> None:
        check_choice("INIT of the head", self.init, _FILLS)

    @classmethod
    def from_node(cls, node: CfgNode) -> "DeepLabOptions":
        """Read PROJECT_CHANNELS, ASPP_CHANNELS, DECODER_CHANNELS, ASPP_DILATIONS, ASPP_DROPOUT, NORM and POOL_NORM."""
        return cls(
            project_channels=node.PROJECT_CHANNELS,
            aspp_channels=node.ASPP_CHANNELS,
            decoder_channels=node.DECODER_CHANNELS,
            dilations=tuple(node.ASPP_DILATIONS),
            dropout=node.ASPP_DROPOUT,
            norm=node.NORM,
            pool_norm=node.POOL_NORM,
        )


class ASPP(layers.ASPP):
    """Detectron2's atrous spatial pyramid pooling; pooling is global, its norm a choice.

    ``forward`` takes (B, C, h, w) float and returns (B, aspp_channels, h, w).
    """

    def __init__(self, in_channels: int, options: DeepLabOptions) -> None:
        """Build the pyramid.

        Args:
            in_channels: C.
            options: ``aspp_channels``, ``dilations``, ``dropout``, ``norm``, ``pool_norm`` and ``separable`` count.

        Raises:
            ConfigError: unless there are three dilations.
        """
        if len(options.dilations) != 3:
            raise ConfigError(f"ASPP_DILATIONS is {options.dilations}; expected three numbers, e.g. (6, 12, 18)")
        channels = options.aspp_channels
        super().__init__(
            in_channels,
            channels,
            options.dilations,
            norm=_flexible_norm(options.norm),
            activation=nn.ReLU(),
            dropout=options.dropout,
        )
        if options.separable:
            # The 1x1 branch, then three atrous ones: with DSC those alone are replaced.
            for index, dilation in enumerate(options.dilations, start=1):
                self.convs[index] = _separable_conv(in_channels, channels, dilation, options.norm)
        # Behind the pooling itself, which Detectron2 leaves without a norm.
        if options.pool_norm:
            self.convs[-1][1] = _conv(in_channels, channels, 1, options.pool_norm)
        if options.init != "xavier":  # what they have
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    _FILLS[options.init](module)

    def forward(self, features: Tensor) -> Tensor:
        """Join the pyramid's branches.

        Raises:
            ValueError: if a batch norm would have to be trained on a single value per channel.
        """
        if self.training and features.numel() == features.shape[1]:
            _refuse_batch_norm(self, "NORM", "the last map has a single cell and the batch one image")
        # An average over all cells is one value per image and channel.
        elif self.training and len(features) == 1:
            _refuse_batch_norm(self.convs[-1], "POOL_NORM", "the image-pooling branch sees one value per channel")
        return super().forward(features)


class DeepLabDecoder(nn.Module):
    """Joins low-level and high-level features at the resolution of the former, and classifies each cell."""

    def __init__(
        self,
        *,
        low_channels: int,
        high_channels: int,
        num_classes: int,
        options: DeepLabOptions,
        extra_channels: Sequence[int] = (),
    ) -> None:
        """Build the decoder.

        Args:
            low_channels: of the low-level map, stride 4.
            high_channels: of the high-level map, usually the pyramid's output.
            num_classes: K.
            options: ``project_channels``, ``decoder_channels`` and ``norm`` count.
            extra_channels: of further maps that join between projection and fusion.
        """
        super().__init__()
        width = options.decoder_channels
        # Few channels of the low level, so that they do not outweigh the pyramid's (DeepLabV3+, Sec. 4.1).
        how: dict[str, str] = {"norm": options.norm, "init": options.init}
        self.project = _conv(low_channels, options.project_channels, 1, **how)
        joined = options.project_channels + high_channels + sum(extra_channels)
        self.fuse = nn.Sequential(_conv(joined, width, 3, **how), _conv(width, width, 3, **how))
        self.predictor = Conv2d(width, num_classes, kernel_size=1)
        if options.init == "kaiming":
            nn.init.kaiming_normal_(self.predictor.weight)  # of its inputs: it has few outputs, and no ReLU
        else:
            nn.init.normal_(self.predictor.weight, mean=0.0, std=0.001)  # nearly uniform scores at the start
        nn.init.zeros_(self.predictor.bias)

    def forward(self, low_level: Tensor, high_level: Tensor, extra: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            low_level: (B, low_channels, h, w) float.
            high_level: (B, high_channels, any size), resized to (h, w).
            extra: further maps of any size, in the order of ``extra_channels``.

        Returns:
            Logits (B, K, h, w), and the (B, decoder_channels, h, w) features they are computed from.
        """
        size = low_level.shape[-2:]
        # The low-level map is projected, all others are enlarged to it; without aligned corners as everywhere here.
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (high_level, *extra)]
        # (B, 48 + 256 + extra, h, w): every map at the size of the low-level one.
        features = self.fuse(torch.cat([self.project(low_level), *resized], dim=1))
        return self.predictor(features), features


class DeepLabV3PlusHead(nn.Module):
    """Pyramid on the last map, decoder on the first; ``forward`` returns every stage of it."""

    def __init__(
        self,
        *,
        input_channels: Mapping[str, int],
        num_classes: int,
        options: DeepLabOptions | None = None,
    ) -> None:
        """Build the head.

        Args:
            input_channels: name and channels of the low-level map, then of the last map.
            num_classes: K.
            options: sizes and layers.

        Raises:
            ValueError: unless two maps are named.
        """
        super().__init__()
        if len(input_channels) != 2:
            raise ValueError(f"the head reads a low-level map and a last map, got {list(input_channels)}")
        options = options or DeepLabOptions()
        self.low_name, self.high_name = input_channels
        self.aspp = ASPP(input_channels[self.high_name], options)
        self.decoder = DeepLabDecoder(
            low_channels=input_channels[self.low_name],
            high_channels=options.aspp_channels,
            num_classes=num_classes,
            options=options,
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Segment.

        Args:
            features: the backbone's maps by name; the two named at construction are read.

        Returns:
            ``logits`` (B, K, H/4, W/4), ``aspp`` (B, aspp_channels, size of the last map) and ``decoder``
            (B, decoder_channels, H/4, W/4), for a low-level map of stride 4.
        """
        aspp = self.aspp(features[self.high_name])
        logits, decoder = self.decoder(features[self.low_name], aspp)
        return {"logits": logits, "aspp": aspp, "decoder": decoder}


def _conv(in_channels: int, out_channels: int, size: int, norm: str, init: str = "xavier") -> Conv2d:
    """Convolution that keeps the size of the map, norm and ReLU."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        padding=size // 2,
        bias=not norm,
        norm=layers.get_norm(_flexible_norm(norm), out_channels),
        activation=nn.ReLU(),
    )
    _FILLS[init](layer)
    return layer


def _separable_conv(in_channels: int, out_channels: int, dilation: int, norm: str) -> nn.Sequential:
    # Nothing between the two: with a norm there, SalSeg's number of parameters (46.81 M) is not met.
    depthwise = Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=not norm
    )
    weight_init.c2_xavier_fill(depthwise)
    return nn.Sequential(depthwise, _conv(in_channels, out_channels, 1, norm))


def _flexible_norm(name: str) -> str | Callable[[int], nn.Module]:
    """Detectron2 splits every group norm in 32: 48 channels cannot be, and 32 would be groups of one channel."""
    if name != "GN":
        return name
    return lambda channels: nn.GroupNorm(min(math.gcd(32, channels), max(channels // 2, 1)), channels)


def _refuse_batch_norm(module: nn.Module, key: str, why: str) -> None:
    # SyncBatchNorm is no BatchNorm2d: with several processes it has several values.
    if any(isinstance(part, nn.BatchNorm2d) and part.training for part in module.modules()):
        raise ConfigError(
            f"batch norm cannot be trained here: {why}. Train on more than one image or larger crops, or set the "
            f'head\'s {key} to "GN" or "".'
        )
