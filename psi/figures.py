# SPDX-License-Identifier: Apache-2.0
"""Figures of PSI: growing labels in strips, mIoU over the budget of ink. Arrays in, one PNG out.

Drawn by matplotlib's Agg without pyplot: no window system, no global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from padding.data.class_split import ClassSplit
from padding.data.sample import IGNORE_LABEL
from psi.budget import BudgetCurve
from psi.inspection import Inspected
from psi.label_quality import LabelQuality

__all__ = ["draw_budget", "draw_strips", "labels_over_image", "thick_scribbles"]

DPI = 150
PANEL_INCHES = 1.75  # width of a picture
TITLE_INCHES = 0.36
TITLE_SIZE = 7.0
LEGEND_ROW_INCHES = 0.2
LEGEND_ENTRY_INCHES = 1.15
# Least width of a scribble, as a share of the picture: thinner ones are hard to see on a page.
SCRIBBLE_SHARE = 0.018
CONFIDENCE_MAP = "viridis"

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def thick_scribbles(scribbles: Labels, num_classes: int, width: int) -> Labels:
    """Widen lines for a picture; where two classes meet the later one lies on top.

    Args:
        scribbles: (h, w) int64, what is no class in [0, K) is unlabeled.
        num_classes: K.
        width: pixels added across, >= 0.

    Returns:
        (h, w) int64, every drawn pixel with its own class.
    """
    wide = np.full_like(scribbles, IGNORE_LABEL)
    kernel = np.ones((width + 1, width + 1), np.uint8)
    for label in np.unique(scribbles[(scribbles >= 0) & (scribbles < num_classes)]):
        wide[cv2.dilate((scribbles == label).astype(np.uint8), kernel) > 0] = label
    return np.where(scribbles < num_classes, scribbles, wide)


def labels_over_image(image: Image, labels: Labels, colors: npt.NDArray[np.uint8]) -> Image:
    """Labels in the colors of their classes, opaque, on the image, pale and grey, where nothing is labeled.

    Args:
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) int64.
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


