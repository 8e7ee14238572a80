# SPDX-License-Identifier: Apache-2.0
"""Rows of pictures with titles, a legend of classes and a scale: what the figures of several methods are made of.

Drawn by matplotlib's Agg without pyplot: no window system, no global state.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from padding.data.class_split import ClassSplit
from padding.data.files import save_figure

PANEL_INCHES = 1.75  # width of a picture
TITLE_LINE_INCHES = 0.12
TITLE_SIZE = 7.0
LEGEND_ROW_INCHES = 0.2
LEGEND_ENTRY_INCHES = 1.15

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Titled = tuple[str, Image]


def labels_over_image(image: Image, labels: Labels, colors: npt.NDArray[np.uint8]) -> Image:
    """Labels in the colors of their classes, opaque, on the image, pale and grey, where nothing is labeled.

    Args:
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) integer; what is no class in [0, K) is unlabeled.
        colors: (K, 3) uint8, RGB.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    shade = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = 255 - (255 - shade.astype(np.int64)) * 2 // 5  # classes may be grey themselves
    picture = np.repeat(pale[..., None], 3, axis=2).astype(np.uint8)
    known = (labels >= 0) & (labels < len(colors))
    picture[known] = colors[labels[known]]
    return picture


def labels_on_white(labels: Labels, colors: npt.NDArray[np.uint8]) -> Image:
    """Labels (h, w) in the colors (K, 3) of their classes, void white: (h, w, 3) uint8, RGB."""
    return np.vstack([colors, np.full((1, 3), 255, np.uint8)])[np.where(labels < len(colors), labels, len(colors))]


def classes_in(maps: Sequence[Labels], num_classes: int) -> list[int]:
    """Classes that some label map shows, sorted; void is none."""
    shown = {int(label) for labels in maps for label in np.unique(labels)}
    return sorted(label for label in shown if 0 <= label < num_classes)


def draw_rows(
    path: str | Path, rows: Sequence[Sequence[Titled]], classes: ClassSplit, shown: Sequence[int], *, scale: str = ""
) -> None:
    """Draw pictures in rows.

    Args:
        path: image file, whose ending chooses the format.
        rows: titles and RGB pictures, as many in each row; those of one row have one shape of their sides.
        classes: names and colors.
        shown: classes that stand in the legend.
        scale: matplotlib's name of the colors of numbers in [0, 1]; a bar beside the last column explains them. "": no
            bar.
    """
    columns = len(rows[0])
    heights = [PANEL_INCHES * row[0][1].shape[0] / row[0][1].shape[1] + _title_inches(row) for row in rows]
    width = PANEL_INCHES * columns + (0.6 if scale else 0.0)
    lines = -(-len(shown) // max(1, int(width // LEGEND_ENTRY_INCHES)))
    figure = new_figure(width, sum(heights) + LEGEND_ROW_INCHES * lines + 0.1)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(axes_row, row, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(title, fontsize=TITLE_SIZE, pad=3)
            axes.set_axis_off()
    if scale:
        bar = ScalarMappable(Normalize(0.0, 1.0), scale)
        figure.colorbar(bar, ax=grid[:, -1], fraction=0.08, aspect=25).ax.tick_params(labelsize=TITLE_SIZE)
    if shown:
        colors = np.asarray(classes.colors) / 255.0
        handles = [Patch(facecolor=colors[i], edgecolor="#666666", label=classes.names[i]) for i in shown]
        columns = -(-len(shown) // lines)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=TITLE_SIZE, frameon=False)
    save_figure(figure, path)


def _title_inches(row: Sequence[Titled]) -> float:
    return TITLE_LINE_INCHES * (2 + max(title.count("\n") for title, _ in row))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
