# SPDX-License-Identifier: Apache-2.0
"""Figures of a zero-shot model: t-SNE, primitives, PQ by class, who stole whose segments. Arrays in, one PNG out.

Colours mean the same everywhere: blue is seen, orange is unseen.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from padding.data.files import save_figure
from padding.engine.picture_rows import new_figure
from padding.evaluation.grouping import ClassGroups, group_means
from padding.evaluation.panoptic_confusion import PanopticConfusion
from padding.evaluation.panoptic_quality import PanopticScores

SEEN_COLOR, UNSEEN_COLOR, ABSENT_COLOR = "#4c78a8", "#e8702a", "#bbbbbb"
# Room for one class name on an axis, in inches; figures grow with the number of classes.
ROW_INCHES = 0.17
LABEL_SIZE = 7.0
# Cells of a heat map get their number written in only where it can be read.
LEAST_SHARE_WRITTEN = 0.05
# Brightness of a synthetic feature against the real ones of its class.
DARKER = 0.5


def _name_axis(axes: Axes, which: str, names: Sequence[str], colors: Sequence[str]) -> None:
    """Write class names at 0, 1, ... along one axis, each in the colour of its group."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(len(names)), labels=list(names), fontsize=LABEL_SIZE)
    for label, color in zip(axis.get_ticklabels(), colors, strict=True):
        label.set_color(color)
    axis.set_tick_params(length=0, rotation=90 if which == "x" else 0)


def _group_colors(groups: ClassGroups, class_ids: Sequence[int]) -> list[str]:
    unseen = frozenset(groups.unseen_ids)
    return [UNSEEN_COLOR if class_id in unseen else SEEN_COLOR for class_id in class_ids]


def _group_legend(axes: Axes, **place: Any) -> None:
    handles = [Patch(color=SEEN_COLOR, label="seen"), Patch(color=UNSEEN_COLOR, label="unseen")]
    axes.legend(handles=handles, fontsize=LABEL_SIZE, frameon=False, **place)


def _distinct_colors(count: int) -> list[tuple[float, float, float]]:
    """Saturated colours around the hue circle, neighbours also different in lightness; never grey."""
    return [colorsys.hls_to_rgb(i / max(count, 1), (0.42, 0.62)[i % 2], (0.9, 0.6)[i % 2]) for i in range(count)]