def draw_strips(path: str | Path, images: Sequence[Inspected], classes: ClassSplit, *, bgr: bool = False) -> None:
    """Draw one row for each image.

    Args:
        path: image file, whose ending chooses the format.
        images: at least one, all grown in the same number of steps.
        classes: names and colors.
        bgr: the samples' channel order.
    """
    colors = np.asarray(classes.colors, np.uint8)
    with_truth = any(image.truth is not None for image in images)
    rows = [_pictures(image, colors, bgr=bgr, with_truth=with_truth) for image in images]
    columns = len(rows[0])
    heights = [PANEL_INCHES * row[0][1].shape[0] / row[0][1].shape[1] + TITLE_INCHES for row in rows]
    shown = _classes_shown(images, len(colors))
    width = PANEL_INCHES * columns + 0.6
    lines = -(-len(shown) // max(1, int(width // LEGEND_ENTRY_INCHES)))
    legend = LEGEND_ROW_INCHES * lines + 0.1
    figure = _figure(width, sum(heights) + legend)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(axes_row, row, strict=True):
            _show(axes, title, picture)
    bar = ScalarMappable(Normalize(0.0, 1.0), CONFIDENCE_MAP)
    figure.colorbar(bar, ax=grid[:, -1], fraction=0.08, aspect=25).ax.tick_params(labelsize=TITLE_SIZE)
    columns_of_legend = -(-len(shown) // lines)
    handles = [Patch(facecolor=colors[i] / 255.0, edgecolor="#666666", label=classes.names[i]) for i in shown]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns_of_legend, fontsize=TITLE_SIZE, frameon=False
    )
    _save(figure, path)


def draw_budget(path: str | Path, curves: Sequence[BudgetCurve], *, metric: str = "mIoU") -> None:
    """Draw a metric over the share of labeled pixels, one color for each curve.

    Args:
        path: image file, whose ending chooses the format.
        curves: their dense scores become dashed horizontal lines.
        metric: its name, for the axis.

    Raises:
        ValueError: no curve has a point.
    """
    if not any(curve.points for curve in curves):
        raise ValueError("no training with scribbles among the results; name folders of such trainings with --results")
    figure = _figure(5.4, 3.8)
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        color = f"C{index}"
        x, y, spread = ([getattr(p, name) for p in curve.points] for name in ("labeled_pct", "mean", "spread"))
        if curve.points:
            axes.errorbar(x, y, yerr=spread, color=color, marker="o", ms=4, capsize=3, lw=1.4, label=curve.name)
        if curve.full is not None:
            axes.axhline(curve.full, color=color, ls="--", lw=1.2, label=f"{curve.name}, dense labels")
    _name_lengths(axes, curves)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({point.labeled_pct for curve in curves for point in curve.points})
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.set(xlabel="labeled pixels of the training set, %", ylabel=f"{metric}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=TITLE_SIZE + 1)
    _save(figure, path)


def _name_lengths(axes: Axes, curves: Sequence[BudgetCurve]) -> None:
    """Say on the upper axis how much of each simulated curve is drawn."""
    lengths = {p.labeled_pct: p.length for curve in curves for p in curve.points if p.length is not None}
    for x, length in lengths.items():
        text = "dots" if length == 0 else f"length {length:g}"
        axes.text(x, 1.02, text, transform=axes.get_xaxis_transform(), fontsize=TITLE_SIZE, ha="center", va="bottom")


def _pictures(
    image: Inspected, colors: npt.NDArray[np.uint8], *, bgr: bool, with_truth: bool
) -> list[tuple[str, Image]]:
    """Titles and pictures of one row."""
    height, width = image.scribbles.shape
    seen = image.sample["image"].permute(1, 2, 0).numpy()
    picture = _resized(np.ascontiguousarray(seen[..., ::-1] if bgr else seen), (width, height))
    scribbles = image.scribbles.numpy()
    own = thick_scribbles(scribbles, len(colors), round(SCRIBBLE_SHARE * width))
    quality = image.quality
    drawn = labels_over_image(picture, own, colors)
    row = [(image.key, picture), (f"scribbles, {100 * quality[0].coverage:.1f} %", drawn)]
    for step, state in enumerate(image.labels.states[1:], start=1):
        labels = labels_over_image(picture, state.labels[0].cpu().numpy(), colors)
        row.append((_step_title(step, quality[step]), labels))
    scores = image.labels.scores.cpu().numpy()
    prediction, confidence = scores.argmax(axis=0), scores.max(axis=0)
    truth = None if image.truth is None else image.truth.numpy()
    title = "prediction" if truth is None else f"prediction\n{_pixel_accuracy(prediction, truth)}"
    row.append((title, labels_over_image(picture, prediction, colors)))
    if with_truth:
        known = np.full_like(scribbles, IGNORE_LABEL) if truth is None else truth
        row.append(("truth" if truth is not None else "truth unknown", _on_white(known, colors)))
    row.append((f"confidence max M\nmean {confidence.mean():.2f}", _confidence_colors(confidence)))
    return row


def _step_title(step: int, quality: LabelQuality) -> str:
    title = f"$y_{{{step}}}$: {100 * quality.coverage:.1f} % labeled"
    return title if np.isnan(quality.accuracy) else f"{title}\n{100 * quality.accuracy:.1f} % of them right"


def _pixel_accuracy(prediction: Labels, truth: Labels) -> str:
    known = truth != IGNORE_LABEL
    return f"{100 * np.mean(prediction[known] == truth[known]):.1f} % right" if known.any() else ""


def _on_white(labels: Labels, colors: npt.NDArray[np.uint8]) -> Image:
    """Labels in the colors of their classes, void white."""
    return np.vstack([colors, np.full((1, 3), 255, np.uint8)])[np.where(labels < len(colors), labels, len(colors))]


def _confidence_colors(confidence: npt.NDArray[np.float32]) -> Image:
    colored: Any = ScalarMappable(Normalize(0.0, 1.0), CONFIDENCE_MAP).to_rgba(confidence, bytes=True)
    return np.asarray(colored[..., :3], np.uint8)


def _classes_shown(images: Sequence[Inspected], num_classes: int) -> list[int]:
    """Classes that some picture shows."""
    shown: set[int] = set()
    for image in images:
        maps = [image.scribbles, image.labels.scores.argmax(dim=0), *(s.labels for s in image.labels.states)]
        maps += [] if image.truth is None else [image.truth]
        shown.update(*(labels.unique().tolist() for labels in maps))
    return sorted(i for i in shown if 0 <= i < num_classes)


def _resized(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _show(axes: Axes, title: str, picture: Image) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=TITLE_SIZE, pad=3)
    axes.set_axis_off()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    """Write under a temporary name, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=DPI)
    temporary.replace(path)
