# SPDX-License-Identifier: Apache-2.0
"""Counts of scribbles against a pixel-by-pixel reference and in small cases worked out by hand."""

import numpy as np
import pytest

from padding.data.scribbles.statistics import ScribbleStatistics, count_image

NAMES = ("sky", "tree", "car")
DENSE = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 255, 255]], np.uint8)
RASTER = np.array([[0, 255, 255, 1], [255, 1, 255, 255], [255, 255, 2, 255]], np.uint8)


def test_counts_of_a_small_image() -> None:
    counts = count_image(RASTER, 3, key="a", dense=DENSE)
    assert (counts.images, counts.pixels, counts.dense_images) == (1, 12, 1)
    assert counts.labeled.tolist() == [1, 2, 1]
    assert counts.images_with.tolist() == [1, 1, 1]
    assert counts.dense_images_with.tolist() == [1, 1, 0]
    assert counts.missed_images_with.tolist() == [0, 0, 0]
    assert counts.contradictions.tolist() == [0, 1, 0], "the tree drawn on the sky"
    assert counts.on_void == 1
    assert counts.coverage_pct == pytest.approx(100 * 4 / 12)
    assert counts.contradiction_pct == pytest.approx(100 / 3)
    # Distances to the nearest pixel beside another label: 2 in the left and right columns, else 1.
    assert counts.margin == pytest.approx(2 + 2 + 1 + 1)
    assert counts.margin_px == pytest.approx(6 / 4)


def test_without_dense_labels_nothing_is_compared() -> None:
    counts = count_image(RASTER, 3, key="a")
    assert counts.dense_images == counts.dense_labeled == 0
    assert counts.contradictions.sum() == 0
    assert "compared" not in "\n".join(counts.lines(NAMES))
    assert "missed_images" not in counts.as_json(NAMES)["classes"]["sky"]


def test_images_without_a_label_are_named_and_classes_without_a_scribble_counted() -> None:
    total = ScribbleStatistics.empty(3)
    total.add(count_image(np.full((3, 4), 255, np.uint8), 3, key="empty", dense=DENSE))
    total.add(count_image(RASTER, 3, key="full", dense=DENSE))
    assert total.images_without == ["empty"]
    assert total.missed_images_with.tolist() == [1, 1, 0]
    assert (total.images, total.pixels, total.dense_images) == (2, 24, 2)
    text = total.lines(NAMES)
    assert text[0] == "2 images, 16.67 % of the pixels labelled; without any label: 1 empty"
    assert "1 contradicting pixels (33.33 %), 1 on void" in text[1]
    assert total.as_json(NAMES)["classes"]["tree"] == {"pixels": 2, "images": 1, "missed_images": 1}


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    images = [
        count_image(
            rng.choice([0, 1, 2, 255], (6, 7)).astype(np.uint8),
            3,
            key=str(i),
            dense=rng.integers(0, 4, (6, 7), np.uint8),
        )
        for i in range(5)
    ]
    forward, backward = ScribbleStatistics.empty(3), ScribbleStatistics.empty(3)
    for image in images:
        forward.add(image)
    for image in reversed(images):
        backward.add(image)
    assert forward.as_json(NAMES) == backward.as_json(NAMES)
    assert images[0].images == 1, "adding changed what was added"


def test_margin_is_the_distance_to_the_nearest_pixel_of_another_label() -> None:
    rng = np.random.default_rng(2)
    dense = np.kron(rng.integers(0, 3, (4, 4)), np.ones((6, 6))).astype(np.uint8)
    raster = np.where(rng.random(dense.shape) < 0.2, dense, 255).astype(np.uint8)
    expected = []
    borders = [
        (y, x)
        for y, x in np.ndindex(dense.shape)
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if 0 <= y + dy < 24 and 0 <= x + dx < 24 and dense[y + dy, x + dx] != dense[y, x]
    ]
    for y, x in np.argwhere(raster != 255):
        expected.append(1 + np.hypot(*(np.array(borders) - (y, x)).T).min())
    assert count_image(raster, 3, key="", dense=dense).margin_px == pytest.approx(np.mean(expected), rel=1e-5)


def test_uniform_dense_labels_have_no_border() -> None:
    counts = count_image(RASTER, 3, key="", dense=np.zeros((3, 4), np.uint8))
    assert counts.margin == 0.0
