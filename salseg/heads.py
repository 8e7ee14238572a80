# SPDX-License-Identifier: Apache-2.0
"""Pyramid, decoder sizes and saliency branch of SalSeg (Eq. 1 to 4).

Sizes follow from the published counts: plain pyramid 59.344 M parameters and 177.2 GMACs at 1024x512, separable one
46.816 M and 151.6. They fix that Eq. 1 concatenates and that the decoder's convolutions are plain.

Shape letters: B images, n class-wise maps, H W pixels, h w cells of stride 4.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from detectron2.projects import deeplab  # noqa: F401  (registers "build_resnet_deeplab_backbone")
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from padding.modeling.deeplab import ASPP, DeepLabDecoder, DeepLabOptions

READINGS = ("softmax", "softmax_no_background", "logit", "sigmoid")
_MARGIN = 1e-6  # saliency stays within [margin, 1 - margin]: its logarithm is finite

SharedFeatures = tuple[Tensor, Tensor]
"""Low-level map [x_R1] (B, C1, h, w) and [x_mid] (B, c1, about h/4, w/4)."""


class SaliencyBranch(nn.Module):
    """Saliency as the sum of class-wise maps, weighted by how salient each class is in the image (Eq. 2 to 4).

    Attributes:
        weigh: 1x1 convolution before the pooling that gives s_fea.
        decoder: gives the class-wise maps s_seg; None if they are the segmentation's logits.
    """

    def __init__(self, *, middle_channels: int, num_maps: int, reading: str, decoder: DeepLabDecoder | None) -> None:
        """Build with weights s_fea near 0.5.

        Args:
            middle_channels: c1, of x_mid.
            num_maps: n.
            reading: one of ``READINGS``.
            decoder: (x_R1, x_mid) -> n maps; None: ``forward`` is given them.

        Raises:
            ConfigError: for another reading, or too few maps for it.
        """
        super().__init__()
        check_choice("MODEL.SALSEG.SALIENCY.READING", reading, READINGS)
        least = 3 if reading == "softmax_no_background" else 2 if reading == "softmax" else 1
        if num_maps < least:
            raise ConfigError(
                f"MODEL.SALSEG.SALIENCY.CHANNELS is {num_maps}: reading '{reading}' needs at least {least} maps"
            )
        self.reading = reading
        self.weigh = nn.Conv2d(middle_channels, num_maps, kernel_size=1)
        # Near 0, hence weights of 0.5: every class is as salient as not at the start.
        nn.init.normal_(self.weigh.weight, mean=0.0, std=0.001)
        assert self.weigh.bias is not None
        nn.init.zeros_(self.weigh.bias)
        self.decoder = decoder

    def forward(self, features: SharedFeatures, size: tuple[int, int], class_logits: Tensor | None = None) -> Tensor:
        """Saliency of every pixel.

        Args:
            features: low-level map and x_mid.
            size: (H, W) of the result.
            class_logits: (B, n, h, w) logits of the segmentation, for a branch without decoder.

        Returns:
            (B, 1, H, W) float32, the logit log y - log(1 - y) of the saliency y.
        """
        low, middle = features
        # Class-wise maps s_seg (B, n, h, w), by the branch's own decoder or the segmentation's.
        maps = class_logits if self.decoder is None else self.decoder(low, middle)[0]
        assert maps is not None
        # Pooled before the sigmoid (Eq. 2): one weight per class and image, (B, n).
        weights = self.weigh(middle).float().mean(dim=(2, 3)).sigmoid()  # s_fea
        # From here on float32, under autocast too: nothing below is a product of matrices.
        maps = F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
        return saliency_logits(maps, weights, self.reading)


def saliency_logits(maps: Tensor, weights: Tensor, reading: str) -> Tensor:
    """Weighted sum of class-wise maps (Eq. 4), as the logit of a probability.

    With the softmax over the maps both y = sum s_i p_i and 1 - y = sum (1 - s_i) p_i are probabilities. A sum of
    sigmoids exceeds 1 and a clamp would take its gradient: that reading is a mean.

    Args:
        maps: s_seg, (B, n, H, W) float32.
        weights: s_fea, (B, n) float32 in (0, 1).
        reading: one of ``READINGS``.

    Returns:
        (B, 1, H, W) float32.
    """
    # (B, n) -> (B, n, 1, 1): a class weighs the same everywhere in its image.
    weights = weights[:, :, None, None]
    if reading == "logit":
        return (weights * maps).sum(dim=1, keepdim=True)
    if reading == "sigmoid":
        saliency = (weights * maps.sigmoid()).mean(dim=1, keepdim=True)
    else:
        # Left out after the softmax: what the background takes is not salient.
        first = 1 if reading == "softmax_no_background" else 0
        saliency = (weights * maps.softmax(dim=1))[:, first:].sum(dim=1, keepdim=True)
    return torch.logit(saliency, eps=_MARGIN)


def build_pyramid(node: CfgNode, in_channels: int) -> nn.Module:
    """What makes x_mid of the last map: DSC-ASPP, ASPP or a 1x1 convolution, as MODEL.SALSEG.ASPP says."""
    options = deeplab_options(node)
    return ASPP(in_channels, options) if node.ASPP.ENABLED else _projection(in_channels, options)


def build_branch(node: CfgNode, num_classes: int, decoder: Callable[[int], DeepLabDecoder]) -> SaliencyBranch:
    """Saliency branch as MODEL.SALSEG.SALIENCY says.

    Args:
        node: MODEL.SALSEG.
        num_classes: K.
        decoder: builds a decoder for a number of maps.

    Raises:
        ConfigError: if the segmentation's logits are to be the maps, but are not as many or are not trained.
    """
    num_maps, share = node.SALIENCY.CHANNELS or num_classes, node.SALIENCY.SHARE_DECODER
    if share and (num_maps != num_classes or node.WEIGHTING == "saliency_only"):
        raise ConfigError(
            "MODEL.SALSEG.SALIENCY.SHARE_DECODER makes the class logits the class-wise maps: SALIENCY.CHANNELS is 0 "
            "with it, and WEIGHTING trains the segmentation"
        )
    return SaliencyBranch(
        middle_channels=node.ASPP.CHANNELS,
        num_maps=num_maps,
        reading=node.SALIENCY.READING,
        decoder=None if share else decoder(num_maps),
    )


def feature_names(node: CfgNode, backbone: Backbone) -> tuple[str, str]:
    """Names of the low-level and the last map of a backbone.

    Raises:
        ConfigError: if the backbone does not give the maps asked for.
    """
    shapes = backbone.output_shape()
    names = tuple(node.IN_FEATURES) or (next(iter(shapes)), list(shapes)[-1])
    if len(names) != 2 or names[0] == names[1] or any(name not in shapes for name in names):
        raise ConfigError(
            f"MODEL.SALSEG.IN_FEATURES is {tuple(node.IN_FEATURES)}; expected a low-level and a last map of "
            f"MODEL.BACKBONE, which gives {', '.join(shapes)}"
        )
    return names[0], names[1]


def deeplab_options(node: CfgNode) -> DeepLabOptions:
    """Sizes of pyramid and decoders from MODEL.SALSEG."""
    return DeepLabOptions(
        project_channels=node.DECODER.PROJECT_CHANNELS,
        aspp_channels=node.ASPP.CHANNELS,
        decoder_channels=node.DECODER.CHANNELS,
        dilations=tuple(node.ASPP.DILATIONS),
        dropout=node.ASPP.DROPOUT,
        norm=node.NORM,
        pool_norm=node.ASPP.POOL_NORM,
        separable=node.ASPP.DSC,
    )


def _projection(in_channels: int, options: DeepLabOptions) -> Conv2d:
    layer = Conv2d(
        in_channels,
        options.aspp_channels,
        kernel_size=1,
        bias=not options.norm,
        norm=get_norm(options.norm, options.aspp_channels),
        activation=nn.ReLU(),
    )
    weight_init.c2_xavier_fill(layer)
    return layer
