# SPDX-License-Identifier: Apache-2.0
"""Pictures of panoptic results side by side: image, truth, prediction, one row per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.catalog import Metadata

from padding.data.files import save_picture
from padding.engine.label_placement import spread_labels
from padding.engine.random_state import preserved_random_state
from padding.engine.saliency_picture import GAP_PX, beside

HEADER_PX = 34


class SheetRow(NamedTuple):
    """One image of the sheet."""

    image: npt.NDArray[np.uint8]  # (h, w, 3) RGB
    truth: tuple[npt.NDArray[Any], Sequence[Mapping[str, Any]]]  # (h, w) segment ids, segments with contiguous ids
    prediction: tuple[npt.NDArray[Any], Sequence[Mapping[str, Any]]]


def draw_panoptic(
    image: npt.NDArray[np.uint8],
    segment_ids: npt.NDArray[Any],
    segments: Sequence[Mapping[str, Any]],
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
    from detectron2.utils.visualizer import Visualizer

    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    enlarged = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    ids = cv2.resize(np.ascontiguousarray(segment_ids).astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    if not segments:  # an empty list makes the visualizer blend the whole image with nothing
        return enlarged
    infos = [{key: s[key] for key in ("id", "category_id", "isthing")} for s in segments]
    with preserved_random_state(with_cuda=False):
        np.random.seed(0)  # noqa: NPY002  (the visualizer jitters colours by the global state; equal input, equal picture)
        canvas = Visualizer(enlarged, metadata=metadata)
        picture = canvas.draw_panoptic_seg(torch.from_numpy(ids), infos, alpha=0.55)
    return spread_labels(picture).get_image()


def _header(titles: Sequence[str], width: int, panels: int) -> npt.NDArray[np.uint8]:
    step = width + GAP_PX
    strip = np.full((HEADER_PX, step * len(titles) * panels - GAP_PX, 3), 255, np.uint8)
    for column, title in enumerate([*titles] * panels):
        position = (column * step + 6, HEADER_PX - 11)
        cv2.putText(strip, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


def draw_contact_sheet(
    path: str | Path,
    rows: Sequence[SheetRow],
    metadata: Metadata,
    *,
    scale: float = 1.0,
    panels: int = 1,
    titles: Sequence[str] = ("image", "truth (* unseen in training)", "prediction"),
) -> None:
    """Write image, truth and prediction of several images of one size as one picture.

    Args:
        path: image file, its ending chooses the format; the folder is made if missing.
        rows: the images, all of the same size.
        metadata: class names and colours.
        scale: enlargement of each image.
        panels: images side by side, each with its three pictures; the last ones are left out if they fill no line.
        titles: headings of the three columns.

    Raises:
        ValueError: with too few images for one line, or if the file cannot be written.
    """
    if len(rows) < panels:
        raise ValueError(f"a contact sheet with {panels} panels needs at least that many images, got {len(rows)}")
    cells = []
    for row in rows[: len(rows) // panels * panels]:
        size = (round(row.image.shape[1] * scale), round(row.image.shape[0] * scale))
        plain = np.asarray(cv2.resize(row.image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        drawn = (draw_panoptic(row.image, *part, metadata, scale=scale) for part in (row.truth, row.prediction))
        cells.append(beside(plain, *drawn))
    lines = [beside(*cells[i : i + panels]) for i in range(0, len(cells), panels)]
    save_picture(np.concatenate([_header(titles, size[0], panels), beside(*lines, axis=0)]), path)
