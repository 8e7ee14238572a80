# SPDX-License-Identifier: Apache-2.0
"""The seen-unseen curve over a logit bias gamma, its area (AUSUC) and the best harmonic mean.

A generalised zero-shot model is one point of a trade-off: subtracting gamma from the logits of the seen classes (Chao
et al., Generalized Zero-Shot Learning, ECCV 2016) moves along the curve, and only curves compare fairly. The network
dwarfs its post-processing, so the sweep runs on cached raw predictions, all gammas in one pass.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor

from padding.data.files import save_figure
from padding.evaluation.grouping import ClassGroups, group_means, harmonic_mean

# Stands for infinity: exp(-GAMMA_END + any logit) is exactly 0 in float32, while a true infinity would give NaN in the
# softmax of a query whose logits are all infinite.
GAMMA_END = 1000.0
GAMMAS: tuple[float, ...] = (-GAMMA_END, *(step / 2 for step in range(-20, 21)), GAMMA_END)


class RawPrediction(TypedDict):
    """What is cached of one image: class logits (Q, K+1) in test ids, mask logits (Q, h, w), and its id."""

    class_logits: Tensor
    mask_logits: Tensor
    image_id: int | str


class GroundTruth(Protocol):
    """What the sweep asks of a ground truth; ``panoptic.PanopticGroundTruth`` has it."""

    groups: ClassGroups

    @property
    def image_ids(self) -> Sequence[Any]:
        """All annotated images, sorted."""

    def read(self, image_id: Any) -> tuple[npt.NDArray[Any], list[dict[str, Any]]]:
        """(h, w) segment ids and segments with contiguous category ids."""


# A gamma turns into a function from a cached prediction to (id map (h, w), segments with contiguous category ids).
Postprocess = Callable[[RawPrediction], tuple[Any, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class SeenUnseenCurve:
    """Class-averaged numbers in percent, one entry per gamma, ascending in gamma.

    Attributes:
        gammas: subtracted from the seen logits; the first and last stand for minus and plus infinity.
        seen, unseen: means over the present classes of each group.
    """

    gammas: tuple[float, ...]
    seen: tuple[float, ...]
    unseen: tuple[float, ...]

    @property
    def harmonic_means(self) -> tuple[float, ...]:
        """Harmonic mean at each gamma."""
        return tuple(harmonic_mean(s, u) for s, u in zip(self.seen, self.unseen, strict=True))


@dataclass(frozen=True)
class BestHarmonicMean:
    """Numbers in percent at the gamma chosen on half A, as they come out on half B; ``hm_chosen_on`` is A's own."""

    gamma: float
    seen: float
    unseen: float
    hm: float
    hm_chosen_on: float


