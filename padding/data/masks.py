# SPDX-License-Identifier: Apache-2.0
"""The one reader of instance masks: polygons and run-length code are checked before pycocotools draws them.

pycocotools draws what it is given: counts that end early leave uninitialised memory in the mask, a coordinate that is
no number or far away ends the process. Training, preparation and evaluation therefore all read masks here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from padding.errors import DataError

MIN_POLYGON_NUMBERS = 6
MAX_PIXELS = (1 << 31) - 1
"""pycocotools counts the pixels of a mask in 32 bits."""
_MAX_OUTLINE = 1 << 27  # points that pycocotools draws along an outline, five a pixel: 2 GB of memory
_POINTS_PER_PIXEL = 5
_GRID = 5.0  # places in a pixel at which pycocotools puts the points of a polygon
_CHUNK = 1 << 22  # characters of run-length code checked at a time


def without_short_polygons(segmentation: Any) -> Any:
    """Of polygons those with at least three points (COCO 2014 has a few others); anything else as it is."""
    if not isinstance(segmentation, list):
        return segmentation
    return [p for p in segmentation if not isinstance(p, list) or len(p) >= MIN_POLYGON_NUMBERS or len(p) % 2]


def annotation_mask(
    annotation: Mapping[str, Any], size: tuple[int, int], *, path: object = ""
) -> npt.NDArray[np.uint8]:
    """Binary mask (h, w) uint8 of a COCO instance given as polygons or as run-length code.

    Args:
        annotation: with ``segmentation``: a list of polygons, or run-length code (compressed or not).
        size: (h, w) of the image.
        path: the file, for the message.

    Raises:
        DataError: the segmentation has another form or another size; it names ``path`` and the annotation's id.
    """
    from pycocotools import mask as coco_mask

    check_masks([annotation], size, path=path)
    return coco_mask.decode(run_length_code(annotation["segmentation"], size))


def check_masks(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], *, path: object = "") -> None:
    """Raise a DataError, as of ``annotation_mask``, at the first of an image's annotations that cannot be drawn."""
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    problems = mask_problems(segmentations, [size] * len(segmentations))
    if problems:
        index = min(problems)
        name = annotations[index].get("id", "?")
        raise DataError(f"{path}: annotation {name} {problems[index]}; correct its 'segmentation'")


def draw_polygons(polygons: Sequence[npt.NDArray[np.float64]], canvas: npt.NDArray[np.bool_]) -> None:
    """Set the pixels of a canvas that lie in any of some polygons: those of COCO's own drawing, in the box alone.

    Args:
        polygons: at least one of (P, 2) float (x, y) in pixels of the canvas; they may leave it.
        canvas: (h, w) bool, changed in place.
    """
    from pycocotools import mask as coco_mask

    # COCO draws on a grid of fifths of a pixel. Points are put on it first, so that moving them to the corner of the
    # box, which is drawn in place of the whole canvas, rounds none of them to another place.
    grid = [np.trunc(_GRID * polygon + 0.5) for polygon in polygons]
    points = np.concatenate(grid)
    first = np.maximum(np.floor(points.min(axis=0) / _GRID).astype(int), 0)
    last = np.minimum(np.ceil(points.max(axis=0) / _GRID).astype(int) + 1, canvas.shape[::-1])
    width, height = (last - first).tolist()
    if width <= 0 or height <= 0:
        return
    moved = [polygon - _GRID * first for polygon in grid]
    # COCO adds a half and cuts the fraction off, which moves what is negative to the right: undone here.
    moved = [np.where(polygon < 0, polygon - 0.7, polygon) / _GRID for polygon in moved]
    codes = coco_mask.frPyObjects([polygon.ravel() for polygon in moved], height, width)
    canvas[first[1] : last[1], first[0] : last[0]] |= coco_mask.decode(coco_mask.merge(codes)).view(bool)


def run_length_code(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed code ``{"size", "counts"}`` of a segmentation in which ``mask_problems`` found nothing."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, Mapping):
        code = {"size": list(size), "counts": segmentation["counts"]}
        return coco_mask.frPyObjects(code, *size) if isinstance(code["counts"], list) else code
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))


