# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in pure PyTorch (Deformable DETR, Eq. 3; Mask2Former, pixel decoder).

Each query reads P points on each of L feature maps by bilinear interpolation (zero outside the map) and sums what it
reads with its attention weights. Two formulations compute the same numbers:

* ``grid_sample_attention``: one ``grid_sample`` per level. Few, large operations: right for accelerators.
* ``embedding_bag_attention``: the four corners of every point are rows of a table and a query is one weighted bag of
  4 L P rows. The sampled points are never stored, which on a CPU is most of the cost.

Further letters: A attention heads, N tokens of all levels together, P points per level, R rows of the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from padding.errors import ConfigError, check_choice
from padding.modeling.compiled_attention import compiled_attention, compiled_operator

FORMULATIONS = ("auto", "grid_sample", "embedding_bag", "compiled")
SpatialShapes = Sequence[tuple[int, int]]

# Bags handled at once. Chosen so that the working set stays in a core's cache and the allocator reuses its memory; the
# backward pass reads whole rows and so needs smaller pieces. Results do not depend on them beyond rounding.
_FORWARD_CHUNK = 8192
_BACKWARD_CHUNK = 1024


def deformable_attention(
    value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor, formulation: str = "auto"
) -> Tensor:
    """Sample ``value`` at ``locations`` and sum with ``weights``.

    Args:
        value: (B, N, A, D) float, tokens of all levels, level after level, row-major within a level.
        spatial_shapes: (H, W) of each level; the products sum to N.
        locations: (B, Q, A, L, P, 2) float, (x, y) in units of the map, [0, 1] inside; values outside are allowed.
        weights: (B, Q, A, L, P) float, usually non-negative and summing to 1 over (L, P).
        formulation: one of ``FORMULATIONS``. ``auto`` is ``embedding_bag_attention`` on a CPU, elsewhere
            ``grid_sample_attention``, which exported graphs always have; ``compiled`` is the user's extension on CUDA
            and where there is one, else auto.

    Returns:
        (B, Q, A * D) float.

    Raises:
        ValueError: if the spatial shapes do not describe the N tokens or L levels.
    """
    num_tokens = sum(height * width for height, width in spatial_shapes)
    if num_tokens != value.shape[1] or len(spatial_shapes) != locations.shape[3]:
        raise ValueError(
            f"deformable_attention: spatial shapes {list(spatial_shapes)} hold {num_tokens} tokens in "
            f"{len(spatial_shapes)} levels, but value has {value.shape[1]} tokens and locations {locations.shape[3]} "
            "levels; pass the (H, W) of exactly the maps that were flattened into value"
        )
    exporting = torch.compiler.is_exporting()
    on_cuda = value.device.type == "cuda" and not exporting
    if formulation == "compiled" and on_cuda and (operator := compiled_operator()) is not None:
        return compiled_attention(operator, value, spatial_shapes, locations, weights)
    in_bags = value.device.type == "cpu" and formulation != "grid_sample"
    if (in_bags or formulation == "embedding_bag") and not exporting:
        return embedding_bag_attention(value, spatial_shapes, locations, weights)
    return grid_sample_attention(value, spatial_shapes, locations, weights)


