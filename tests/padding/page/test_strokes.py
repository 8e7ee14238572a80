# SPDX-License-Identifier: Apache-2.0
"""Strokes become labels by their colours, labels grow step by step, and the label map is an index PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from padding.data.readers import read_label_map
from padding.errors import DataError, MethodError
from padding.page.models import PageModel
from padding.page.strokes import grow, save_labels, stroke_colors, strokes_of


def layer(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((*size, 4), np.uint8)


def test_colours_of_classes_are_told_apart() -> None:
    colors = np.asarray(stroke_colors(254), int)
    distance = np.abs(colors[:, None] - colors).max(axis=2)
    np.fill_diagonal(distance, 255)
    assert distance.min() >= 32
    assert len(stroke_colors(17)) == 17


def test_strokes_are_read_by_colour_and_soft_rims_left_out() -> None:
    colors = stroke_colors(3)
    drawn = layer((6, 8))
    drawn[1, 1:4] = (*colors[2], 255)
    drawn[2, 1] = (*colors[1], 40)  # a rim
    drawn[3, 1] = (*(c - 5 if c > 5 else c + 5 for c in colors[1]), 200)  # rounded by the browser
    drawn[4, 1] = (77, 200, 33, 255)  # a colour of no class
    over = layer((6, 8))
    over[1, 3] = (*colors[0], 255)
    labels = strokes_of([drawn, over], (6, 8), colors)
    expected = np.full((6, 8), 255)
    expected[1, 1:3], expected[1, 3], expected[3, 1] = 2, 0, 1
    np.testing.assert_array_equal(labels, expected)


def test_layers_of_another_size_are_fitted() -> None:
    colors, large = stroke_colors(2), layer((12, 16))
    large[4:8, 4:8] = (*colors[1], 255)
    labels = strokes_of([large], (6, 8), colors)
    assert (labels[2:4, 2:4] == 1).all()
    assert (labels != 255).sum() == 4
    assert (strokes_of([], (6, 8), colors) == 255).all()


def test_labels_grow_and_strokes_stay(models: Mapping[str, PageModel], image: np.ndarray, tmp_path: Path) -> None:
    strokes = np.full(image.shape[:2], 255, np.int64)
    strokes[5, 4:30], strokes[30, 10:50] = 3, 8
    grown = grow(models["scribbles"], image, strokes)
    assert len(grown.pictures) == len(grown.captions) == 3  # MODEL.PSI.SLD.STEPS is 2
    assert grown.captions[0] == f"strokes: {100 * 66 / strokes.size:.1f} % labeled"
    assert all(picture.shape[1] >= 500 for picture in grown.pictures)
    drawn = strokes != 255
    assert (grown.labels[drawn] == strokes[drawn]).all()
    assert set(np.unique(grown.labels)) <= {3, 8, 255}
    assert (grown.labels != 255).sum() >= drawn.sum()

    path = tmp_path / "labels.png"
    save_labels(path, grown.labels, 17)
    np.testing.assert_array_equal(read_label_map(path), grown.labels)


def test_what_cannot_grow_is_said(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    nothing = np.full(image.shape[:2], 255, np.int64)
    with pytest.raises(DataError, match="nothing is drawn yet"):
        grow(models["scribbles"], image, nothing)
    with pytest.raises(MethodError, match="labels of SalSeg do not grow"):
        grow(models["saliency"], image, np.zeros_like(nothing))
    with models["scribbles"].in_use() as predictor, pytest.raises(ValueError, match="resize one of them"):
        predictor.grow_labels(image, nothing[1:])
