# SPDX-License-Identifier: Apache-2.0
"""Curves through a region, as a person would scribble them: skeleton, line, polynomial, random walk.

Arrays of points are (P, 2), x and y in pixels. Nothing here promises that a thick line stays inside: the simulator
tests every curve and asks again. The random numbers come from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Points = npt.NDArray[np.float64]
Region = npt.NDArray[np.bool_]

_SMOOTHING = 3.0  # pixels along the path; removes the staircase of a skeleton
_ROUND = 0.5  # a skeleton shorter than this times sqrt(area) is that of a disc, a few pixels in its middle
_CANDIDATES = 20
_WALK_STEP = 3.0
_TURN = 0.35  # radians, spread of the change of heading between two steps
_JITTER = 20.0  # sqrt(area) over it is the spread of the middle point, as in Scribbles4All


def skeleton_path(region: Region) -> Points:
    """Longest geodesic path of a region's skeleton, pixel by pixel; (0, 2) for an empty region.

    Found by two searches: the pixel farthest from any pixel is one end, the pixel farthest from it the other. That is
    exact where the skeleton is a tree, and a long path where a hole makes it a ring.
    """
    from scipy.sparse.csgraph import dijkstra
    from skimage.morphology import skeletonize

    rows, columns = np.nonzero(skeletonize(region))
    if not len(rows):
        return np.zeros((0, 2))
    graph = _pixel_graph(rows, columns, region.shape)
    lengths = dijkstra(graph, directed=False, indices=0)
    start = int(np.argmax(np.where(np.isfinite(lengths), lengths, -1)))
    lengths, previous = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    node = int(np.argmax(np.where(np.isfinite(lengths), lengths, -1)))
    path = [node]
    while node != start:
        node = int(previous[node])
        path.append(node)
    return np.stack([columns[path], rows[path]], axis=1).astype(np.float64)


def _pixel_graph(rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], shape: tuple[int, ...]) -> csr_matrix:
    """Graph of the pixels' 8-neighbourhood, weighted by distance; each edge once."""
    from scipy.sparse import csr_matrix

    index = np.full((shape[0] + 2, shape[1] + 2), -1)
    index[rows + 1, columns + 1] = np.arange(len(rows))
    ends, weights = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        neighbor = index[rows + 1 + dy, columns + 1 + dx]
        here = np.flatnonzero(neighbor >= 0)
        ends.append(np.stack([here, neighbor[here]]))
        weights.append(np.full(len(here), np.hypot(dy, dx)))
    start, end = np.concatenate(ends, axis=1)
    return csr_matrix((np.concatenate(weights), (start, end)), shape=(len(rows), len(rows)))


def _skeleton(region: Region, rng: np.random.Generator) -> Points:
    """The longest path of the skeleton, smoothed; a line where the region is too round to have one."""
    path = skeleton_path(region)
    if len(path) < _ROUND * np.sqrt(region.sum()):
        return _line(region, rng)
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(path, _SMOOTHING, axis=0, mode="nearest")


def _line(region: Region, rng: np.random.Generator) -> Points:
    """The longest of some straight lines between pixels of the region that has its pixels inside."""
    starts, ends = _pixels(region, 2 * _CANDIDATES, rng).reshape(2, _CANDIDATES, 2)
    for candidate in np.argsort(-np.hypot(*(ends - starts).T), kind="stable"):
        points = resampled(np.stack([starts[candidate], ends[candidate]]), 1.0)
        if _inside(points, region):
            return points
    return starts[:1]


def _polynomial(region: Region, rng: np.random.Generator) -> Points:
    """A quartic (after Scribbles4All): two far pixels, one near the centroid, and two of the skeleton between them."""
    from scipy.spatial import cKDTree
    from skimage.morphology import skeletonize

    pixels = _pixels(region, _CANDIDATES, rng)
    first = pixels[0]
    last = pixels[np.argmax(np.hypot(*(pixels - first).T))]
    spread = np.sqrt(region.sum()) / _JITTER
    middle = np.argwhere(region).mean(axis=0)[::-1] + rng.normal(0, spread, 2)
    coarse = np.linspace(0, 1, 3)
    quadratic = [np.polyfit(coarse, axis, 2) for axis in np.stack([first, middle, last], axis=1)]
    skeleton = np.argwhere(skeletonize(region))[:, ::-1]
    between = np.stack([np.polyval(axis, [0.25, 0.75]) for axis in quadratic], axis=1)
    snapped = skeleton[cKDTree(skeleton).query(between)[1]]
    knots = np.stack([first, snapped[0], middle, snapped[1], last])
    fine = np.linspace(0, 1, max(2, int(np.hypot(*np.diff(knots, axis=0).T).sum())))
    quartic = [np.polyfit(np.linspace(0, 1, 5), axis, 4) for axis in knots.T]
    return np.stack([np.polyval(axis, fine) for axis in quartic], axis=1)


def _random_walk(region: Region, rng: np.random.Generator) -> Points:
    """A walk of smoothly changing heading, about one and a half times as long as the region is wide."""
    point = _pixels(region, 1, rng)[0]
    heading = rng.uniform(-np.pi, np.pi)
    steps = max(2, int(1.5 * np.sqrt(region.sum()) / _WALK_STEP))
    points = [point]
    for _ in range(steps):
        # Where the region ends, ever wider turns are tried.
        for spread in np.linspace(_TURN, np.pi, 8):
            turned = heading + rng.normal(0, spread)
            ahead = point + _WALK_STEP * np.array([np.cos(turned), np.sin(turned)])
            if _inside(resampled(np.stack([point, ahead]), 1.0), region):
                point, heading = ahead, turned
                points.append(point)
                break
        else:
            break
    return np.array(points)


def _pixels(region: Region, number: int, rng: np.random.Generator) -> Points:
    """Random pixels of the region, (number, 2), with repetition."""
    rows, columns = np.nonzero(region)
    chosen = rng.integers(len(rows), size=number)
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float64)


def _inside(points: Points, region: Region) -> bool:
    columns, rows = np.rint(points).astype(int).T
    height, width = region.shape
    if min(columns.min(), rows.min()) < 0 or columns.max() >= width or rows.max() >= height:
        return False
    return bool(region[rows, columns].all())


STYLES: dict[str, Callable[[Region, np.random.Generator], Points]] = {
    "skeleton": _skeleton,
    "line": _line,
    "polynomial": _polynomial,
    "random_walk": _random_walk,
}


def resampled(points: Points, spacing: float) -> Points:
    """The polyline with points at most ``spacing`` pixels apart along it, rounded to pixels, repetitions dropped."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, along[-1], int(np.ceil(along[-1] / spacing)) + 1)
    dense = np.rint(np.stack([np.interp(wanted, along, axis) for axis in points.T], axis=1))
    new = np.append(True, (np.diff(dense, axis=0) != 0).any(axis=1))
    return dense[new]


def central_part(points: Points, share: float) -> Points:
    """The middle of a polyline: a share in [0, 1] of its points, at least one.

    A smaller share gives a part of what a larger one gives.
    """
    number = max(1, round(share * len(points)))
    first = (len(points) - number) // 2
    return points[first : first + number]
