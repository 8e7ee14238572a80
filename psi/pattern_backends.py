# SPDX-License-Identifier: Apache-2.0
"""The back ends of pattern propagation: four ways to the same joint softmax (PSI, Eq. 4).

Each takes the query (B, D, h, w), the levels and whether to observe, in one dtype and without autocast. Letters as in
``psi/pattern_propagation.py``; n nodes and M cells of one product, X products at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from padding.modeling.batching import to_device
from psi.pattern_graph import Window

# Logits computed at once (16 MB in float32). Beyond it rows go in pieces, each computed again in the backward pass.
_CHUNK_LOGITS = 1 << 22
# Stands for the logit of what is no neighbor: finite, because -inf - -inf is not a number.
_NO_NEIGHBOR = -1e30


class Level(NamedTuple):
    """One level: maps are (B, D or C, h_l, w_l), or after ``_channels_last`` (B, h_l, w_l, D or C)."""

    window: Window
    keys: Tensor
    values: Tensor
    usable: Tensor

    @property
    def rows(self) -> int:
        """h_l."""
        return self.usable.shape[-2]

    @property
    def columns(self) -> int:
        """w_l."""
        return self.usable.shape[-1]

    def each(self, function: Callable[[Tensor], Tensor]) -> "Level":
        """Apply a function to the maps, once where keys are the values."""
        keys = function(self.keys)
        values = keys if self.values is self.keys else function(self.values)
        return Level(self.window, keys, values, function(self.usable))

    def stacked(self, pitch: int, reach: int) -> "Level":
        """Images below each other; see ``_stack_rows``."""
        return self.each(lambda maps: _stack_rows(maps, pitch, reach))


class Gathered(NamedTuple):
    """Result of a back end: L maps (B, C, h, w), and (B, h, w) logarithm of the softmax's denominator and entropy."""

    aggregates: tuple[Tensor, ...]
    log_normalizer: Tensor
    entropy: Tensor | None


# --- dense and banded: products of many nodes with many cells, per level, joined afterwards --------------------------


class _Share(NamedTuple):
    """Softmax over the neighbors on one level; exact to join with those of other levels."""

    mean: Tensor  # (..., C), of the values
    log_total: Tensor  # (...), logarithm of the sum of exp(logit)
    entropy: Tensor | None  # (...)

    def reshaped(self, shape: Sequence[int]) -> "_Share":
        """Nodes from (X, n) to another shape."""
        entropy = None if self.entropy is None else self.entropy.reshape(shape)
        return _Share(self.mean.reshape(*shape, -1), self.log_total.reshape(shape), entropy)


