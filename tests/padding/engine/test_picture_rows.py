# SPDX-License-Identifier: Apache-2.0
"""Rows of pictures: what they show of labels, their size, and what is left on the disk."""

from pathlib import Path

import cv2
import numpy as np

from padding.data.class_split import ClassSplit
from padding.engine.picture_rows import classes_in, draw_rows, labels_on_white, labels_over_image

VOID = 255
COLORS = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
CLASSES = ClassSplit(
    names=("red", "blue"), is_thing=(False, False), dataset_ids=(0, 1), colors=((255, 0, 0), (0, 0, 255))
)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture[..., ::-1])


def test_labels_hide_the_image_and_what_is_unlabeled_is_grey() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    labels = np.array([[0, 1, VOID, VOID, VOID]] * 4)
    drawn = labels_over_image(image, labels, COLORS)
    assert (drawn[:, 0] == COLORS[0]).all()
    assert (drawn[:, 1] == COLORS[1]).all()
    assert (np.ptp(drawn[:, 2:], axis=2) == 0).all()
    assert drawn[:, 2:].min() >= 153


def test_void_is_white_and_not_a_class() -> None:
    labels = np.array([[0, 1, VOID]])
    assert labels_on_white(labels, COLORS).tolist() == [[[255, 0, 0], [0, 0, 255], [255, 255, 255]]]
    assert classes_in([labels, np.array([[VOID]])], 2) == [0, 1]
    assert classes_in([np.array([[1, VOID]])], 2) == [1]


def test_rows_of_several_sizes_with_legend_and_scale(tmp_path: Path) -> None:
    red = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    tall = np.full((60, 30, 3), (0, 0, 255), np.uint8)
    path = tmp_path / "deep" / "rows.png"
    draw_rows(path, [[("a", red), ("b", red)]], CLASSES, [0], scale="inferno")
    one = read(path)
    assert list(path.parent.iterdir()) == [path]
    draw_rows(path, [[("a", red), ("b", red)], [("c\nd", tall), ("", tall)]], CLASSES, [])
    two = read(path)
    assert two.shape[0] > 2 * one.shape[0]
    assert one.shape[1] > two.shape[1]  # the scale
    plain = [(two == color).all(axis=2).mean() for color in COLORS]
    assert 2 < plain[1] / plain[0] < 4
    assert (one == (0, 0, 255)).all(axis=2).sum() == 0
