# SPDX-License-Identifier: Apache-2.0
"""Pyramid Vision Transformer, version 1, as a dense backbone (2102.12122).

Published implementations compare every stage's number of cells with the first stage's table and so fail at 448x448 or
896x896, or reshape the table with the wrong grid; here each stage compares its own grid. The class token, its row of
the last table and the final norm serve classification only and do not exist.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from padding.errors import ConfigError

_STAGES = ("res2", "res3", "res4", "res5")
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class PVTArchitecture:
    """Sizes of a network, one number per stage.

    Attributes:
        channels: C.
        depths: blocks.
        heads: of the attention.
        mlp_ratios: hidden channels of the perceptron, in multiples of C.
        reductions: side of the squares of cells that are merged to one key.
        pretrain_size: side in pixels of the images that the position tables are made for.
    """

    channels: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    pretrain_size: int = 224


# Table 1 of the paper; the last one is ours, for generated data of 128x128 pixels.
PVT_VARIANTS = {
    "pvt_tiny": PVTArchitecture(depths=(2, 2, 2, 2)),
    "pvt_small": PVTArchitecture(),
    "pvt_medium": PVTArchitecture(depths=(3, 4, 18, 3)),
    "pvt_nano": PVTArchitecture(
        channels=(24, 48, 96, 128),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 4),
        mlp_ratios=(4, 4, 4, 4),
        pretrain_size=128,
    ),
}


def resize_position_table(table: Tensor, own_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bring a learned position table to another grid.

    Args:
        table: (1, h0 * w0, C) float, row by row.
        own_size: (h0, w0), the grid it was learned on.
        size: (h, w).

    Returns:
        (1, h * w, C): the table itself on its own grid, else bilinear without aligned corners.
    """
    if size == own_size:
        return table
    # (1, h0 w0, C) -> (1, C, h0, w0).
    grid = table.unflatten(1, own_size).permute(0, 3, 1, 2)
    # In single precision: half precision has no more than three digits for the weights of a long side.
    resized = F.interpolate(grid.float(), size=size, mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


class PatchEmbedding(nn.Module):
    """Merges squares of cells to tokens and adds their positions: (B, C', H, W) -> (B, h * w, C) and (h, w)."""

    def __init__(self, in_channels: int, channels: int, *, patch: int, stride: int, table_side: int) -> None:
        """Build the embedding.

        Args:
            in_channels: C'.
            channels: C.
            patch: side of a square in cells.
            stride: equal to ``patch``, or 1 to keep the resolution.
            table_side: of the grid of the position table, which counts cells of stride ``patch``.
        """
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=patch, stride=stride)
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.table_size = (table_side, table_side)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, table_side * table_side, channels))
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, C', H, W) -> tokens (B, h w, C) with their positions added, and (h, w)."""
        # With stride 1 in place of ``patch`` squares overlap: padded so that every cell still begins one.
        overlap = self.proj.kernel_size[0] - self.proj.stride[0]
        features = self.proj(F.pad(features, (0, overlap, 0, overlap)))  # the squares of the last row and column too
        size = (features.shape[2], features.shape[3])
        # (B, C, h, w) -> (B, h w, C).
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        return tokens + resize_position_table(self.absolute_pos_embed, self.table_size, size), size


class ReducedAttention(nn.Module):
    """Multi-head attention with keys and values on a coarser grid (Eq. 1 to 3): (B, h * w, C) -> the same shape."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)  # rows of the keys, then of the values
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, C) tokens of a grid of ``size`` (h, w), n = h w -> (B, n, C)."""
        coarse = tokens
        if self.reduction > 1:
            # (B, n, C) -> (B, C, h, w) -> (B, n / R^2, C): one key for each R x R cells.
            grid = tokens.transpose(1, 2).unflatten(2, size)
            coarse = self.norm(self.sr(grid).flatten(2).transpose(1, 2))
        query = self._split(self.q(tokens))
        key, value = (self._split(x) for x in self.kv(coarse).chunk(2, dim=-1))
        # Scaled by 1/sqrt(C / heads); never holds the table of all pairs where a fused kernel exists.
        attended = F.scaled_dot_product_attention(query, key, value)
        # (B, heads, n, C / heads) -> (B, n, C).
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, C / heads)


