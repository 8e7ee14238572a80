# SPDX-License-Identifier: Apache-2.0
"""Scribbles of one image: open polylines, ScribbleSup's XML schema, and their raster (PSI, Sec. 5.1).

A scribble is an open polyline with a class (Lin et al., "ScribbleSup", CVPR 2016). Its raster is a label map: class ids
along the lines, 255 elsewhere. Lines are drawn as pixels of the polyline, thickened by a disc, because the line widths
of OpenCV and Pillow differ between their releases; supervision must not.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.sample import IGNORE_LABEL
from padding.data.scribbles.tags import ScribbleTags
from padding.errors import DataError

DEFAULT_WIDTH = 3
"""Pixels across a line, as in the label maps of most scribble papers."""
_MAX_SIDE = 1 << 20
_MAX_WIDTH = 200  # a disc this large is drawn in seconds; one as large as its number says takes all memory


@dataclass(frozen=True, eq=False)
class Scribble:
    """One polyline."""

    label: int  # contiguous class id
    points: npt.NDArray[np.float64]  # (P, 2) x and y in pixels, in drawing order; one point is a dot
    width: int = 0  # pixels across this line; 0: the width that the raster is asked for


@dataclass(frozen=True)
class AnnotatedImage:
    """Scribbles of an image in the order they were drawn, and the image's (h, w) where the file states it."""

    scribbles: tuple[Scribble, ...]
    size: tuple[int, int] | None


def parse_scribble_xml(content: bytes | str, tags: ScribbleTags, *, where: str) -> AnnotatedImage:
    """Scribbles of one ScribbleSup file: ``annotation/polygon`` with ``tag`` and ``point/X,Y``; ``size`` may lack.

    A polygon may carry ``width``, an addition of ours for objects thinner than the usual line.

    Args:
        content: the file.
        tags: what its tags mean.
        where: file name for messages.

    Raises:
        DataError: not such a file, an unknown tag, a coordinate that is no number, or a size or width that is none.
    """
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, LookupError, ValueError) as error:  # the latter two: of an encoding
        raise DataError(f"{where}: not well-formed XML ({error}); obtain the file again") from error
    if root.tag != "annotation":
        raise DataError(f"{where}: the root element is '{root.tag}', ScribbleSup's is 'annotation'; another format?")
    stated = root.find("size")
    size = None if stated is None else (_integer(stated, "height", where), _integer(stated, "width", where))
    scribbles = [_parse_polygon(polygon, tags, where) for polygon in root.iter("polygon")]
    # A polygon without a point labels nothing.
    return AnnotatedImage(tuple(scribble for scribble in scribbles if len(scribble.points)), size)


def _parse_polygon(polygon: ET.Element, tags: ScribbleTags, where: str) -> Scribble:
    tag = polygon.findtext("tag")
    if tag is None:
        raise DataError(f"{where}: a polygon has no tag; name its class")
    points = [(_number(point, "X", where), _number(point, "Y", where)) for point in polygon.iter("point")]
    width = 0 if polygon.find("width") is None else _integer(polygon, "width", where, largest=_MAX_WIDTH)
    return Scribble(tags.id_of(tag, where=where), np.array(points, np.float64).reshape(-1, 2), width)


def _number(element: ET.Element, name: str, where: str) -> float:
    text = element.findtext(name)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        shown = text if text is None else text[:40]
        raise DataError(f"{where}: <{name}> of <{element.tag}> should be a number, it is {shown!r}; correct the file")
    return number


def _integer(element: ET.Element, name: str, where: str, *, largest: int = _MAX_SIDE) -> int:
    number = _number(element, name, where)
    if not number.is_integer() or not 1 <= number <= largest:
        raise DataError(f"{where}: <{name}> of <{element.tag}> should be 1 to {largest}, it is {number:g}; correct it")
    return int(number)


def scribble_xml(image: AnnotatedImage, tags: ScribbleTags, *, image_name: str) -> bytes:
    """The file that ``parse_scribble_xml`` reads; coordinates are rounded to pixels."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = image_name
    if image.size is not None:
        size = ET.SubElement(root, "size")
        for side, value in zip(("width", "height", "depth"), (image.size[1], image.size[0], 3), strict=True):
            ET.SubElement(size, side).text = str(value)
    for scribble in image.scribbles:
        polygon = ET.SubElement(root, "polygon")
        ET.SubElement(polygon, "tag").text = tags.names[scribble.label]
        if scribble.width:
            ET.SubElement(polygon, "width").text = str(scribble.width)
        for x, y in np.rint(scribble.points).astype(int):
            point = ET.SubElement(polygon, "point")
            ET.SubElement(point, "X").text, ET.SubElement(point, "Y").text = str(x), str(y)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def scaled_to(image: AnnotatedImage, size: tuple[int, int]) -> AnnotatedImage:
    """The same scribbles on an image of another (h, w); a size that is not stated is taken to be this one."""
    if image.size is None or image.size == size:
        return AnnotatedImage(image.scribbles, size)
    factors = np.array([size[1] / image.size[1], size[0] / image.size[0]])
    # Pixel centres: the left half of pixel 0 scales to the left half of what it becomes.
    moved = (Scribble(s.label, (s.points + 0.5) * factors - 0.5, s.width) for s in image.scribbles)
    return AnnotatedImage(tuple(moved), size)


def draw_scribbles(
    scribbles: Iterable[Scribble],
    size: tuple[int, int],
    *,
    width: int = DEFAULT_WIDTH,
    first_label: int | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> npt.NDArray[np.uint8]:
    """Label map of some scribbles.

    Args:
        scribbles: in drawing order; where they cross the later one is seen.
        size: (h, w). Points beyond it are moved to its border.
        width: pixels across the lines that state no width of their own, >= 1.
        first_label: class drawn below all others, usually the background; None: all in their order.
        ignore_label: value between the lines.

    Returns:
        (h, w) uint8.
    """
    canvas = np.full(size, ignore_label, np.uint8)
    for scribble in sorted(scribbles, key=lambda s: s.label != first_label):
        canvas[line_mask(scribble.points, size, scribble.width or width)] = scribble.label
    return canvas


def line_mask(points: npt.NDArray[np.float64], size: tuple[int, int], width: int) -> npt.NDArray[np.bool_]:
    """Pixels of a thick polyline, (h, w): those of the thin one, each replaced by a disc of ``width`` pixels across.

    A part of the points therefore gives a part of the pixels. Width 3 is a 3 x 3 square.
    """
    from skimage.draw import line

    mask = np.zeros(size, np.uint8)
    limits = np.array([size[1] - 1, size[0] - 1])
    corners = np.clip(np.rint(points), 0, limits).astype(int)
    mask[corners[:, 1], corners[:, 0]] = 1
    for (x0, y0), (x1, y1) in zip(corners[:-1].tolist(), corners[1:].tolist(), strict=True):
        mask[line(y0, x0, y1, x1)] = 1
    if width > 1 and len(corners):
        # Only the surroundings of the line are worth thickening.
        low = np.maximum(corners.min(axis=0) - width, 0)
        high = corners.max(axis=0) + width + 1
        part = mask[low[1] : high[1], low[0] : high[0]]
        mask[low[1] : high[1], low[0] : high[0]] = cv2.dilate(part, _disc(width))
    return mask.astype(bool)


@cache
def _disc(width: int) -> npt.NDArray[np.uint8]:
    offsets = np.arange(width) - (width - 1) / 2
    return (offsets[:, None] ** 2 + offsets**2 <= (width / 2) ** 2).astype(np.uint8)
