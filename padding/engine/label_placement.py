# SPDX-License-Identifier: Apache-2.0
"""Class names in a picture: inside it, and none over another."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SHRINKING = (1.0, 0.85, 0.7)  # font sizes that are tried, as parts of the wanted one
REACH = 0.25  # of the picture's longer side; a name further away would be read as that of another segment


class Box(NamedTuple):
    """Pixels [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


def place_label(wanted: Box, taken: Sequence[Box], size: tuple[int, int], reach: float = math.inf) -> Box | None:
    """The free position that is nearest to the wanted one.

    Args:
        wanted: the label's box where it would be drawn; may lie outside the picture.
        taken: boxes that it must not cover.
        size: width and height of the picture.
        reach: greatest distance in pixels, from the wanted box moved into the picture.

    Returns:
        A box of the same size inside the picture that covers none of ``taken``; of equally near ones the topmost, then
        the leftmost. None: there is none within reach.
    """
    width, height = wanted.right - wanted.left, wanted.bottom - wanted.top
    if width > size[0] or height > size[1]:
        return None
    left = min(max(wanted.left, 0), size[0] - width)
    top = min(max(wanted.top, 0), size[1] - height)
    others = np.array(taken, dtype=np.int64).reshape(-1, 4)
    # The nearest free position keeps a coordinate or touches a taken box along it.
    lefts = np.unique(np.concatenate([[left], others[:, 0] - width, others[:, 2]]))
    tops = np.unique(np.concatenate([[top], others[:, 1] - height, others[:, 3]]))
    lefts, tops = lefts[(lefts >= 0) & (lefts <= size[0] - width)], tops[(tops >= 0) & (tops <= size[1] - height)]
    y, x = (axis.reshape(-1, 1) for axis in np.meshgrid(tops, lefts, indexing="ij"))
    apart = (others[:, 2] <= x) | (others[:, 0] >= x + width) | (others[:, 3] <= y) | (others[:, 1] >= y + height)
    distance = np.where(apart.all(axis=1), np.hypot(x - left, y - top)[:, 0], np.inf)
    best = int(np.argmin(distance))
    if distance[best] > reach or distance[best] == np.inf:
        return None
    x0, y0 = int(x[best, 0]), int(y[best, 0])
    return Box(x0, y0, x0 + width, y0 + height)


def spread_labels(picture: Any) -> Any:
    """Move the class names of a picture inside it and apart.

    Names of larger segments choose first and keep their places. A name that finds no place near its own is tried in
    smaller letters (``SHRINKING``), then left out. Names that nothing covers are drawn as ever.

    Args:
        picture: ``VisImage`` of Detectron2's ``Visualizer``, changed in place.

    Returns:
        The picture.
    """
    renderer = picture.canvas.get_renderer()
    size = (round(picture.width * picture.scale), round(picture.height * picture.scale))
    taken: list[Box] = []
    for text, _ in sorted(_texts_and_areas(picture.ax), key=lambda pair: -pair[1]):
        wanted_size = text.get_fontsize()
        for part in SHRINKING:
            text.set_fontsize(wanted_size * part)
            wanted = _extent(text, renderer, size[1])
            box = place_label(wanted, taken, size, REACH * max(size))
            if box is not None:
                x, y = text.get_position()
                shift = np.subtract(box[:2], wanted[:2]) / picture.scale
                text.set_position((x + shift[0], y + shift[1]))
                taken.append(box)
                break
        else:
            text.set_visible(False)
    return picture


def _extent(text: Any, renderer: Any, height: int) -> Box:
    """Whole pixels that a text and its background touch; rows count from the top."""
    text.update_bbox_position_size(renderer)
    x0, y0, x1, y1 = text.get_bbox_patch().get_window_extent(renderer).extents
    return Box(math.floor(x0), math.floor(height - y1), math.ceil(x1), math.ceil(height - y0))


def _texts_and_areas(axes: Any) -> Iterator[tuple[Any, float]]:
    """Texts with the area of their segments, which the visualizer draws just before: polygons, or a mask with holes."""
    from matplotlib.image import AxesImage
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    area, labeled = 0.0, True
    for artist in axes.get_children():
        if isinstance(artist, Text) and artist.get_text():
            labeled = True
            yield artist, area
        elif isinstance(artist, Patch | AxesImage):
            area, labeled = (0.0 if labeled else area) + _area(artist), False


def _area(shape: Any) -> float:
    from matplotlib.patches import Patch, Polygon

    if isinstance(shape, Polygon):
        x, y = shape.get_xy().T
        return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2  # matplotlib repeats the first corner
    if isinstance(shape, Patch):
        return 0.0  # the box around a polygon that counts
    pixels = shape.get_array()
    # Three channels: the image itself.
    return float(np.count_nonzero(pixels[..., 3])) if pixels.ndim == 3 and pixels.shape[2] == 4 else 0.0