def grid_sample_attention(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels of ``grid_sample``; arguments and result as in ``deformable_attention``."""
    B, _, A, D = value.shape
    grid = locations.transpose(1, 2).flatten(0, 1) * 2 - 1  # (BA, Q, L, P, 2), -1 and 1 are the map's outer edges
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (BA, 1, Q, L, P)
    sizes = [height * width for height, width in spatial_shapes]
    levels = []
    for level, (tokens, (height, width)) in enumerate(zip(value.split(sizes, dim=1), spatial_shapes, strict=True)):
        # (B, N, A, D) -> (B A, D, H, W): grid_sample takes a map per head for an image of a batch.
        maps = tokens.permute(0, 2, 3, 1).reshape(B * A, D, height, width)
        samples = F.grid_sample(maps, grid[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        # (BA, D, Q, P) samples, weighted and summed over the points.
        levels.append((samples * weights[:, :, :, level]).sum(dim=-1))
    # (B A, D, Q) of each level -> (B, Q, A D).
    return sum(levels[1:], levels[0]).view(B, A * D, -1).transpose(1, 2)


def embedding_bag_attention(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted bags of table rows; arguments and result as in ``deformable_attention``."""
    B, Q, A, L, P, _ = locations.shape
    table, layout = _build_table(value, spatial_shapes, num_points=P)
    # A row of the table for each pixel and head: image, then pixel, then head.
    first_row = layout.pixels * A * torch.arange(B, dtype=torch.int32, device=value.device)
    first_row = first_row[:, None, None] + torch.arange(A, dtype=torch.int32, device=value.device)
    bags = _WeightedBags.apply(
        table,
        locations.reshape(B * Q * A, L * P, 2),
        weights.reshape(B * Q * A, L * P),
        first_row.expand(B, Q, A).reshape(-1, 1),
        layout,
    )
    return bags.view(B, Q, A * value.shape[3])


@dataclass(frozen=True)
class _Layout:
    """Where the levels lie in the table: maps below each other on one canvas, each inside a border of zeros.

    The border takes the corners that fall off a map, so that no corner needs a test of its own. The common canvas
    gives all levels the same step from row to row.
    """

    width: Tensor  # (L * P,) float, of the level that a point of a bag belongs to, without border
    height: Tensor  # (L * P,) float
    origin: Tensor  # (L * P,) int32, table row of the level's pixel (0, 0), in the first image and head
    right: int  # table rows from a pixel to its right neighbour
    down: int  # table rows from a pixel to the one below
    pixels: int  # of the canvas

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Table rows from a point's upper left corner to its four corners, in the order of ``_corner_weights``."""
        return 0, self.right, self.down, self.down + self.right


def _build_table(value: Tensor, spatial_shapes: SpatialShapes, *, num_points: int) -> tuple[Tensor, _Layout]:
    """Lay the levels out as rows of D numbers: (B * canvas pixels * A, D), heads of one pixel beside each other."""
    B, _, A, D = value.shape
    canvas_width = max(width for _, width in spatial_shapes) + 2
    maps, origins, top = [], [], 0
    sizes = [height * width for height, width in spatial_shapes]
    for tokens, (height, width) in zip(value.split(sizes, dim=1), spatial_shapes, strict=True):
        # One pixel of border left and above, the rest of the canvas' width right, one row below.
        border = (0, 0, 1, canvas_width - width - 1, 1, 1)
        maps.append(F.pad(tokens.reshape(B, height, width, A * D), border))
        origins.append(((top + 1) * canvas_width + 1) * A)
        top += height + 2

    def per_point(numbers: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=value.device).repeat_interleave(num_points)

    layout = _Layout(
        width=per_point([width for _, width in spatial_shapes], value.dtype),
        height=per_point([height for height, _ in spatial_shapes], value.dtype),
        origin=per_point(origins, torch.int32),
        right=A,
        down=A * canvas_width,
        pixels=top * canvas_width,
    )
    return torch.cat(maps, dim=1).view(-1, D), layout


@dataclass(frozen=True)
class _Points:
    """Points of some bags on the pixel grid, (bags, L * P) each."""

    row: Tensor  # int32, table row of the upper left corner
    x_frac: Tensor  # in [0, 1], distance to the left corners
    y_frac: Tensor
    x_inside: Tensor  # bool, False where the point is off the map and moving it changes nothing
    y_inside: Tensor


def _locate(locations: Tensor, first_row: Tensor, layout: _Layout, num_rows: int) -> _Points:
    """Find the table rows and the fractional position of each point.

    Args:
        locations: (bags, L * P, 2) float, (x, y) in units of the map.
        first_row: (bags, 1) int32, row where the bag's image and head begin.
        layout: of the table.
        num_rows: R.
    """

    def split(coordinate: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Pixel centres have integer coordinates. Rounded step by step as in grid_sample (by way of [-1, 1], the last
        # product and difference fused): where a point lies on a pixel centre, its gradient jumps from one pixel pair to
        # the next, and both formulations must choose the same pair.
        pixel = torch.addcmul(size.new_tensor(-0.5), (coordinate * 2).sub_(1).add_(1), size / 2)
        inside = (pixel > -1) & (pixel < size)
        pixel = torch.clamp(pixel, size.new_tensor(-1.0), size)
        corner = torch.minimum(pixel.floor(), size - 1)  # in [-1, size - 1]: its neighbour is at most in the border
        return corner, pixel.sub_(corner), inside

    x, x_frac, x_inside = split(locations[..., 0], layout.width)
    y, y_frac, y_inside = split(locations[..., 1], layout.height)
    row = torch.add(x.to(torch.int32).mul_(layout.right), y.to(torch.int32), alpha=layout.down)
    row.add_(layout.origin).add_(first_row)
    # A NaN becomes an arbitrary integer: keep it in the table, the fraction stays NaN and so does the result.
    row.clamp_(0, num_rows - 1 - layout.corners[-1])
    return _Points(row, x_frac, y_frac, x_inside, y_inside)


def _corner_weights(points: _Points, weights: Tensor, out: Tensor) -> None:
    """Share each point's weight among its corners (upper left, upper right, lower left, lower right).

    Args:
        points: of the bags.
        weights: (bags, L * P) float.
        out: (bags, 4, L * P) float, overwritten.
    """
    # Products of the two fractions by two multiplications: w xy, w x - w xy, w y (1 - x), the rest.
    right = weights * points.x_frac
    left = weights - right
    torch.mul(right, points.y_frac, out=out[:, 3])
    torch.sub(right, out[:, 3], out=out[:, 1])
    torch.mul(left, points.y_frac, out=out[:, 2])
    torch.sub(left, out[:, 2], out=out[:, 0])


def _corner_rows(points: _Points, layout: _Layout) -> Tensor:
    """Table rows of the corners, (bags, 4, L * P) int32."""
    rows = points.row.new_empty(points.row.shape[0], 4, points.row.shape[1])
    for corner, offset in enumerate(layout.corners):
        torch.add(points.row, offset, out=rows[:, corner])
    return rows


class _WeightedBags(torch.autograd.Function):
    """Bags of bilinearly read points, piece by piece.

    Written as one function because the generic gradients of the pieces cost several times the sums themselves: they
    keep every corner's index and weight, and sort all corners where sorting the points is enough.

    Inputs: table (R, D), locations (bags, L * P, 2), weights (bags, L * P), first_row (bags, 1) int32, layout. Output:
    (bags, D). Gradients of the first three, once.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, locations: Tensor, weights: Tensor, first_row: Tensor, layout: _Layout
    ) -> Tensor:
        ctx.save_for_backward(table, locations, weights, first_row)
        ctx.layout = layout
        bags = table.new_empty(locations.shape[0], table.shape[1])
        for start in range(0, locations.shape[0], _FORWARD_CHUNK):
            part = slice(start, start + _FORWARD_CHUNK)
            points = _locate(locations[part], first_row[part], layout, table.shape[0])
            rows = _corner_rows(points, layout)
            shares = weights.new_empty(rows.shape)
            _corner_weights(points, weights[part], shares)
            bags[part] = F.embedding_bag(rows.flatten(1), table, mode="sum", per_sample_weights=shares.flatten(1))
        return bags

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bags: Tensor) -> tuple[Tensor | None, ...]:
        table, locations, weights, first_row = ctx.saved_tensors
        grad_bags = grad_bags.contiguous()
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        row = torch.empty(weights.shape, dtype=torch.int32, device=table.device)
        shares = weights.new_empty(4, *weights.shape)
        for start in range(0, locations.shape[0], _BACKWARD_CHUNK):
            part = slice(start, start + _BACKWARD_CHUNK)
            # Recomputed, not saved: rows and shares are four numbers a point each.
            points = _locate(locations[part], first_row[part], ctx.layout, table.shape[0])
            row[part] = points.row
            _corner_weights(points, weights[part], shares[:, part].transpose(0, 1))
            rows = _corner_rows(points, ctx.layout)
            samples = table.index_select(0, rows.flatten()).view(*rows.shape, -1)
            # d loss / d share = <row of the corner, gradient of the bag>.
            grad_corners = samples.mul_(grad_bags[part, None, None]).sum(dim=-1)
            _point_gradients(points, grad_corners, weights[part], ctx.layout, grad_locations[part], grad_weights[part])
        grad_table = _table_gradient(grad_bags, row, shares, ctx.layout, table) if ctx.needs_input_grad[0] else None
        return grad_table, grad_locations, grad_weights, None, None


def _point_gradients(
    points: _Points, grad_corners: Tensor, weights: Tensor, layout: _Layout, grad_xy: Tensor, grad_weights: Tensor
) -> None:
    """Carry the gradients of the corners' shares to the points.

    Args:
        points: of the bags.
        grad_corners: (bags, 4, L * P) float, d loss / d share of a corner.
        weights: (bags, L * P) float.
        layout: of the table.
        grad_xy: (bags, L * P, 2) float, overwritten.
        grad_weights: (bags, L * P) float, overwritten.
    """
    # Bilinear in between: value = upper + y (lower - upper), its slopes are the location's gradient, in pixels.
    upper_left, upper_right, lower_left, lower_right = grad_corners.unbind(dim=1)
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    upper = torch.addcmul(upper_left, points.x_frac, upper_slope)
    y_slope = torch.addcmul(lower_left, points.x_frac, lower_slope).sub_(upper)
    x_slope = torch.lerp(upper_slope, lower_slope, points.y_frac)
    torch.addcmul(upper, points.y_frac, y_slope, out=grad_weights)
    # From pixels to units of the map: times its size; 0 where the point was clamped.
    grad_xy[..., 0] = x_slope.mul_(weights).mul_(layout.width).mul_(points.x_inside)
    grad_xy[..., 1] = y_slope.mul_(weights).mul_(layout.height).mul_(points.y_inside)


def _table_gradient(grad_bags: Tensor, row: Tensor, shares: Tensor, layout: _Layout, table: Tensor) -> Tensor:
    """Collect what each table row gave to the bags: again weighted bags, with rows and bags exchanged.

    Args:
        grad_bags: (bags, D) float.
        row: (bags, L * P) int32, upper left corner of each point.
        shares: (4, bags, L * P) float, weight of each corner.
        layout: of the table.
        table: (R, D), for its size.

    Returns:
        (R, D) float.
    """
    num_rows, (num_bags, num_points) = table.shape[0], row.shape
    ordered, order = row.flatten().sort(stable=True)  # stable: the same sums in the same order every time
    starts = torch.searchsorted(ordered, torch.arange(num_rows, dtype=torch.int32, device=row.device))
    bag = order // num_points
    grad_table = torch.zeros_like(table)
    # The corners of a point have one order: sorted once, and moved by the offset.
    for offset, share in zip(layout.corners, shares.view(4, num_bags * num_points), strict=True):
        part = F.embedding_bag(bag, grad_bags, starts, mode="sum", per_sample_weights=share.index_select(0, order))
        grad_table[offset:] += part[: num_rows - offset]
    return grad_table


class DeformableAttention(nn.Module):
    """Deformable self-attention with learned sampling offsets and attention weights.

    ``forward`` takes queries and the tokens to read from and returns one (B, Q, C) tensor; no state is kept.

    Args:
        width: C, channels of queries, tokens and result; a multiple of ``num_heads``.
        num_heads: A.
        num_levels: L.
        num_points: P, points per head and level.
        formulation: see ``deformable_attention``.

    Raises:
        ConfigError: if ``width`` is not a multiple of ``num_heads``, or for an unknown formulation.
    """

    def __init__(
        self, width: int, *, num_heads: int, num_levels: int, num_points: int, formulation: str = "auto"
    ) -> None:
        super().__init__()
        check_choice("MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION", formulation, FORMULATIONS)
        self.formulation = formulation
        if width % num_heads:
            raise ConfigError(
                f"DeformableAttention: width {width} is not a multiple of {num_heads} heads; change CONVS_DIM or "
                "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS under MODEL.SEM_SEG_HEAD"
            )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with points on rays: head a looks in direction a, point p at distance p pixels (in the max norm)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        rays = directions[:, None, None] * distances[:, None]  # (A, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(rays.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference_points: Tensor, tokens: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
        """Let each query read around its reference point.

        Args:
            query: (B, Q, C) float32.
            reference_points: (Q, 2) float32, (x, y) in [0, 1], the same for all images and levels.
            tokens: (B, N, C) float32, all levels flattened and joined.
            spatial_shapes: (H, W) of each level.

        Returns:
            (B, Q, C) float32.
        """
        B, Q, C = query.shape
        A, L, P = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(tokens).view(B, -1, A, C // A)
        # Divided by (W, H): locations are in units of the map.
        sizes = [query.new_full((1,), size) for height, width in spatial_shapes for size in (width, height)]
        map_size = torch.cat(sizes).view(L, 1, 2)
        offsets = self.sampling_offsets(query).view(B, Q, A, L, P, 2) / map_size  # learned in pixels
        locations = reference_points[:, None, None, None] + offsets
        # One softmax over the L P points of a head, of all levels together.
        weights = self.attention_weights(query).view(B, Q, A, L * P).softmax(dim=-1).view(B, Q, A, L, P)
        return self.output_proj(deformable_attention(value, spatial_shapes, locations, weights, self.formulation))
