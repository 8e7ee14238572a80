# SPDX-License-Identifier: Apache-2.0
"""Pictures of panoptic results side by side: image, truth, prediction, one row per image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer

__all__ = ["SheetRow", "draw_contact_sheet", "draw_panoptic"]

HEADER_PX = 34
GAP_PX = 8


class SheetRow(NamedTuple):
    """One image of the sheet."""

    image: npt.NDArray[np.uint8]  # (h, w, 3) RGB
    truth: tuple[npt.NDArray[Any], Sequence[dict[str, Any]]]  # (h, w) segment ids, segments with contiguous ids
    prediction: tuple[npt.NDArray[Any], Sequence[dict[str, Any]]]


def draw_panoptic(
    image: npt.NDArray[np.uint8],
    segment_ids: npt.NDArray[Any],
    segments: Sequence[dict[str, Any]],
    metadata: Metadata,
    *,
    scale: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """Draw segments and class names over an image.

    Args:
        image: (h, w, 3) uint8, RGB.
        segment_ids: (h, w) int, 0 is void.
        segments: dicts with ``id``, ``category_id`` (contiguous) and ``isthing``.
        metadata: class names and colours, usually ``predictor.display_metadata``.
        scale: enlargement before drawing; small images need it for legible names.

    Returns:
        (h * scale, w * scale, 3) uint8, RGB.
    """
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    ids = cv2.resize(np.ascontiguousarray(segment_ids).astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    canvas = Visualizer(enlarged, metadata=metadata)
    if not segments:  # an empty list makes the visualizer blend the whole image with nothing
        return enlarged
    infos = [{key: s[key] for key in ("id", "category_id", "isthing")} for s in segments]
    return canvas.draw_panoptic_seg(torch.from_numpy(ids), infos, alpha=0.55).get_image()


def _header(titles: Sequence[str], width: int) -> npt.NDArray[np.uint8]:
    strip = np.full((HEADER_PX, width * len(titles) + GAP_PX * (len(titles) - 1), 3), 255, np.uint8)
    for column, title in enumerate(titles):
        position = (column * (width + GAP_PX) + 6, HEADER_PX - 11)
        cv2.putText(strip, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


def draw_contact_sheet(
    path: str | Path,
    rows: Sequence[SheetRow],
    metadata: Metadata,
    *,
    scale: float = 1.0,
    titles: Sequence[str] = ("image", "truth (* never seen in training)", "prediction"),
) -> None:
    """Write image, truth and prediction of several images of one size as one picture.

    Args:
        path: image file, its ending chooses the format; the folder is made if missing.
        rows: the images, all of the same size.
        metadata: class names and colours.
        scale: enlargement of each image.
        titles: headings of the three columns.

    Raises:
        ValueError: without rows, or if the file cannot be written.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one image")
    strips = []
    for row in rows:
        size = (round(row.image.shape[1] * scale), round(row.image.shape[0] * scale))
        plain = cv2.resize(row.image, size, interpolation=cv2.INTER_CUBIC)
        cells = [
            plain,
            *(draw_panoptic(row.image, *part, metadata, scale=scale) for part in (row.truth, row.prediction)),
        ]
        gap = np.full((size[1], GAP_PX, 3), 255, np.uint8)
        strips.append(np.concatenate([cells[0], gap, cells[1], gap, cells[2]], axis=1))
    between = np.full((GAP_PX, strips[0].shape[1], 3), 255, np.uint8)
    stacked = [part for strip in strips for part in (strip, between)][:-1]
    sheet = np.concatenate([_header(titles, size[0]), *stacked])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[:, :, ::-1]):
        raise ValueError(f"{path} cannot be written; use a name that ends with .png or .jpg in a writable folder")
