# SPDX-License-Identifier: Apache-2.0
"""Figures of PSI: growing labels in strips, mIoU over the budget of ink. Arrays in, one PNG out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, NullFormatter

from padding.data.class_split import ClassSplit
from padding.data.files import save_figure
from padding.data.sample import IGNORE_LABEL
from padding.engine.picture_rows import (
    TITLE_SIZE,
    Image,
    Titled,
    classes_in,
    draw_rows,
    labels_on_white,
    labels_over_image,
    new_figure,
)
from padding.errors import DataError
from psi.budget import BudgetCurve
from psi.inspection import Inspected
from psi.label_quality import LabelQuality

# Least width of a scribble, as a share of the picture: thinner ones are hard to see on a page.
SCRIBBLE_SHARE = 0.018
CONFIDENCE_MAP = "viridis"

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
    draw_rows(path, rows, classes, _classes_shown(images, len(colors)), scale=CONFIDENCE_MAP)


def draw_budget(path: str | Path, curves: Sequence[BudgetCurve], *, metric: str = "mIoU") -> None:
    """Draw a metric over the share of labeled pixels, one color for each curve.

    Args:
        path: image file, whose ending chooses the format.
        curves: their dense scores become dashed horizontal lines.
        metric: its name, for the axis.

    Raises:
        DataError: no curve has a point.
    """
    if not any(curve.points for curve in curves):
        raise DataError("no training with scribbles among the results; name folders of such trainings with --results")
    figure = new_figure(5.4, 3.8)
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
    save_figure(figure, path)


def _name_lengths(axes: Axes, curves: Sequence[BudgetCurve]) -> None:
    """Say on the upper axis how much of each simulated curve is drawn."""
    lengths = {p.labeled_pct: p.length for curve in curves for p in curve.points if p.length is not None}
    for x, length in lengths.items():
        text = "dots" if length == 0 else f"length {length:g}"
        axes.text(x, 1.02, text, transform=axes.get_xaxis_transform(), fontsize=TITLE_SIZE, ha="center", va="bottom")


def _pictures(image: Inspected, colors: npt.NDArray[np.uint8], *, bgr: bool, with_truth: bool) -> list[Titled]:
    """Titles and pictures of one row."""
    height, width = image.scribbles.shape
    seen = image.sample["image"].permute(1, 2, 0).numpy()
    picture = _resized(np.ascontiguousarray(seen[..., ::-1] if bgr else seen), (width, height))
    scribbles = image.scribbles.numpy()
    visible = thick_scribbles(scribbles, len(colors), round(SCRIBBLE_SHARE * width))
    quality = image.quality
    drawn = labels_over_image(picture, visible, colors)
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
        row.append(("truth" if truth is not None else "truth unknown", labels_on_white(known, colors)))
    row.append((f"confidence max M\nmean {confidence.mean():.2f}", _confidence_colors(confidence)))
    return row


def _step_title(step: int, quality: LabelQuality) -> str:
    title = f"$y_{{{step}}}$: {100 * quality.coverage:.1f} % labeled"
    return title if np.isnan(quality.accuracy) else f"{title}\n{100 * quality.accuracy:.1f} % of them right"


def _pixel_accuracy(prediction: Labels, truth: Labels) -> str:
    known = truth != IGNORE_LABEL
    return f"{100 * np.mean(prediction[known] == truth[known]):.1f} % right" if known.any() else ""


def _confidence_colors(confidence: npt.NDArray[np.float32]) -> Image:
    colored: Any = ScalarMappable(Normalize(0.0, 1.0), CONFIDENCE_MAP).to_rgba(confidence, bytes=True)
    return np.asarray(colored[..., :3], np.uint8)


def _classes_shown(images: Sequence[Inspected], num_classes: int) -> list[int]:
    """Classes that some picture shows."""
    maps = []
    for image in images:
        maps += [image.scribbles, image.labels.scores.argmax(dim=0), *(s.labels for s in image.labels.states)]
        maps += [] if image.truth is None else [image.truth]
    return classes_in([labels.cpu().numpy() for labels in maps], num_classes)


def _resized(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