class ClassScores(Protocol):
    """Per-class fractions under task-specific names (``pq``, ``iou``, ``ap50`` ...), each (K,)."""

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(K,) classes that count."""


class Sweep(Protocol):
    """What curves are made of."""

    @property
    def gammas(self) -> tuple[float, ...]:
        """Ascending."""

    def scores(self, half: str) -> Sequence[Any]:
        """``ClassScores`` of the task at each gamma on half "a", half "b", or "all" images."""


@dataclass
class AccumulatedSweep:
    """Accumulators of a sweep, one per gamma and half of the images; they have ``merge`` and ``compute``."""

    gammas: tuple[float, ...]
    half_a: list[Any]
    half_b: list[Any]

    def scores(self, half: str) -> list[Any]:
        """Per-class scores at each gamma.

        Args:
            half: "a", "b", or "all" for both together.
        """
        # deepcopy: merge adds in place, and both halves are still needed.
        if half == "all":
            return [copy.deepcopy(a).merge(b).compute() for a, b in zip(self.half_a, self.half_b, strict=True)]
        return [accumulator.compute() for accumulator in {"a": self.half_a, "b": self.half_b}[half]]


def half_of_images(image_ids: Sequence[Any]) -> dict[Any, int]:
    """Half of each image: 0 (A) for even rank among the sorted ids, else 1 (B), whatever the order of arrival."""
    return {image_id: rank % 2 for rank, image_id in enumerate(sorted(image_ids))}


def seen_unseen_curve(
    gammas: Sequence[float], scores: Sequence[ClassScores], groups: ClassGroups, quantity: str = "pq"
) -> SeenUnseenCurve:
    """Average the seen and the unseen classes at each gamma.

    Args:
        gammas: G numbers, ascending.
        scores: G per-class scores.
        groups: seen and unseen classes.
        quantity: name of the (K,) fractions among the scores, such as "pq", "iou" or "ap50".
    """
    means = [
        group_means(100 * getattr(score, quantity), score.present, groups.seen_ids, groups.unseen_ids)
        for score in scores
    ]
    return SeenUnseenCurve(tuple(gammas), tuple(m.seen for m in means), tuple(m.unseen for m in means))


def area_under_curve(seen: Sequence[float], unseen: Sequence[float]) -> float:
    """Area under unseen over seen (AUSUC), a number in [0, 1].

    Trapezoids in the order given, which is that of ascending gamma: seen falls from its value without unseen classes to
    0 while unseen rises. No sorting and no hull: where seen rises for a few steps, as it may near minus infinity when
    forced seen labels replace "no object", that stretch counts negatively. The curve stays one line that is passed
    once, and a model gains nothing by a detour.

    Args:
        seen: percent, ascending in gamma.
        unseen: percent, same length.

    Raises:
        ValueError: if the lengths differ or there are fewer than two points.
    """
    if len(seen) != len(unseen) or len(seen) < 2:
        raise ValueError(f"a curve needs two or more points, got {len(seen)} seen and {len(unseen)} unseen numbers")
    s, u = np.asarray(seen) / 100, np.asarray(unseen) / 100
    return float(np.sum((s[:-1] - s[1:]) * (u[:-1] + u[1:]) / 2))


def best_harmonic_mean(half_a: SeenUnseenCurve, half_b: SeenUnseenCurve) -> BestHarmonicMean:
    """Choose gamma where half A has its best harmonic mean and report half B there.

    Of equally good gammas the one nearest to 0 is taken. All numbers are NaN if half A has none, because it lacks seen
    or unseen classes.

    Args:
        half_a: curve of the images that gamma is chosen on.
        half_b: curve of the other images, at the same gammas.

    Raises:
        ValueError: if the gammas differ.
    """
    if half_a.gammas != half_b.gammas:
        raise ValueError("the two halves were swept over different gammas; sweep both over the same")
    points = enumerate(zip(half_a.harmonic_means, half_a.gammas, strict=True))
    known = [(hm, -abs(gamma), i) for i, (hm, gamma) in points if not math.isnan(hm)]
    if not known:
        return BestHarmonicMean(*([float("nan")] * 5))
    hm_a, _, index = max(known)
    return BestHarmonicMean(
        gamma=half_a.gammas[index],
        seen=half_b.seen[index],
        unseen=half_b.unseen[index],
        hm=half_b.harmonic_means[index],
        hm_chosen_on=hm_a,
    )


def sweep_results(sweep: Sweep, groups: ClassGroups, quantity: str = "pq") -> dict[str, Any]:
    """Numbers of a sweep, ready for JSON.

    Args:
        sweep: of any task.
        groups: seen and unseen classes.
        quantity: name of the (K,) fractions among the scores: "pq", "sq", "rq"; "iou"; "ap50", "ap", "recall".

    Returns:
        ``AUSUC`` (all images), ``best_hm``, ``best_hm_seen``, ``best_hm_unseen`` (half B, percent), ``best_hm_gamma``,
        ``best_hm_on_a``, and ``curve``: a list of ``{gamma, seen, unseen, hm}`` on all images.
    """
    curves = {half: seen_unseen_curve(sweep.gammas, sweep.scores(half), groups, quantity) for half in ("all", "a", "b")}
    curve, best = curves["all"], best_harmonic_mean(curves["a"], curves["b"])
    columns = zip(curve.gammas, curve.seen, curve.unseen, curve.harmonic_means, strict=True)
    return {
        "AUSUC": area_under_curve(curve.seen, curve.unseen),
        "best_hm": best.hm,
        "best_hm_seen": best.seen,
        "best_hm_unseen": best.unseen,
        "best_hm_gamma": best.gamma,
        "best_hm_on_a": best.hm_chosen_on,
        "curve": [{"gamma": g, "seen": s, "unseen": u, "hm": hm} for g, s, u, hm in columns],
    }


def draw_curve(path: str | Path, curves: Mapping[str, Sequence[tuple[float, float]]], quantity: str = "PQ") -> None:
    """Draw unseen over seen, one line per model, with the lines of equal harmonic mean behind them.

    Args:
        path: image file; the ending chooses the format.
        curves: label -> (seen, unseen) points in percent, ascending in gamma.
        quantity: name on the axes.
    """
    from padding.engine.picture_rows import new_figure  # pulls matplotlib in

    figure = new_figure(5.5, 4.5)
    axes = figure.add_subplot()
    points = [point for line in curves.values() for point in line]
    limits = [1.05 * max([1.0, *(p[axis] for p in points if math.isfinite(p[axis]))]) for axis in (0, 1)]
    grid_seen, grid_unseen = np.meshgrid(*(np.linspace(1e-6, limit, 200) for limit in limits))
    mean = 2 * grid_seen * grid_unseen / (grid_seen + grid_unseen)
    contour = axes.contour(grid_seen, grid_unseen, mean, levels=6, colors="0.85", linewidths=0.8)
    axes.clabel(contour, fontsize=7, fmt="HM %.0f")
    for label, line in curves.items():
        seen, unseen = zip(*line, strict=True)
        axes.plot(seen, unseen, marker="o", markersize=3, linewidth=1.5, label=f"{label} ({_area_label(seen, unseen)})")
    axes.set(xlabel=f"seen {quantity}", ylabel=f"unseen {quantity}", xlim=(0, limits[0]), ylim=(0, limits[1]))
    axes.legend(loc="best", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _area_label(seen: Sequence[float], unseen: Sequence[float]) -> str:
    if len(seen) > 1:
        return f"AUSUC {area_under_curve(seen, unseen):.3f}"
    return f"HM {harmonic_mean(seen[0], unseen[0]):.1f}"
