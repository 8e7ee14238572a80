# SPDX-License-Identifier: Apache-2.0
"""Modules that bring the features of all levels to one of them: the paper's propagation and what it is compared with.

``PatternPropagation`` (CPP), ``UpsampleAggregation`` (UP) and ``SemanticFlowAggregation`` (SF) share one interface
(PSI, Table 4): ``forward(features, valid)`` takes the backbone's maps by name, (B, C_l, h_l, w_l), and the pixels of
the image, (B, H, W) bool or None; it returns (B, ``out_channels``, h, w) on the grid of the destination level. The two
steps of it, ``laterals`` and ``aggregate``, can be called one by one by who also needs the maps between them.
In training they note scalars for the log, ``psi/<name>``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from padding.modeling.diagnostics import note_observations
from psi.pattern_graph import PatternGraph
from psi.pattern_propagation import BACKENDS, SIMILARITIES, Propagation, edge_terms, propagate_patterns

SCALES = ("sqrt_dim", "dim", "none", "learned")


@dataclass(frozen=True)
class AggregationOptions:
    """How features are aggregated; all modules read the first six, the rest is of ``PatternPropagation``.

    Attributes:
        channels: C, of the laterals and of the result.
        destination: name of the level on whose grid the result lies; the paper's k.
        norm: after the last convolution: "BN", "SyncBN", "GN" or "" for none.
        activation: ReLU after it.
        lateral_norm: after the lateral convolutions, likewise.
        lateral_activation: ReLU after it. Without, the literal softmax starts as one-hot on the node itself.
        lateral_pool: finer levels are averaged onto the destination's grid, where otherwise cells are left out.
        radii: of each level, in its own cells; in the destination's for a level that ``lateral_pool`` brought there.
        distance: "chebyshev", "l2" or "l1".
        inclusive: cells at the radius are neighbors too.
        similarity: "inner", "cosine" or "euclidean"; see ``edge_terms``.
        scale: of the similarity: "sqrt_dim" (1 / sqrt(C)), "dim" (1 / C), "none" (the paper's) or "learned", one factor
            that starts at 1 / sqrt(C).
        backend: of ``propagate_patterns``.
    """

    channels: int = 256
    destination: str = "res5"
    norm: str = "BN"
    activation: bool = True
    lateral_norm: str = "BN"
    lateral_activation: bool = True
    lateral_pool: bool = False
    radii: tuple[float, ...] = (1, 1, 1, 4)
    distance: str = "chebyshev"
    inclusive: bool = False
    similarity: str = "inner"
    scale: str = "sqrt_dim"
    backend: str = "auto"

    @classmethod
    def from_node(cls, node: CfgNode) -> "AggregationOptions":
        """Read ``MODEL.PSI.CPP``."""
        return cls(
            channels=node.CHANNELS,
            destination=node.DESTINATION,
            norm=node.NORM,
            activation=node.ACTIVATION,
            lateral_norm=node.LATERAL_NORM,
            lateral_activation=node.LATERAL_ACTIVATION,
            lateral_pool=node.LATERAL_POOL,
            radii=tuple(node.RADII),
            distance=node.DISTANCE,
            inclusive=node.INCLUSIVE,
            similarity=node.SIMILARITY,
            scale=node.SCALE,
            backend=node.BACKEND,
        )


def build_aggregation(
    name: str, input_shapes: Mapping[str, ShapeSpec], options: AggregationOptions
) -> "Aggregation | None":
    """Module of an ablation row.

    Args:
        name: "cpp", "up", "sf" or "none" (DeepLabV3+ as it is).
        input_shapes: stride and channels of each level by name, from fine to coarse.
        options: sizes and choices.

    Returns:
        The module; None for "none".

    Raises:
        ConfigError: for an unknown name, option or destination.
    """
    if name == "none":
        return None
    builders: dict[str, type[PatternPropagation | UpsampleAggregation | SemanticFlowAggregation]] = {
        "cpp": PatternPropagation,
        "up": UpsampleAggregation,
        "sf": SemanticFlowAggregation,
    }
    check_choice("MODEL.PSI.AGGREGATION", name, ("none", *builders))
    if options.destination not in input_shapes:
        raise ConfigError(
            f"MODEL.PSI.CPP.DESTINATION is '{options.destination}', which is none of MODEL.PSI.IN_FEATURES "
            f"({', '.join(input_shapes)})"
        )
    return builders[name](input_shapes, options)


class Laterals(nn.ModuleDict):
    """A 1x1 convolution, norm and ReLU per level, to one semantic domain: maps by name -> (B, C, ...) by name.

    A level of which only every f-th cell is used is sampled first, so that neither work nor batch statistics go into
    cells that nobody sees.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, ShapeSpec],
        options: AggregationOptions,
        *,
        reductions: Mapping[str, int] | None = None,
    ) -> None:
        """Build the convolutions.

        Args:
            input_shapes: channels of each level by name.
            options: ``channels`` and those of the laterals count.
            reductions: f of each level that is sampled, or averaged with ``lateral_pool``; the others stay whole.
        """
        activation = options.lateral_activation
        super().__init__(
            {
                name: _conv(shape.channels, options.channels, 1, options.lateral_norm, activation=activation)
                for name, shape in input_shapes.items()
            }
        )
        self._reductions = dict(reductions or {})
        self._pool = options.lateral_pool

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project every level; other maps in ``features`` are not read."""
        return {name: lateral(self._reduce(name, features[name])) for name, lateral in self.items()}

    def _reduce(self, name: str, maps: Tensor) -> Tensor:
        factor = self._reductions.get(name, 1)
        if factor == 1:
            return maps
        if self._pool:
            # The last cell's window may end outside: it is averaged over what there is.
            return F.avg_pool2d(maps, factor, ceil_mode=True)
        return maps[:, :, ::factor, ::factor]


class PatternPropagation(nn.Module):
    """Contextual pattern propagation: x = sigma(sum_l (W_l agg_l + b_l)) on the destination's grid (PSI, Eq. 4).

    agg_l are the aggregates of ``propagate_patterns``; W_l, which is applied after the weighting, because a scalar
    weight commutes with it, is a 1x1 convolution; sigma is norm and ReLU. The log shows the mean weight of a node on
    itself and the mean entropy of its weights: 1 and 0 tell that nothing is propagated.
    """

    def __init__(self, input_shapes: Mapping[str, ShapeSpec], options: AggregationOptions) -> None:
        """Build the module.

        Args:
            input_shapes: stride and channels of each level by name, in the order of the radii.
            options: all of them count.

        Raises:
            ValueError: for an unknown option, or radii and strides that make no graph.
        """
        super().__init__()
        check_choice("MODEL.PSI.CPP.SCALE", options.scale, SCALES)
        check_choice("MODEL.PSI.CPP.SIMILARITY", options.similarity, SIMILARITIES)
        check_choice("MODEL.PSI.CPP.BACKEND", options.backend, ("auto", *BACKENDS))
        strides = {name: shape.stride for name, shape in input_shapes.items()}
        windows = _graph(strides, options).windows
        # Of a level with one neighbor per node only every f-th cell is read: the laterals may leave the others out.
        reductions = {
            name: window.finer
            for name, window in zip(strides, windows, strict=True)
            if window.finer > 1 and (options.lateral_pool or len(window.offsets) == 1)
        }
        # Of the maps that the laterals return.
        self.strides = strides | dict.fromkeys(reductions, strides[options.destination])
        self.graph = _graph(self.strides, options)
        self.options = options
        self.out_channels = options.channels
        self.laterals = Laterals(input_shapes, options, reductions=reductions)
        self.transforms = nn.ModuleDict(
            {name: _conv(options.channels, options.channels, 1, "", activation=False) for name in strides}
        )
        self.norm = get_norm(options.norm, options.channels) or nn.Identity()
        if options.scale == "learned":
            # Of the factor on 1 / sqrt(C), so that weight decay draws it there.
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Project and aggregate; see the module's docstring."""
        return self.aggregate(self.laterals(features), valid)

    def aggregate(self, projected: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Propagate patterns to the destination.

        Args:
            projected: (B, C, h_l, w_l) of each level by name, from ``laterals``.
            valid: (B, H, W) bool, pixels of the image; cells centered on others (padding) are nobody's neighbors.

        Returns:
            (B, C, h, w).
        """
        propagation = self._propagate(projected, valid)
        if self.training:
            self._observe(propagation, valid)
        # Inputs of one dtype for the 1x1 convolutions: the propagation itself is float32 under autocast too.
        dtype = projected[self.options.destination].dtype
        # Weighted sum first, W_l after it (Eq. 4): one convolution per level in place of one per neighbor.
        terms = [
            transform(maps.to(dtype))
            for transform, maps in zip(self.transforms.values(), propagation.aggregates, strict=True)
        ]
        result = self.norm(sum(terms[1:], terms[0]))
        return F.relu(result) if self.options.activation else result

    def _propagate(self, projected: Mapping[str, Tensor], valid: Tensor | None) -> Propagation:
        levels = [projected[name] for name in self.strides]
        usable = None
        if valid is not None:
            # Cell (i, j) is centered on pixel (stride i, stride j), whose validity it has: (B, h_l, w_l).
            usable = [
                valid[:, ::stride, ::stride][:, : maps.shape[2], : maps.shape[3]]
                for maps, stride in zip(levels, self.strides.values(), strict=True)
            ]
        query, keys = edge_terms(levels, self.graph.destination, self.options.similarity)
        # The scale belongs to the query alone: keys stay the very tensors of the values, which back ends then share.
        return propagate_patterns(
            query * self.scale(),
            keys,
            levels,
            self.graph,
            usable=usable,
            backend=self.options.backend,
            observe=self.training,
        )

    def scale(self) -> Tensor | float:
        """Factor on the similarity."""
        channels = self.options.channels
        if self.options.scale == "learned":
            return self.log_scale.exp() * channels**-0.5
        return {"sqrt_dim": channels**-0.5, "dim": 1.0 / channels, "none": 1.0}[self.options.scale]

    def _observe(self, propagation: Propagation, valid: Tensor | None) -> None:
        for name, maps in (("self_weight", propagation.self_weight), ("entropy", propagation.entropy)):
            if maps is None:
                continue
            # Over the cells of the image alone: padding has weights, too.
            counted = torch.ones_like(maps, dtype=torch.bool)
            if valid is not None:
                stride = self.strides[self.options.destination]
                counted = valid[:, ::stride, ::stride][:, : maps.shape[1], : maps.shape[2]]
            note_observations("psi", {name: (maps * counted).sum() / counted.sum().clamp_min(1)})


def _graph(strides: Mapping[str, int], options: AggregationOptions) -> PatternGraph:
    return PatternGraph.of(
        list(strides.values()),
        options.radii,
        destination=list(strides).index(options.destination),
        distance=options.distance,
        inclusive=options.inclusive,
    )


class UpsampleAggregation(nn.Module):
    """Laterals, every level resized to the destination and added, then a 3x3 convolution, norm and ReLU."""

    def __init__(self, input_shapes: Mapping[str, ShapeSpec], options: AggregationOptions) -> None:
        """Build the module; see ``AggregationOptions`` for what counts."""
        super().__init__()
        self.destination = options.destination
        self.out_channels = options.channels
        self.laterals = Laterals(input_shapes, options)
        self.fuse = _conv(options.channels, options.channels, 3, options.norm, activation=options.activation)

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Project and aggregate; see the module's docstring."""
        return self.aggregate(self.laterals(features), valid)

    def aggregate(self, projected: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Resize and add: (B, C, h_l, w_l) by name -> (B, C, h, w); ``valid`` is not read."""
        height, width = projected[self.destination].shape[-2:]
        resized = [_resize(maps, (height, width)) for maps in projected.values()]
        return self.fuse(sum(resized[1:], resized[0]))


class SemanticFlowAggregation(nn.Module):
    """Laterals, joined from coarse to fine, each coarser map aligned with the finer by a learned flow (SFNet).

    The finest map is then brought to the destination, and a 3x3 convolution, norm and ReLU end it. The log shows
    the mean length of the flows' vectors, in units of the flow.
    """

    def __init__(self, input_shapes: Mapping[str, ShapeSpec], options: AggregationOptions) -> None:
        """Build the module; see ``AggregationOptions`` for what counts."""
        super().__init__()
        self.destination = options.destination
        self.out_channels = options.channels
        self.laterals = Laterals(input_shapes, options)
        # From coarse to fine; of levels of one stride the later is the higher and comes first.
        places = {name: (shape.stride, place) for place, (name, shape) in enumerate(input_shapes.items())}
        self.order = sorted(places, key=lambda name: places[name], reverse=True)
        self.alignments = nn.ModuleDict({name: FlowAlignment(options.channels) for name in self.order[1:]})
        self.fuse = _conv(options.channels, options.channels, 3, options.norm, activation=options.activation)

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Project and aggregate; see the module's docstring."""
        return self.aggregate(self.laterals(features), valid)

    def aggregate(self, projected: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Align and add: (B, C, h_l, w_l) by name -> (B, C, h, w); ``valid`` is not read."""
        # The coarsest map is aligned with nothing; every finer one takes in what is joined so far.
        joined = projected[self.order[0]]
        lengths = []
        for name, alignment in self.alignments.items():
            # Fine + warped coarse, from coarse to fine; (B, C, h_l, w_l) of the next finer level each time.
            flow = alignment(projected[name], joined)
            joined = projected[name] + warp(joined, flow)
            lengths.append(flow.detach().float().norm(dim=1).mean())
        if self.training:
            note_observations("psi", {"flow": torch.stack(lengths).mean()})
        height, width = projected[self.destination].shape[-2:]
        return self.fuse(_resize(joined, (height, width)))


Aggregation = PatternPropagation | UpsampleAggregation | SemanticFlowAggregation


class FlowAlignment(nn.Module):
    """Flow from a coarse map to a fine one: (B, C, h, w) and (B, C, h', w') -> (B, 2, h, w), (x, y); see ``warp``."""

    def __init__(self, channels: int) -> None:
        """Build the convolutions for maps of C channels; the first flow is 0, which is bilinear resizing."""
        super().__init__()
        half = channels // 2
        self.reduce_fine = nn.Conv2d(channels, half, kernel_size=1, bias=False)
        self.reduce_coarse = nn.Conv2d(channels, half, kernel_size=1, bias=False)
        self.flow = nn.Conv2d(2 * half, 2, kernel_size=3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Predict the flow."""
        size = (fine.shape[2], fine.shape[3])
        coarse = F.interpolate(self.reduce_coarse(coarse), size=size, mode="bilinear", align_corners=False)
        return self.flow(torch.cat([self.reduce_fine(fine), coarse], dim=1))


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """Read a map at the cells of a flow's grid, moved by the flow; bilinear, the border's value outside.

    Args:
        maps: (B, C, h', w') float.
        flow: (B, 2, h, w) float, (x, y); 2 is one cell of its grid, because coordinates in [-1, 1] are moved by the
            flow over (w, h). A flow of 0 resizes bilinearly.

    Returns:
        (B, C, h, w) float.
    """
    height, width = flow.shape[-2:]
    dtype = torch.promote_types(maps.dtype, torch.float32)  # a half's 11 bits do not hold a place in a large map
    # Centers of the cells of the flow's grid, from -1 to 1 between the outer edges.
    columns = (2 * torch.arange(width, device=flow.device, dtype=dtype) + 1) / width - 1
    rows = (2 * torch.arange(height, device=flow.device, dtype=dtype) + 1) / height - 1
    x, y = columns + flow[:, 0].to(dtype) / width, rows[:, None] + flow[:, 1].to(dtype) / height
    # (B, h, w, 2), x before y as grid_sample wants it.
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(maps.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False).to(maps)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to a finer grid; to a coarser one the mean, since bilinear reading would leave cells out."""
    if size[0] < maps.shape[2] or size[1] < maps.shape[3]:
        return F.interpolate(maps, size=size, mode="area")
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _conv(in_channels: int, out_channels: int, size: int, norm: str, *, activation: bool) -> Conv2d:
    """Convolution that keeps the size of the map, with the paper's initial values (Kaiming)."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU() if activation else None,
    )
    weight_init.c2_msra_fill(layer)
    return layer
