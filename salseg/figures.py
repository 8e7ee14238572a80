# SPDX-License-Identifier: Apache-2.0
"""Figures of SalSeg: both tasks beside the image, weights and losses over a training. Arrays in, one PNG out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from padding.data.class_split import ClassSplit
from padding.data.files import save_figure
from padding.engine.picture_rows import (
    TITLE_SIZE,
    Image,
    Titled,
    classes_in,
    draw_rows,
    labels_on_white,
    new_figure,
)
from padding.engine.saliency_picture import COLORS as SALIENCY_COLORS
from padding.engine.saliency_picture import draw_saliency
from salseg.inspection import Inspected
from salseg.task_weighting import TASKS
from salseg.training_log import Course, TaskCourses

TASK_NAMES = {"seg": "segmentation", "saliency": "saliency"}
TASK_LINES = {"seg": "-", "saliency": "--"}
UNKNOWN_GREY = 128  # not among the colors of saliency, whose lightest one is nearly white


def draw_strips(path: str | Path, images: Sequence[Inspected], classes: ClassSplit) -> None:
    """Draw one row for each image: itself, predicted and true classes, predicted and true saliency.

    Saliency is left out if the model does not predict it, a truth if it is known of no image.

    Args:
        path: image file, whose ending chooses the format.
        images: at least one.
        classes: names and colors.
    """
    colors = np.asarray(classes.colors, np.uint8)
    has_saliency = any(image.saliency is not None for image in images)
    columns = [_image, _segmentation]
    columns += [_true_classes] if any(image.true_labels is not None for image in images) else []
    columns += [_saliency] if has_saliency else []
    columns += [_true_saliency] if has_saliency and any(image.true_saliency is not None for image in images) else []
    maps = [labels for image in images for labels in (image.labels, image.true_labels) if labels is not None]
    draw_rows(
        path,
        [[column(image, colors) for column in columns] for image in images],
        classes,
        classes_in(maps, len(colors)),
        scale=SALIENCY_COLORS if has_saliency else "",
    )


def _image(image: Inspected, colors: npt.NDArray[np.uint8]) -> Titled:
    del colors
    return image.key, image.image


def _segmentation(image: Inspected, colors: npt.NDArray[np.uint8]) -> Titled:
    score = "" if np.isnan(image.miou) else f", mIoU {image.miou:.1f} %"
    return f"segmentation{score}", labels_on_white(image.labels, colors)


def _true_classes(image: Inspected, colors: npt.NDArray[np.uint8]) -> Titled:
    if image.true_labels is None:
        return "true classes unknown", _blank(image)
    return "true classes", labels_on_white(image.true_labels, colors)


def _saliency(image: Inspected, colors: npt.NDArray[np.uint8]) -> Titled:
    del colors
    assert image.saliency is not None  # one model predicts all of them
    score = "" if np.isnan(image.mae) else f", MAE {image.mae:.3f}"
    return f"saliency{score}", draw_saliency(image.image, image.saliency, alpha=1.0)


def _true_saliency(image: Inspected, colors: npt.NDArray[np.uint8]) -> Titled:
    del colors
    if image.true_saliency is None:
        return "true saliency unknown", _blank(image)
    salient, known = image.true_saliency
    picture = draw_saliency(image.image, salient.astype(np.float32), alpha=1.0)
    picture[~known] = UNKNOWN_GREY
    return "true saliency" if known.all() else "true saliency (grey: unknown)", picture


def _blank(image: Inspected) -> Image:
    return np.full_like(image.image, 255)


def draw_courses(path: str | Path, trainings: Sequence[TaskCourses]) -> None:
    """Draw the tasks' weights and losses over the iterations, a color for each training and a line style for each task.

    Args:
        path: image file, whose ending chooses the format.
        trainings: at least one; where one stands for several runs, a band shows their standard deviation.
    """
    figure = new_figure(9.0, 3.8)
    weights, losses = figure.subplots(1, 2)
    for index, training in enumerate(trainings):
        _draw_tasks(weights, training.weights, f"C{index}")
        _draw_tasks(losses, training.losses, f"C{index}")
    weights.set(xlabel="iteration", ylabel="weight of the loss")
    losses.set(xlabel="iteration", ylabel="loss before weighting")
    for axes in (weights, losses):
        _log_axis(axes)
    handles = [Line2D([], [], color=f"C{i}", lw=2.5, label=_name(training)) for i, training in enumerate(trainings)]
    handles += [Line2D([], [], color="#444444", ls=TASK_LINES[task], lw=1.4, label=TASK_NAMES[task]) for task in TASKS]
    columns = min(len(handles), 5)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=TITLE_SIZE + 1, frameon=False)
    save_figure(figure, path)


def _name(training: TaskCourses) -> str:
    return training.name if training.runs == 1 else f"{training.name} ({training.runs} runs)"


def _draw_tasks(axes: Axes, courses: Mapping[str, Course], color: str) -> None:
    for task, course in courses.items():
        mean, spread = np.asarray(course.mean), np.asarray(course.spread)
        axes.plot(course.iterations, mean, color=color, ls=TASK_LINES[task], lw=1.4)
        if spread.any():
            low = np.maximum(mean - spread, mean / 10)  # the axis has no zero
            axes.fill_between(course.iterations, low, mean + spread, color=color, alpha=0.15, lw=0)


def _log_axis(axes: Axes) -> None:
    """Logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=TITLE_SIZE + 1)
    axes.grid(alpha=0.3)
