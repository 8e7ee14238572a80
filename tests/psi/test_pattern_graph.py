# SPDX-License-Identifier: Apache-2.0
"""Tests of the neighborhoods: window sizes, coordinates, bounds."""

import pytest
import torch

from psi.pattern_graph import PatternGraph, window_offsets

STRIDES = (4, 8, 16, 16)
RADII = (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("radius", "distance", "inclusive", "count"),
    [
        # Table of the specification (A2), counted by hand.
        (1, "chebyshev", False, 1),
        (1, "l2", False, 1),
        (1, "l1", False, 1),
        (1, "chebyshev", True, 9),
        (4, "chebyshev", False, 49),
        (4, "l2", False, 45),
        (4, "l1", False, 25),
        (4, "chebyshev", True, 81),
        (1, "l1", True, 5),
        (1.5, "l2", False, 9),
        (0, "chebyshev", True, 1),
    ],
)
def test_window_sizes(radius: float, distance: str, inclusive: bool, count: int) -> None:
    offsets = window_offsets(radius, distance, inclusive)
    assert len(offsets) == len(set(offsets)) == count
    assert (0, 0) in offsets
    assert list(offsets) == sorted(offsets)
    assert {(-dy, -dx) for dy, dx in offsets} == set(offsets)


def num_neighbors(graph: PatternGraph) -> int:
    """Of a node far from the border; with the paper's radii 1, 1, 1, 4 it is 52."""
    return sum(len(window.offsets) for window in graph.windows)


def test_number_of_neighbors() -> None:
    assert num_neighbors(PatternGraph.of(STRIDES, RADII, destination=3)) == 52
    assert num_neighbors(PatternGraph.of(STRIDES, RADII, destination=3, inclusive=True)) == 108
    assert num_neighbors(PatternGraph.of(STRIDES, (1, 1, 1, 1), destination=3)) == 4


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (0, [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]),
        (1, [[0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]),
        (3, [[0, 4, 8, 12, 16, 20], [0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]),
    ],
)
def test_nodes_lie_at_whole_cells(destination: int, expected: list[list[int]]) -> None:
    graph = PatternGraph.of(STRIDES, RADII, destination=destination)
    assert [window.cells(6, torch.device("cpu")).tolist() for window in graph.windows] == expected


@pytest.mark.parametrize("destination", range(4))
def test_nodes_lie_inside_every_level_at_every_size(destination: int) -> None:
    graph = PatternGraph.of(STRIDES, RADII, destination=destination)
    for pixels in range(1, 200):
        sizes = [-(-pixels // stride) for stride in STRIDES]
        for window, size in zip(graph.windows, sizes, strict=True):
            cells = window.cells(sizes[destination], torch.device("cpu"))
            assert cells.min() >= 0
            assert cells.max() < size


def test_impossible_graphs_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"CPP\.DISTANCE is 'l3'; expected one of chebyshev"):
        window_offsets(1, "l3")
    with pytest.raises(ValueError, match=r"CPP\.RADII has 0"):
        window_offsets(0)
    with pytest.raises(ValueError, match=r"CPP\.RADII names 3 radii for 4 levels"):
        PatternGraph.of(STRIDES, (1, 1, 4), destination=3)
    with pytest.raises(ValueError, match=r"strides \[6\].*destination's stride 16"):
        PatternGraph.of((4, 6, 16), (1, 1, 1), destination=2)
