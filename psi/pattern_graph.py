# SPDX-License-Identifier: Apache-2.0
"""Which cells of which levels a node sees: coordinates and neighborhoods of pattern propagation (PSI, Eq. 2 and 3)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from padding.errors import ConfigError, check_choice

DISTANCES = ("chebyshev", "l2", "l1")


@dataclass(frozen=True)
class Window:
    """Neighbors of a node on one level: the cells at ``offsets`` from cell ``i finer // coarser``, on either axis.

    Attributes:
        finer: cells of the level per node along an axis, 1 unless the level is finer.
        coarser: nodes per cell, 1 unless the level is coarser.
        offsets: (dy, dx) in cells of the level, in row-major order; (0, 0) is among them.
    """

    finer: int
    coarser: int
    offsets: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        """Largest offset along an axis, in cells of the level."""
        return max(max(abs(dy), abs(dx)) for dy, dx in self.offsets)

    def cells(self, count: int, device: torch.device) -> Tensor:
        """(count,) int64: the cell at the place of each of the first ``count`` nodes of an axis (Eq. 2)."""
        return torch.arange(count, device=device) * self.finer // self.coarser


@dataclass(frozen=True)
class PatternGraph:
    """Which cells of which levels a node sees (Eq. 3).

    Attributes:
        windows: of each level.
        destination: index of the level whose cells are the nodes.
    """

    windows: tuple[Window, ...]
    destination: int

    @classmethod
    def of(
        cls,
        strides: Sequence[int],
        radii: Sequence[float],
        *,
        destination: int,
        distance: str = "chebyshev",
        inclusive: bool = False,
    ) -> "PatternGraph":
        """Derive the windows from the levels' strides.

        Cell i of stride s has its center at pixel s i, as in a residual network; hence no offsets of half a pixel.

        Args:
            strides: of each level, in pixels; each divides that of the destination or is a multiple of it.
            radii: of each level, in its own cells.
            destination: index of a level.
            distance: "chebyshev" (a square), "l2" or "l1".
            inclusive: neighbors at the radius itself count; the paper's are strictly closer.

        Raises:
            ConfigError: for radii or strides that make no window.
        """
        if len(radii) != len(strides):
            raise ConfigError(f"CPP.RADII names {len(radii)} radii for {len(strides)} levels; give one for each level")
        own = strides[destination]
        uneven = [stride for stride in strides if stride % own and own % stride]
        if uneven:
            raise ConfigError(f"strides {uneven} neither divide the destination's stride {own} nor are multiples of it")
        # One of the two is 1: a level is finer or coarser than the nodes, or has their stride.
        windows = (
            Window(max(own // stride, 1), max(stride // own, 1), window_offsets(radius, distance, inclusive))
            for stride, radius in zip(strides, radii, strict=True)
        )
        return cls(tuple(windows), destination)


def window_offsets(radius: float, distance: str = "chebyshev", inclusive: bool = False) -> tuple[tuple[int, int], ...]:
    """Offsets closer to (0, 0) than a radius, row-major; 49 for a radius of 4 (45 by "l2", 25 by "l1").

    Args:
        radius: in cells, > 0; with ``inclusive`` >= 0.
        distance: "chebyshev", "l2" or "l1".
        inclusive: also those at the radius.

    Raises:
        ConfigError: for an unknown distance or a radius without any cell.
    """
    check_choice("CPP.DISTANCE", distance, DISTANCES)
    if radius < 0 or (radius == 0 and not inclusive):
        raise ConfigError(f"CPP.RADII has {radius}, which leaves not even the cell itself; the smallest window has 1")
    measure = {"chebyshev": lambda y, x: max(abs(y), abs(x)), "l2": math.hypot, "l1": lambda y, x: abs(y) + abs(x)}
    # Strictly closer than rho (Eq. 3); a radius of 1 leaves the cell itself.
    reach = range(-math.ceil(radius), math.ceil(radius) + 1)
    return tuple(
        (dy, dx)
        for dy, dx in itertools.product(reach, reach)
        if measure[distance](dy, dx) < radius or (inclusive and measure[distance](dy, dx) == radius)
    )
