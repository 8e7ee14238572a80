# SPDX-License-Identifier: Apache-2.0
"""Pixel decoder with multi-scale deformable attention (Mask2Former, section 3.2.2 and appendix "Pixel decoder").

The coarse backbone maps exchange information in a deformable transformer encoder; finer maps are added top-down as in
a feature pyramid. Everything runs in float32, also under autocast. Parameter names are those of published weights.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.deformable_attention import DeformableAttention, SpatialShapes
from padding.modeling.position_encoding import sine_position_encoding

NUM_DECODER_MAPS = 3  # the transformer decoder reads the three coarsest maps
_PROJECTION_GROUPS = 32  # group norm after the input projections, fixed in published weights


def pixel_centres(spatial_shapes: SpatialShapes, device: torch.device | None = None) -> Tensor:
    """Centre (x, y) of every pixel of every map, in units of its map.

    Args:
        spatial_shapes: (H, W) of each level.
        device: where the result shall live.

    Returns:
        (N, 2) float32 in (0, 1), level after level, row-major within a level.
    """
    centres = []
    for height, width in spatial_shapes:
        # Cell centers, so that a token's reference point is its own pixel on a map of any size: (x, y) in (0, 1).
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centres.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
    return torch.cat(centres)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a two-layer perceptron, each added to its input and normalised.

    Args:
        width: C of the tokens.
        num_heads: attention heads.
        num_levels: L.
        num_points: points per head and level.
        dim_feedforward: width of the perceptron.
        dropout: probability, in [0, 1).
        formulation: of the attention, see ``deformable_attention``.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
        formulation: str = "auto",
    ) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(
            width, num_heads=num_heads, num_levels=num_levels, num_points=num_points, formulation=formulation
        )
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, position: Tensor, centres: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
        """Refine the tokens.

        Args:
            tokens: (B, N, C) float32.
            position: (1, N, C) float32, added to the queries only.
            centres: (N, 2) float32, where each token lies.
            spatial_shapes: (H, W) of each level.

        Returns:
            (B, N, C) float32.
        """
        # The position steers where a token looks; what it reads carries none.
        attended = self.self_attn(tokens + position, centres, tokens, spatial_shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers over the tokens of several maps.

    Args:
        width: C of every map.
        num_levels: L.
        num_layers: layers, may be 0.
        num_heads: attention heads.
        num_points: points per head and level.
        dim_feedforward: width of the perceptrons.
        dropout: probability, in [0, 1).
        formulation: of the attention, see ``deformable_attention``.
    """

    def __init__(
        self,
        width: int,
        *,
        num_levels: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        formulation: str = "auto",
    ) -> None:
        super().__init__()
        self.width = width
        layers = [
            DeformableEncoderLayer(
                width,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                formulation=formulation,
            )
            for _ in range(num_layers)
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})  # published: transformer.encoder.layers.0
        self.level_embed = nn.Parameter(torch.empty(num_levels, width).normal_())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Let the maps read from each other.

        Args:
            maps: L of (B, C, H, W) float32.

        Returns:
            L of (B, C, H, W) float32, sizes as given.
        """
        spatial_shapes = [(level.shape[2], level.shape[3]) for level in maps]
        device = maps[0].device
        # (1, N, C): where in the map, and in which map; a token itself does not know.
        position = torch.cat(
            [
                sine_position_encoding(height, width, self.width, device=device).flatten(2).transpose(1, 2) + embedding
                for (height, width), embedding in zip(spatial_shapes, self.level_embed, strict=True)
            ],
            dim=1,
        )
        centres = pixel_centres(spatial_shapes, device)
        # (B, C, H, W) -> (B, H W, C), level after level: N tokens, coarse maps first.
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            tokens = layer(tokens, position, centres, spatial_shapes)
        # Tokens back to maps, in the order and the sizes they came in.
        parts = tokens.split([height * width for height, width in spatial_shapes], dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, spatial_shapes, strict=True)]


class PixelDecoder(nn.Module):
    """Turns backbone maps into mask features and the maps that the transformer decoder attends to.

    Args:
        input_shape: name -> channels and stride of every backbone map in use.
        transformer: encoder for the maps in ``transformer_in_features``; its width is that of all maps made here.
        transformer_in_features: names of the maps that enter the encoder.
        mask_dim: channels of the mask features.
        norm: Detectron2's name of the norm in the top-down part, "" for none.
        common_stride: stride of the mask features.

    Raises:
        ValueError: if no map connects the encoder with ``common_stride``.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer: DeformableEncoder,
        transformer_in_features: Sequence[str],
        mask_dim: int,
        norm: str = "GN",
        common_stride: int = 4,
    ) -> None:
        super().__init__()
        fine_to_coarse = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.encoder_features = [name for name in reversed(fine_to_coarse) if name in transformer_in_features]
        width = transformer.width
        self.input_proj = nn.ModuleList(
            _input_projection(input_shape[name].channels, width) for name in self.encoder_features
        )
        self.transformer = transformer
        finest_stride = input_shape[self.encoder_features[-1]].stride
        # One step for each halving between the encoder's finest stride and that of the mask features.
        num_steps = int(math.log2(finest_stride / common_stride))
        # Fine to coarse, those below the encoder; the published names count steps from the finest.
        self.pyramid_features = fine_to_coarse[:num_steps]
        self._check_strides(input_shape, finest_stride, common_stride)
        for step, name in enumerate(self.pyramid_features, start=1):
            self.add_module(f"adapter_{step}", _convolution(input_shape[name].channels, width, 1, norm, None))
            self.add_module(f"layer_{step}", _convolution(width, width, 3, norm, F.relu))
        self.mask_features = Conv2d(width, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)
        self.num_maps = min(NUM_DECODER_MAPS, len(self.encoder_features) + num_steps)

    def _check_strides(self, input_shape: Mapping[str, ShapeSpec], finest: int, common_stride: int) -> None:
        found = [input_shape[name].stride for name in self.pyramid_features]
        if finest < common_stride or found != [common_stride * 2**step for step in range(len(found))]:
            raise ConfigError(
                f"PixelDecoder: maps with strides {found} lead from the encoder's finest stride {finest} to "
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {common_stride}; expected one map per power of two. Add the missing "
                "map to MODEL.SEM_SEG_HEAD.IN_FEATURES or change COMMON_STRIDE"
            )

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode the maps, in float32 whatever the surrounding autocast says.

        Args:
            features: name -> (B, C, H, W) float of every map in ``input_shape``.

        Returns:
            Mask features (B, mask_dim, H/4, W/4) and up to three (B, width, H, W), coarse to fine; all float32.
        """
        # float32: offsets in pixels of a large map need more than the 11 bits of a half.
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            projections = zip(self.input_proj, self.encoder_features, strict=True)
            maps = self.transformer([project(features[name].float()) for project, name in projections])
            # Top-down from the finest encoder map to stride 4, as in a feature pyramid; one step for each power of two.
            for step in range(len(self.pyramid_features), 0, -1):
                lateral = self.get_submodule(f"adapter_{step}")(features[self.pyramid_features[step - 1]].float())
                above = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
                maps.append(self.get_submodule(f"layer_{step}")(lateral + above))
            return self.mask_features(maps[-1]), maps[: self.num_maps]


def _input_projection(in_channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, width, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(_PROJECTION_GROUPS, width))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, norm: str, activation: object) -> Conv2d:
    convolution = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(convolution)
    return convolution