def mask_problems(segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> dict[int, str]:
    """What is wrong with the masks of some annotations, by their position; sound ones are left out.

    Written for a million annotations: texts of run-length code are checked together.

    Args:
        segmentations: lists of polygons or run-length codes.
        sizes: (h, w) of the image of each.
    """
    problems: dict[int, str] = {}
    codes: list[bytes] = []
    code_of: list[int] = []
    for index, (segmentation, size) in enumerate(zip(segmentations, sizes, strict=True)):
        if isinstance(segmentation, list):
            problem = _polygon_problem(segmentation, size)
        elif isinstance(segmentation, Mapping):
            problem, text = _code_problem(segmentation, size)
            if text:
                codes.append(text)
                code_of.append(index)
        else:
            problem = f"has neither polygons nor run-length code, but {_shown(segmentation)}"
        if problem:
            problems[index] = problem
    pixels = [sizes[index][0] * sizes[index][1] for index in code_of]
    for position, problem in _text_problems(codes, pixels):
        problems[code_of[position]] = problem
    return problems


def _shown(value: object) -> str:
    return text if len(text := repr(value)) <= 40 else f"{text[:40]} ..."


def _polygon_problem(polygons: Sequence[Any], size: tuple[int, int]) -> str:
    if not polygons:
        return "has neither polygons of at least three points nor run-length code"
    return next(filter(None, (_form_problem(p) or _place_problem(p, size) for p in polygons)), "")


def _form_problem(polygon: Any) -> str:
    if isinstance(polygon, (str, bytes, Mapping)) or not hasattr(polygon, "__len__"):
        return f"has {_shown(polygon)} where a polygon is expected; [[x, y, x, y, x, y]] is a list of one polygon"
    if len(polygon) < MIN_POLYGON_NUMBERS or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers; it needs x and y of at least three points"
    return ""


def _place_problem(polygon: Sequence[Any], size: tuple[int, int]) -> str:
    reach = max(size)
    try:
        # Not a number and infinity show in the sum; comparisons alone would let the first pass.
        finite, low, high = math.isfinite(sum(polygon)), min(polygon), max(polygon)
    except (TypeError, ValueError, OverflowError):
        return f"has a polygon that holds something else than numbers: {_shown(list(polygon))}"
    if not finite:
        return f"has a polygon with a coordinate that is no finite number: {_shown(list(polygon))}"
    if low < -reach or high > 2 * reach:
        far = low if low < -reach else high
        return f"has a coordinate {far:g}, farther from the image of {size[0]} x {size[1]} than it is large"
    # An outline this long takes gigabytes to draw: millions of points, or lines to and fro.
    if len(polygon) * reach * 2 * _POINTS_PER_PIXEL > _MAX_OUTLINE and _outline(polygon) > _MAX_OUTLINE:
        return f"has a polygon of {len(polygon) // 2} points whose outline is too long to draw"
    return ""


def _outline(polygon: Sequence[float]) -> float:
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return float(steps.sum()) * _POINTS_PER_PIXEL


def _code_problem(code: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, bytes]:
    """Problem of a run-length code, and the text that is still to be checked."""
    counts, stated = code.get("counts"), code.get("size")
    if not isinstance(stated, (list, tuple)) or tuple(stated) != tuple(size):
        return f"has run-length code of size {_shown(stated)}, the image is {size[0]} x {size[1]} (height, width)", b""
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if isinstance(counts, bytes):
        return ("", counts) if counts else ("has empty run-length code", b"")
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return f"has run-length code whose 'counts' are neither integers nor text: {_shown(counts)}", b""
    if not counts or min(counts) < 0:
        return f"has run-length code with {'a negative count' if counts else 'no counts'}", b""
    return _sum_problem(sum(counts), size[0] * size[1]), b""


def _sum_problem(total: int, pixels: int) -> str:
    return "" if total == pixels else f"has run-length code of {total} pixels, its size has {pixels}"


def _text_problems(codes: Sequence[bytes], pixels: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Position and problem of each unsound compressed code, chunk by chunk."""
    first, chars = 0, 0
    for position, code in enumerate(codes):
        chars += len(code)
        if chars >= _CHUNK or position == len(codes) - 1:
            part = slice(first, position + 1)
            for found, problem in _chunk_problems(codes[part], np.asarray(pixels[part], np.int64)):
                yield first + found, problem
            first, chars = position + 1, 0


def _chunk_problems(codes: Sequence[bytes], pixels: npt.NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Decode all codes at once; COCO's text holds five bits a character, low ones first, differences from the third on.

    Letters: C characters, N numbers, A codes.
    """
    data = np.frombuffer(b"".join(codes), np.uint8) - np.uint8(ord("0"))  # (C,); below "0" wraps around to large
    code_start = np.cumsum([0, *map(len, codes)])[:-1]  # (A,)
    strange = np.add.reduceat(data > 63, code_start) > 0
    # The last character of a number lacks the bit 32; that of a code ends a number in any case.
    last = (data & 32) == 0
    cut = ~last[np.append(code_start[1:], len(data)) - 1]
    last[np.append(code_start[1:], len(data)) - 1] = True
    number_start = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))  # (N,)
    length = np.diff(number_start, append=len(data))
    place = np.arange(len(data)) - np.repeat(number_start, length)
    value = np.add.reduceat((data & 31).astype(np.int64) << (5 * np.minimum(place, 7)), number_start)
    negative = (data[number_start + length - 1] & 16) > 0
    value -= negative.astype(np.int64) << (5 * np.minimum(length, 8))
    first = np.searchsorted(number_start, code_start)  # (A,) position of each code's first number
    counts = _undo_differences(value, first)
    too_long = np.maximum.reduceat(length, first) > 7
    below = np.minimum.reduceat(counts, first) < 0
    total = np.add.reduceat(np.clip(counts, 0, 1 << 32), first)
    for position in np.flatnonzero(strange | cut | too_long | below | (total != pixels)).tolist():
        if strange[position] or cut[position] or too_long[position]:
            yield position, f"has run-length code that is garbled or was cut: {_shown(codes[position])}"
        elif below[position]:
            yield position, "has run-length code with a negative count"
        else:
            yield position, _sum_problem(int(total[position]), int(pixels[position]))


def _undo_differences(value: npt.NDArray[np.int64], first: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Counts (N,) of numbers that, from the fourth of each code on, are differences to the last but one."""
    index = np.arange(len(value)) - np.repeat(first, np.diff(first, append=len(value)))
    counts = value.copy()
    for chain in (index % 2 == 1, (index % 2 == 0) & (index > 0)):
        sums = np.cumsum(value[chain])
        # A chain begins anew with each code: what the codes before it summed up to is taken off.
        begins = np.flatnonzero(index[chain] <= 2)
        before = np.concatenate(([0], sums))[begins]
        counts[chain] = sums - np.repeat(before, np.diff(begins, append=len(sums)))
    return counts