class PVTBlock(nn.Module):
    """Attention and perceptron, each after a norm and beside a shortcut: (B, h * w, C) -> the same shape."""

    def __init__(self, channels: int, heads: int, *, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.mlp = Mlp(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, h w, C) of a grid (h, w) -> the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PVTStage(nn.Module):
    """Embedding and blocks: a map (B, C', H, W) -> a map (B, C, H / stride, W / stride)."""

    def __init__(self, embed: PatchEmbedding, blocks: Sequence[PVTBlock]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C', H, W) -> (B, C, H / stride, W / stride)."""
        tokens, size = self.embed(features)
        for block in self.blocks:
            tokens = block(tokens, size)
        # (B, h w, C) -> (B, C, h, w), in the memory order of a map: convolutions follow.
        return tokens.transpose(1, 2).unflatten(2, size).contiguous()


class PVT(Backbone):
    """Four stages of tokens on ever coarser grids.

    ``forward`` takes (B, 3, H, W) float with H and W multiples of 32 and returns res2 to res5, (B, C, H/s, W/s) with
    strides s of 4, 8, 16 and 32, or 16 instead of 32. The outputs carry no norm, as in the published dense networks.
    """

    def __init__(
        self, architecture: PVTArchitecture, *, in_channels: int = 3, output_stride: int = 32, drop_path: float = 0.0
    ) -> None:
        """Build the network with random weights.

        Args:
            architecture: sizes.
            in_channels: of the image.
            output_stride: of the last map, 32 (as pre-trained) or 16: then the last embedding keeps the resolution.
            drop_path: probability of stochastic depth in the last block, linearly less before it.

        Raises:
            ConfigError: for another output stride.
        """
        super().__init__()
        if output_stride not in (16, 32):
            raise ConfigError(f"OUTPUT_STRIDE of a PVT is {output_stride}; expected 16 or 32")
        strides = (4, 8, 16, output_stride)
        rates = _linear_rates(drop_path, sum(architecture.depths))
        self.stages = nn.ModuleList()
        for stage, channels in enumerate(architecture.channels):
            # The stem merges 4 x 4 pixels, each further stage 2 x 2 cells.
            patch = 2 if stage else 4
            embed = PatchEmbedding(
                in_channels,
                channels,
                patch=patch,
                stride=strides[stage] // strides[stage - 1] if stage else patch,
                table_side=architecture.pretrain_size // (4 * 2**stage),
            )
            blocks = [
                PVTBlock(
                    channels,
                    architecture.heads[stage],
                    mlp_ratio=architecture.mlp_ratios[stage],
                    reduction=architecture.reductions[stage],
                    drop_path=next(rates),
                )
                for _ in range(architecture.depths[stage])
            ]
            self.stages.append(PVTStage(embed, blocks))
            in_channels = channels
        self._specs = {
            name: ShapeSpec(channels=c, stride=s)
            for name, c, s in zip(_STAGES, architecture.channels, strides, strict=True)
        }
        self.apply(_initialise)

    @property
    def size_divisibility(self) -> int:
        """Sides of the images are multiples of it: embeddings and reductions would cut off the rest."""
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by name.

        Raises:
            ConfigError: if a side of the images is no multiple of 32.
        """
        if any(side % self.size_divisibility for side in images.shape[-2:]):
            raise ConfigError(
                f"images of {tuple(images.shape[-2:])} pixels: a PVT takes multiples of 32; pad them "
                "(batch_images with size_divisibility=32) and crop to such a size (INPUT.CROP.SIZE)"
            )
        maps, features = {}, images
        for name, stage in zip(_STAGES, self.stages, strict=True):
            features = stage(features)
            maps[name] = features
        return maps


def build_pvt(name: str, *, output_stride: int = 32, drop_path: float = 0.0, in_channels: int = 3) -> PVT:
    """Build "pvt_tiny", "pvt_small", "pvt_medium" or "pvt_nano" with random weights.

    Raises:
        ConfigError: for another name.
    """
    if name not in PVT_VARIANTS:
        raise ConfigError(f"no PVT is called '{name}'; there are {', '.join(PVT_VARIANTS)}")
    return PVT(PVT_VARIANTS[name], in_channels=in_channels, output_stride=output_stride, drop_path=drop_path)


def _linear_rates(last: float, count: int) -> Iterator[float]:
    return iter([last * index / max(count - 1, 1) for index in range(count)])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
