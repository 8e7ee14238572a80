# SPDX-License-Identifier: Apache-2.0
"""Curves through regions: longest paths, staying inside, shortening."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from skimage.morphology import skeletonize

from padding.data.scribbles.curves import STYLES, central_part, resampled, skeleton_path


def blob(seed: int, size: int = 48) -> np.ndarray:
    """A connected region of random outline: what surrounds the peak of smoothed noise."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 5)
    parts, _ = label(np.pad(noise > np.quantile(noise, 0.6), 1))
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def longest_shortest_path(region: np.ndarray) -> float:
    """Largest distance between two skeleton pixels along the skeleton, by Floyd and Warshall."""
    pixels = np.argwhere(skeletonize(region))
    steps = np.abs(pixels[:, None] - pixels[None]).max(-1)
    distance = np.where(steps == 1, np.hypot(*np.moveaxis(pixels[:, None] - pixels[None], -1, 0)), np.inf)
    np.fill_diagonal(distance, 0)
    for middle in range(len(pixels)):
        distance = np.minimum(distance, distance[:, middle, None] + distance[None, middle])
    return float(distance[np.isfinite(distance)].max())


def length(points: np.ndarray) -> float:
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


@pytest.mark.parametrize("seed", range(6))
def test_skeleton_path_is_the_longest_geodesic(seed: int) -> None:
    region = blob(seed)
    path = skeleton_path(region)
    assert (np.abs(np.diff(path, axis=0)).max(axis=1) == 1).all(), "pixel by pixel"
    skeleton = skeletonize(region)
    assert all(skeleton[int(y), int(x)] for x, y in path)
    # Exact on a tree; two searches may miss a little where a ring of pixels is left.
    assert longest_shortest_path(region) * 0.95 <= length(path) <= longest_shortest_path(region) + 1e-9


def test_skeleton_of_a_bar_is_its_long_axis() -> None:
    region = np.zeros((11, 40), bool)
    region[3:8, 2:38] = True
    path = skeleton_path(region)
    assert (path[:, 1] == 5).mean() > 0.8
    assert np.ptp(path[:, 0]) >= 30


def test_empty_region_has_no_path() -> None:
    assert skeleton_path(np.zeros((5, 5), bool)).shape == (0, 2)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(3))
def test_styles_are_finite_and_repeatable(style: str, seed: int) -> None:
    region = blob(seed)
    first, second, other = (STYLES[style](region, np.random.default_rng(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert first.ndim == 2
    assert first.shape[1] == 2
    assert np.isfinite(first).all()
    if style != "skeleton":
        assert first.shape != other.shape or not np.array_equal(first, other)


@pytest.mark.parametrize("style", ["line", "random_walk"])
def test_lines_and_walks_keep_their_pixels_inside(style: str) -> None:
    for seed in range(8):
        region = blob(seed)
        columns, rows = np.rint(STYLES[style](region, np.random.default_rng(seed))).astype(int).T
        assert region[rows, columns].all()


@pytest.mark.parametrize("style", STYLES)
def test_styles_serve_the_smallest_regions(style: str) -> None:
    for pixels in (((1, 1),), ((1, 1), (2, 2)), ((1, 1), (1, 2), (1, 3))):
        region = np.zeros((5, 6), bool)
        region[tuple(np.transpose(pixels))] = True
        points = STYLES[style](region, np.random.default_rng(0))
        assert len(points) >= 1
        assert np.isfinite(points).all()


def test_a_disc_gets_a_line_though_its_skeleton_is_a_point() -> None:
    rows, columns = np.mgrid[:41, :41]
    disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 300
    assert length(STYLES["skeleton"](disc, np.random.default_rng(0))) > 15


def test_resampling() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    dense = resampled(points, 3.0)
    np.testing.assert_array_equal(dense[[0, -1]], points[[0, -1]])
    assert np.hypot(*np.diff(dense, axis=0).T).max() <= 3.0 + np.sqrt(2)
    assert (dense == np.rint(dense)).all()
    np.testing.assert_array_equal(resampled(np.array([[1.0, 2.0], [1.2, 2.1]]), 3.0), [[1, 2]])
    np.testing.assert_array_equal(resampled(np.array([[1.0, 2.0]]), 3.0), [[1, 2]])


def test_central_parts_are_nested() -> None:
    points = np.arange(2 * 23.0).reshape(23, 2)
    previous: set[float] = set()
    for share in np.linspace(0, 1, 30):
        part = set(central_part(points, float(share))[:, 0].tolist())
        assert previous <= part
        previous = part
    assert len(central_part(points, 0.0)) == 1
    np.testing.assert_array_equal(central_part(points, 0.0), points[11:12])
    np.testing.assert_array_equal(central_part(points, 1.0), points)