class _SoftmaxAndTotal(torch.autograd.Function):
    """Softmax over the last axis and the logarithm of its denominator; both gradients need only the softmax.

    A row without a neighbor, all -inf, has weights of 0 and a total of next to nothing.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        # -inf minus the peak of a row without a neighbor would be NaN: the peak is kept finite.
        peak = logits.amax(dim=-1, keepdim=True).clamp_min(_NO_NEIGHBOR)
        weights = (logits - peak).exp_()
        total = weights.sum(dim=-1, keepdim=True).clamp_min(0.5)  # at least 1 where there is a neighbor
        weights.div_(total)
        ctx.save_for_backward(weights)
        return weights, (peak + total.log()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        of_weights, of_total = gradients
        # d log sum exp / d logit = weight, added to the softmax's own weight (g - <weight, g>), in one pass.
        result = weights * of_weights
        return result.addcmul_(weights, of_total[..., None] - result.sum(dim=-1, keepdim=True))


def _share(logits: Tensor, values: Tensor, observe: bool) -> _Share:
    """Logits (X, n, M) and values (X, M, C) -> share of X n nodes."""
    weights, log_total = _SoftmaxAndTotal.apply(logits)
    entropy = torch.special.entr(weights.detach()).sum(dim=-1) if observe else None
    # (X, n, M) @ (X, M, C) -> (X, n, C).
    return _Share(torch.bmm(weights, values), log_total, entropy)


def _single_share(nodes: Tensor, single: Level, observe: bool) -> _Share:
    """Share of a level with one neighbor per node: (..., D) and maps of the same places, channels last."""
    logits = (nodes * single.keys).sum(dim=-1).masked_fill(~single.usable, _NO_NEIGHBOR)
    return _Share(single.values * single.usable[..., None], logits, torch.zeros_like(logits) if observe else None)


def _join(shares: Sequence[_Share]) -> tuple[Tensor, ...]:
    """One softmax over all levels: L aggregates (..., C), logarithm of the denominator, and the entropy if observed."""
    log_totals = torch.stack([share.log_total for share in shares])
    # Softmax over the levels' totals: the share of each level in the joint softmax, exact without its logits.
    factors = log_totals.softmax(dim=0)
    aggregates = [share.mean * factor[..., None] for share, factor in zip(shares, factors, strict=True)]
    log_normalizer = log_totals.detach().logsumexp(dim=0)
    entropies = [share.entropy for share in shares if share.entropy is not None]
    if not entropies:
        return (*aggregates, log_normalizer)
    # Entropy of a mixture of disjoint parts: mean of their entropies plus that of the mixture.
    between = factors.detach()
    entropy = (between * torch.stack(entropies) + torch.special.entr(between)).sum(dim=0)
    return (*aggregates, log_normalizer, entropy.where(log_normalizer > _NO_NEIGHBOR / 2, 0.0))


def _dense(query: Tensor, levels: Sequence[Level], observe: bool) -> Gathered:
    query, levels = _channels_last(query, levels)
    images, height, width = query.shape[:3]
    singles = [_at_nodes(level, (height, width)) for level in levels]

    def num_logits(rows: int) -> int:
        spans = [
            min((rows - 1) * level.window.finer // level.window.coarser + 2 * level.window.reach + 1, level.rows)
            for level in levels
        ]
        cells = [span * level.columns for span, level, single in zip(spans, levels, singles, strict=True) if not single]
        return images * rows * width * sum(cells)

    results = _run(partial(_dense_rows, query, levels, singles, observe=observe), _pieces(height, 1, num_logits))
    return _gathered([torch.cat(maps, dim=1) for maps in zip(*results, strict=True)], len(levels))


def _dense_rows(
    query: Tensor, levels: Sequence[Level], singles: Sequence["Level | None"], rows: range, observe: bool
) -> tuple[Tensor, ...]:
    """Nodes of some rows of every image: maps (B, rows, w, ...)."""

    def pick(maps: Tensor) -> Tensor:
        return maps[:, rows.start : rows.stop]

    nodes = pick(query)
    return _join(
        [
            _single_share(nodes, single.each(pick), observe)
            if single
            else _dense_share(nodes, level, rows, observe).reshaped(nodes.shape[:3])
            for level, single in zip(levels, singles, strict=True)
        ]
    )


def _dense_share(nodes: Tensor, level: Level, rows: range, observe: bool) -> _Share:
    """All cells of the rows in reach against all nodes; the result's nodes are flat, (B, rows w)."""
    window, reach, device = level.window, level.window.reach, nodes.device
    height, width = level.keys.shape[1:3]
    at_rows = window.cells(rows.stop, device)[rows.start :]
    # Rows of cells in reach of the first and of the last row of nodes.
    first = max(rows.start * window.finer // window.coarser - reach, 0)
    last = min((rows.stop - 1) * window.finer // window.coarser + reach, height - 1)
    down = torch.arange(first, last + 1, device=device) - at_rows[:, None]
    right = torch.arange(width, device=device) - window.cells(nodes.shape[2], device)[:, None]
    # (rows w, span w_l): which cells of the span each node sees; the same for all images.
    near = _is_near(window, down[:, None, :, None], right[None, :, None, :]).flatten(2).flatten(0, 1)
    keys, values = (maps[:, first : last + 1].flatten(1, 2) for maps in (level.keys, level.values))
    # (B, rows w, D) @ (B, D, span w_l).
    logits = torch.bmm(nodes.flatten(1, 2), keys.transpose(1, 2))
    logits.masked_fill_(~near, -math.inf).masked_fill_(~level.usable[:, None, first : last + 1].flatten(2), -math.inf)
    return _share(logits, values, observe)


def _banded(query: Tensor, levels: Sequence[Level], observe: bool) -> Gathered:
    query, levels = _channels_last(query, levels)
    images, height, width = query.shape[:3]
    # Groups of rows must begin together on every level: pieces and images are multiples of the coarsest step.
    step = max(level.window.coarser for level in levels)
    # Rows of nodes that an image has in the stack of all images: enough for every level to have as many.
    needed = [math.ceil(level.rows * level.window.coarser / level.window.finer) for level in levels]
    pitch = math.ceil(max(height, *needed) / step) * step
    singles = [_at_nodes(level, (height, width)) for level in levels]
    stacks = [
        single.stacked(pitch, 0)
        if single
        else level.stacked(pitch * level.window.finer // level.window.coarser, level.window.reach)
        for level, single in zip(levels, singles, strict=True)
    ]
    nodes = _stack_rows(query, pitch, 0)
    bands = [(2 * level.window.reach + 1) * level.columns for level in levels if len(level.window.offsets) > 1]
    pieces = _pieces(len(nodes), step, lambda rows: rows * width * sum(bands))
    results = _run(partial(_banded_rows, nodes, stacks, pitch, observe=observe), pieces)
    maps = [torch.cat(parts).unflatten(0, (images, pitch))[:, :height] for parts in zip(*results, strict=True)]
    return _gathered(maps, len(levels))


def _banded_rows(nodes: Tensor, stacks: Sequence[Level], pitch: int, rows: range, observe: bool) -> tuple[Tensor, ...]:
    """Nodes of some rows of the stack: maps (rows, w, ...)."""

    def pick(maps: Tensor) -> Tensor:
        return maps[rows.start : rows.stop]

    nodes = pick(nodes)
    return _join(
        [
            _single_share(nodes, stack.each(pick), observe)
            if len(stack.window.offsets) == 1
            else _banded_share(nodes, stack, pitch, rows, observe).reshaped(nodes.shape[:2])
            for stack in stacks
        ]
    )


def _banded_share(nodes: Tensor, stack: Level, pitch: int, rows: range, observe: bool) -> _Share:
    """Each group of ``coarser`` rows of nodes against its band of cells; the result is (groups, coarser w)."""
    window, reach, device = stack.window, stack.window.reach, nodes.device
    first, last = (row * window.finer // window.coarser for row in (rows.start, rows.stop - 1))

    def band(maps: Tensor) -> Tensor:
        """Overlapping views (groups, 2 r + 1, w_l, ...): rows of neighboring groups are the same memory."""
        return maps[first : last + 2 * reach + 1].unfold(0, 2 * reach + 1, window.finer).movedim(-1, 1)

    # Image of each row of cells in the stack; a band may reach into the next image, whose cells are no neighbors.
    image = torch.arange(-reach, len(stack.keys) - reach, device=device).div(
        pitch * window.finer // window.coarser, rounding_mode="floor"
    )
    usable = band(stack.usable) & (band(image) == band(image)[:, reach, None])[..., None]
    # (groups, coarser, w, D) -> (groups, coarser w, D).
    groups = nodes.unflatten(0, (-1, window.coarser)).flatten(1, 2)
    # (groups, coarser w, D) @ (groups, D, (2 r + 1) w_l).
    logits = torch.bmm(groups, band(stack.keys).flatten(1, 2).transpose(1, 2))
    down = torch.arange(-reach, reach + 1, device=device)
    right = torch.arange(stack.keys.shape[1], device=device) - window.cells(nodes.shape[1], device)[:, None]
    near = _is_near(window, down[:, None], right[:, None]).flatten(1).repeat(window.coarser, 1)
    logits.masked_fill_(~near, -math.inf).masked_fill_(~usable.flatten(1)[:, None], -math.inf)
    return _share(logits, band(stack.values).flatten(1, 2), observe)


def _stack_rows(maps: Tensor, pitch: int, reach: int) -> Tensor:
    """Images below each other: (B, h, ...) -> (reach + B pitch + reach, ...), zeros (False) where there was nothing."""
    rest = [0, 0] * (maps.dim() - 2)
    stacked = F.pad(maps, (*rest, 0, pitch - maps.shape[1])).flatten(0, 1)
    return F.pad(stacked, (*rest, reach, reach)) if reach else stacked


def _is_near(window: Window, down: Tensor, right: Tensor) -> Tensor:
    """Whether (down, right), which broadcast, is an offset of the window."""
    # A table of offsets with a margin of False, which clamped distances fall into.
    size, around = 2 * window.reach + 3, window.reach + 1
    table = torch.zeros(size, size, dtype=torch.bool)
    table[tuple((torch.tensor(window.offsets) + around).T)] = True
    near = to_device(table, down.device)
    return near[down.clamp(-around, around) + around, right.clamp(-around, around) + around]


def _channels_last(query: Tensor, levels: Sequence[Level]) -> tuple[Tensor, list[Level]]:
    """Channels to the end and beside each other in memory, as products want them."""
    moved = []
    for level in levels:
        keys = level.keys.movedim(1, -1).contiguous()
        values = keys if level.values is level.keys else level.values.movedim(1, -1).contiguous()
        moved.append(level._replace(keys=keys, values=values))
    return query.movedim(1, -1).contiguous(), moved


def _at_nodes(level: Level, size: tuple[int, int]) -> Level | None:
    """Bring a level with one neighbor per node to the nodes, (B, h, w, ...); None for other levels."""
    if len(level.window.offsets) > 1:
        return None

    def bring(maps: Tensor) -> Tensor:
        # Repeated for each node of a coarser cell, or every f-th cell of a finer level.
        for axis, count in enumerate(size, start=1):
            if level.window.coarser > 1:
                maps = maps.repeat_interleave(level.window.coarser, dim=axis)
            index = [slice(None)] * axis + [slice(0, (count - 1) * level.window.finer + 1, level.window.finer)]
            maps = maps[tuple(index)]
        return maps

    return level.each(bring)


def _pieces(count: int, step: int, num_logits: Callable[[int], int]) -> list[range]:
    """Cut rows into pieces of a multiple of ``step`` rows, each with a bounded number of logits if that can be."""
    # Halved until it fits: pieces of one size, rounded up to whole steps.
    rows = count
    while rows > step and num_logits(rows) > _CHUNK_LOGITS:
        rows = math.ceil(rows / 2 / step) * step
    return [range(start, min(start + rows, count)) for start in range(0, count, rows)]


def _run(function: Callable[[range], tuple[Tensor, ...]], pieces: Sequence[range]) -> list[tuple[Tensor, ...]]:
    """Results of all pieces; with several, none keeps its logits for the backward pass."""
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return [function(rows) for rows in pieces]
    return [checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False) for rows in pieces]


def _gathered(maps: Sequence[Tensor], num_levels: int) -> Gathered:
    """Maps as ``_join`` orders them, channels last -> result of a back end."""
    aggregates = tuple(aggregate.movedim(-1, 1) for aggregate in maps[:num_levels])
    return Gathered(aggregates, maps[num_levels], maps[num_levels + 1] if len(maps) > num_levels + 1 else None)


# --- shift and unfold: one logit per neighbor, one softmax ------------------------------------------------------------


def _shift(query: Tensor, levels: Sequence[Level], observe: bool) -> Gathered:
    size = (query.shape[2], query.shape[3])
    planes, masks = [], []
    for level in levels:
        blocks = _blocks(query, level.window)
        usable = level.usable[:, None]
        for keys, mask in zip(_views(level.keys, level.window, size), _views(usable, level.window, size), strict=True):
            # One logit plane (B, h, w) per neighbor; D is summed at once, so that no (B, D, h, w) product is kept.
            planes.append(_from_blocks((blocks * keys).sum(dim=1), size))
            masks.append(_from_blocks(mask[:, 0].expand(-1, *blocks.shape[2:]), size))
    weights, log_normalizer, entropy = _softmax(torch.stack(planes, dim=1), torch.stack(masks, dim=1), observe)
    counts = [len(level.window.offsets) for level in levels]
    aggregates = []
    for level, of_level in zip(levels, weights.split(counts, dim=1), strict=True):
        pairs = zip(of_level.split(1, dim=1), _views(level.values, level.window, size), strict=True)
        plane, values = next(pairs)
        total = _blocks(plane, level.window) * values
        for plane, values in pairs:
            total.addcmul_(_blocks(plane, level.window), values)
        aggregates.append(_from_blocks(total, size))
    return Gathered(tuple(aggregates), log_normalizer, entropy)


def _blocks(maps: Tensor, window: Window) -> Tensor:
    """(B, C, h, w) -> (B, C, h', g, w', g): the g x g nodes of a coarser cell; g is 1 for other levels."""
    g = window.coarser
    padded = F.pad(maps, (0, -maps.shape[3] % g, 0, -maps.shape[2] % g))
    return padded.unflatten(3, (-1, g)).unflatten(2, (-1, g))


def _from_blocks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h', g, w', g) -> (..., h, w)."""
    return maps.flatten(-4, -3).flatten(-2, -1)[..., : size[0], : size[1]]


def _views(maps: Tensor, window: Window, size: tuple[int, int]) -> Iterator[Tensor]:
    """For each offset the cells at it from the nodes, (B, C, h', 1, w', 1), views of one padded map.

    One at a time: the backward pass goes the same way back and so holds the gradient of one view at a time.
    """
    reach, finer = window.reach, window.finer
    padded = F.pad(maps, (reach, reach, reach, reach)) if reach else maps
    height, width = ((count - 1) // window.coarser * finer + 1 for count in size)  # of integers: sizes may be symbols
    for dy, dx in window.offsets:
        top, left = reach + dy, reach + dx
        yield padded[:, :, top : top + height : finer, None, left : left + width : finer, None]


def _softmax(logits: Tensor, mask: Tensor, observe: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Joint softmax over (B, K, h, w): weights, 0 outside the mask; logarithm of the denominator; entropy."""
    logits = logits.masked_fill(~mask, _NO_NEIGHBOR)
    weights = logits.softmax(dim=1) * mask  # for a node without a neighbor the softmax is uniform
    entropy = torch.special.entr(weights.detach()).sum(dim=1) if observe else None
    return weights, logits.detach().logsumexp(dim=1), entropy


def _unfold(query: Tensor, levels: Sequence[Level], observe: bool) -> Gathered:
    size = (query.shape[2], query.shape[3])
    logits, values, masks = [], [], []
    for level in levels:
        keys = _unfolded(level.keys, level.window, size)
        values.append(keys if level.values is level.keys else _unfolded(level.values, level.window, size))
        logits.append((query[:, :, None] * keys).sum(dim=1))
        masks.append(_unfolded(level.usable[:, None].to(query.dtype), level.window, size)[:, 0] > 0)
    counts = [len(level.window.offsets) for level in levels]
    weights, log_normalizer, entropy = _softmax(torch.cat(logits, dim=1), torch.cat(masks, dim=1), observe)
    aggregates = [
        (of_level[:, None] * neighbors).sum(dim=2)
        for of_level, neighbors in zip(weights.split(counts, dim=1), values, strict=True)
    ]
    return Gathered(tuple(aggregates), log_normalizer, entropy)


def _unfolded(maps: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """(B, C, h_l, w_l) -> (B, C, K, h, w): every neighbor of every node."""
    side = 2 * window.reach + 1
    positions = [(count - 1) // window.finer + 1 for count in maps.shape[2:]]
    columns = F.unfold(maps, side, padding=window.reach, stride=window.finer).unflatten(2, positions)
    # (B, C side^2, positions) -> (B, C, side^2, h', w').
    columns = columns.unflatten(1, (-1, side * side))
    if len(window.offsets) < side * side:
        # Offsets that the window's shape leaves out (l1, l2).
        places = [(dy + window.reach) * side + dx + window.reach for dy, dx in window.offsets]
        columns = columns.index_select(2, torch.tensor(places, device=maps.device))
    if window.coarser > 1:
        columns = columns.repeat_interleave(window.coarser, dim=3).repeat_interleave(window.coarser, dim=4)
    return columns[..., : size[0], : size[1]]


Backend = Callable[[Tensor, Sequence[Level], bool], Gathered]
BACKENDS: dict[str, Backend] = {"dense": _dense, "banded": _banded, "shift": _shift, "unfold": _unfold}
