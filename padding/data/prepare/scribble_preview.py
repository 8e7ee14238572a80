# SPDX-License-Identifier: Apache-2.0
"""A sheet of images with their scribbles, to be looked at before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.files import save_picture
from padding.data.photographs import read_photograph
from padding.data.prepare.scribbles import ScribbleTask
from padding.data.readers import read_label_map
from padding.data.sample import IGNORE_LABEL
from padding.data.scribbles.folder import ScribbleFolder
from padding.errors import PreparationError

_ROWS, _COLUMNS = 4, 3
_TILE = (360, 480)


def draw_preview(
    tasks: Sequence[ScribbleTask], folder: ScribbleFolder, palette: Sequence[Sequence[int]], path: Path
) -> int:
    """Draw up to twelve images, evenly spread over the data set.

    Args:
        tasks: the images.
        folder: of their scribbles.
        palette: RGB of each class.
        path: image file to write.

    Returns:
        Number of images drawn.

    Raises:
        PreparationError: there are no scribbles, or a file cannot be read or written.
    """
    drawable = [task for task in tasks if folder.png(task.key).is_file()]
    if not drawable:
        raise PreparationError(f"{folder.path}: no scribbles to draw; simulate or convert first")
    chosen = np.linspace(0, len(drawable) - 1, min(_ROWS * _COLUMNS, len(drawable))).astype(int)
    tiles = [_tile(drawable[i], folder, np.array(palette, np.uint8)) for i in chosen]
    write_sheet(path, tiles, _COLUMNS)
    return len(chosen)


def write_sheet(path: Path, tiles: Sequence[npt.NDArray[np.uint8]], columns: int) -> None:
    """Write RGB pictures (h, w, 3) of one size as one, line by line; what they do not fill is white.

    Raises:
        ConfigError: for a suffix that is no picture's.
    """
    filled = [*tiles, *[np.full_like(tiles[0], 255)] * (-len(tiles) % columns)]
    save_picture(np.vstack([np.hstack(filled[i : i + columns]) for i in range(0, len(filled), columns)]), path)


def _tile(task: ScribbleTask, folder: ScribbleFolder, colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image, dimmed, with its scribbles in the colours of their classes, fitted into a white tile."""
    image = (read_photograph(task.image_file) // 2 + 64).astype(np.uint8)
    raster = read_label_map(folder.png(task.key))
    drawn = raster < min(IGNORE_LABEL, len(colors))
    image[drawn] = colors[raster[drawn]]
    scale = min(_TILE[0] / image.shape[0], _TILE[1] / image.shape[1])
    # Whole steps keep the lines of small images as they are; averaging keeps thin lines visible in large ones.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    fitted = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how))
    tile = np.full((*_TILE, 3), 255, np.uint8)
    part = fitted[: _TILE[0], : _TILE[1]]
    tile[: part.shape[0], : part.shape[1]] = part
    return tile