def draw_class_bars(path: str | Path, scores: PanopticScores, groups: ClassGroups) -> None:
    """Draw the PQ of every class as a bar, best first within seen and unseen, with the mean of each group.

    Args:
        path: image file; the ending chooses the format.
        scores: per-class fractions.
        groups: the classes.
    """
    percent = 100 * scores.pq
    means = group_means(percent, scores.present, groups.seen_ids, groups.unseen_ids)
    blocks = [sorted(ids, key=lambda i: -percent[i]) for ids in (groups.seen_ids, groups.unseen_ids)]
    order = [*blocks[0], *blocks[1]]
    figure = new_figure(6.5, max(2.5, 1.0 + ROW_INCHES * len(order)))
    axes = figure.add_subplot()
    colors = _group_colors(groups, order)
    axes.barh(range(len(order)), percent[order], color=colors, height=0.75)
    for row, class_id in enumerate(order):
        text = f"{percent[class_id]:.0f}" if scores.present[class_id] else "absent"
        shade = "0.2" if scores.present[class_id] else ABSENT_COLOR
        axes.text(percent[class_id] + 1, row, text, va="center", fontsize=LABEL_SIZE - 1, color=shade)
    first = 0
    for block, mean in zip(blocks, (means.seen, means.unseen), strict=True):
        if block and np.isfinite(mean):
            axes.plot([mean, mean], [first - 0.5, first + len(block) - 0.5], color="0.2", linestyle="--", linewidth=1)
        first += len(block)
    _name_axis(axes, "y", [groups.names[i] for i in order], colors)
    axes.set(xlim=(0, 106), ylim=(len(order) - 0.5, -0.5), xlabel="PQ (%)")
    axes.set_title(f"mean PQ: seen {means.seen:.1f}, unseen {means.unseen:.1f} (dashed), HM {means.hm:.1f}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _group_legend(axes, loc="lower right")
    save_figure(figure, path)


def draw_confusion(path: str | Path, confusion: PanopticConfusion, groups: ClassGroups) -> None:
    """Draw what became of the true segments of each class: shares of a row, right where the diagonal is.

    Classes without a true segment and never predicted are left out; seen classes come first.

    Args:
        path: image file.
        confusion: the counts.
        groups: the classes.
    """
    total = confusion.matrix.sum(axis=1) + confusion.missed
    used = (total > 0) | (confusion.matrix.sum(axis=0) > 0)
    order = [i for i in (*groups.seen_ids, *groups.unseen_ids) if used[i]]
    columns = [*(confusion.matrix[:, i] for i in order), confusion.missed]
    share = np.stack(columns, axis=1)[order] / np.maximum(total[order], 1)[:, None]
    side = ROW_INCHES * len(order)
    figure = new_figure(side + 2.8, side + 2.0)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, column in zip(*np.nonzero(share >= LEAST_SHARE_WRITTEN), strict=True):
        shade = "white" if share[row, column] > 0.6 else "0.15"
        value = f"{100 * share[row, column]:.0f}"
        axes.text(column, row, value, ha="center", va="center", fontsize=LABEL_SIZE - 2.5, color=shade)
    colors = _group_colors(groups, order)
    names = [groups.names[i] for i in order]
    _name_axis(axes, "y", [f"{name} ({total[i]})" for i, name in zip(order, names, strict=True)], colors)
    _name_axis(axes, "x", [*names, "missed"], [*colors, "0.2"])
    border = sum(i in frozenset(groups.seen_ids) for i in order) - 0.5
    if groups.unseen_ids:
        axes.axhline(border, color="0.4", linewidth=0.8)
        axes.axvline(border, color="0.4", linewidth=0.8)
    axes.axvline(len(order) - 0.5, color="0.4", linewidth=0.8)
    axes.set(xlabel="class of the predicted segment with IoU > 0.5", ylabel="true class (segments)")
    figure.colorbar(image, ax=axes, label="share of the true segments", shrink=0.5, pad=0.01)
    figure.suptitle("Which class stole the segment (blue names seen, orange unseen; % of the row)", fontsize=9)
    save_figure(figure, path)


def draw_primitives(
    path: str | Path, weights: npt.NDArray[np.floating], primitives: Sequence[Sequence[int]], groups: ClassGroups
) -> None:
    """Draw the attention of every class to some primitives, one heat map per layer.

    Args:
        path: image file.
        weights: (layers, K, P), rows sum to 1.
        primitives: those shown of each layer, in order.
        groups: the classes.
    """
    order = [*groups.seen_ids, *groups.unseen_ids]
    width = max(0.075 * len(primitives[0]), 2.0)
    figure = new_figure(1.6 + (width + 0.5) * len(weights), 1.6 + 0.145 * len(order))
    panels = figure.subplots(1, len(weights), sharey=True, squeeze=False)[0]
    shown = [100 * layer[order][:, list(chosen)] for layer, chosen in zip(weights, primitives, strict=True)]
    top = max(float(np.percentile(part, 99.5)) for part in shown)
    images = []
    for number, (axes, part) in enumerate(zip(panels, shown, strict=True), start=1):
        images.append(axes.imshow(part, cmap="magma", vmin=0, vmax=top, aspect="auto", interpolation="nearest"))
        axes.set_title(f"layer {number}", fontsize=9)
        axes.set_xlabel("primitives, by their strongest class", fontsize=LABEL_SIZE)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        if groups.unseen_ids:
            axes.axhline(len(groups.seen_ids) - 0.5, color="white", linewidth=0.8)
    _name_axis(panels[0], "y", [groups.names[i] for i in order], _group_colors(groups, order))
    figure.colorbar(images[0], ax=list(panels), label="attention (%)", shrink=0.5, pad=0.01)
    total = weights.shape[2]
    figure.suptitle(
        f"Primitives that differ most between classes ({len(primitives[0])} of {total}; evenly spread would be "
        f"{100 / total:.2g} %)",
        fontsize=9,
    )
    save_figure(figure, path)


def draw_embedding_map(
    path: str | Path,
    points: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    synthetic: npt.NDArray[np.bool_],
    groups: ClassGroups,
) -> None:
    """Draw real and synthetic features of some classes, side by side with the same axes: one colour per class.

    Args:
        path: image file.
        points: (n, 2) places in the plane.
        labels: (n,) class of each.
        synthetic: (n,) bool.
        groups: the classes.
    """
    figure = new_figure(9.5, 5.6)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    blocks = (("seen", groups.seen_ids, SEEN_COLOR), ("unseen", groups.unseen_ids, UNSEEN_COLOR))
    for axes, (title, class_ids, title_color) in zip(panels, blocks, strict=True):
        # The other group stays in the background, so that its neighbourhood can be judged.
        axes.scatter(*points[~np.isin(labels, class_ids)].T, s=4, color="0.88", linewidths=0)
        present = [class_id for class_id in class_ids if (labels == class_id).any()]
        handles = []
        for class_id, color in zip(present, _distinct_colors(len(present)), strict=True):
            of_class = labels == class_id
            axes.scatter(*points[of_class & ~synthetic].T, color=color, alpha=0.8, s=12, linewidths=0)
            darker = tuple(DARKER * channel for channel in color)  # crosses lie on the dots of their own class
            axes.scatter(*points[of_class & synthetic].T, color=darker, s=18, marker="x", linewidths=0.9)
            handles.append(Line2D([], [], marker="o", linestyle="", color=color, label=groups.names[class_id]))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02)}
        axes.legend(handles=handles, fontsize=LABEL_SIZE, ncols=3, frameon=False, **place)
        axes.set_title(f"{title} classes", fontsize=10, color=title_color)
        axes.set(xticks=[], yticks=[])
    kinds = "dots real, crosses synthetic" if synthetic.any() else "real features only: this method generates none"
    figure.suptitle(f"t-SNE of query embeddings ({kinds}; grey: the other classes)", fontsize=10)
    save_figure(figure, path)
