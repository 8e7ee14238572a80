# SPDX-License-Identifier: Apache-2.0
"""Scribbles on the page: strokes of classes on an image, labels that grow from them, the label map as a file.

Labels grow from all strokes at once each time. A correction is a stroke more, or one less: what grew wrongly is not
kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import voc_palette
from padding.engine.label_map import write_label_map
from padding.engine.picture_rows import labels_over_image
from padding.errors import DataError
from padding.page.models import PageModel
from padding.page.pictures import Image, enlarged

_LEAST_ALPHA = 128  # of a pixel of a stroke: its soft rim is left out
_NEAR = 12  # largest difference of a channel from the colour of a class; colours of classes are 32 apart at least

Labels = npt.NDArray[np.int64]


class Grown(NamedTuple):
    """Labels of an image, step by step."""

    pictures: list[Image]  # of the strokes and of every step, the image pale where nothing is known
    captions: list[str]  # one for each picture
    labels: Labels  # (h, w) of the last step, 255 where nothing is known


def stroke_colors(number: int) -> tuple[tuple[int, int, int], ...]:
    """RGB of the strokes of so many classes, at most 254; no two alike, none black."""
    return voc_palette(number + 1)[1:]


def strokes_of(
    layers: Sequence[npt.NDArray[np.uint8]], size: tuple[int, int], colors: Sequence[tuple[int, int, int]]
) -> Labels:
    """Class of every drawn pixel, by its colour.

    Args:
        layers: each (H, W, 4) uint8, RGBA, transparent where nothing is drawn; later ones lie on top.
        size: (h, w) of the image; layers of another size are resized.
        colors: RGB of the classes.

    Returns:
        (h, w) int64, 255 where nothing is drawn or the colour is that of no class.
    """
    palette = np.asarray(colors, dtype=np.int64)
    labels = np.full(size, IGNORE_LABEL, dtype=np.int64)
    for layer in layers:
        fitted = np.asarray(cv2.resize(layer, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))
        drawn = fitted[..., 3] >= _LEAST_ALPHA
        distances = np.abs(fitted[drawn][:, None, :3].astype(np.int64) - palette).max(axis=2)  # (pixels, K)
        nearest = distances.argmin(axis=1)
        known = distances.min(axis=1) <= _NEAR
        labels[drawn] = np.where(known, nearest, labels[drawn])
    return labels


def grow(model: PageModel, image: Image, strokes: Labels) -> Grown:
    """Grow labels from strokes.

    Args:
        model: whose labels grow.
        image: (h, w, 3) uint8, RGB.
        strokes: (h, w) int64, class ids, 255 elsewhere.

    Raises:
        DataError: nothing is drawn.
        MethodError: labels of the model do not grow.
    """
    with model.in_use() as predictor:
        if not (strokes < len(predictor.class_names)).any():
            raise DataError("nothing is drawn yet; choose a class and draw some strokes of at least two classes")
        states = predictor.grow_labels(image, strokes)
    colors = np.asarray(stroke_colors(len(model.class_names)), np.uint8)
    pictures = [enlarged(labels_over_image(image, labels, colors)) for labels in states]
    shares = [100 * float((labels != IGNORE_LABEL).mean()) for labels in states]
    captions = [f"strokes: {shares[0]:.1f} % labeled"]
    captions += [f"step {step}: {share:.1f} % labeled" for step, share in enumerate(shares[1:], start=1)]
    return Grown(pictures, captions, states[-1])


def save_labels(path: Path, labels: Labels, num_classes: int) -> None:
    """Write labels (h, w) as an index PNG: the number of the class, 255 where nothing is known, colours as drawn."""
    write_label_map(path, labels.astype(np.uint8), stroke_colors(num_classes))
