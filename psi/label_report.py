# SPDX-License-Identifier: Apache-2.0
"""How good are the labels that a trained PSI grows from scribbles? Coverage and accuracy of y_0 to y_T.

``python -m psi.label_report --config-file FILE --weights FILE [--images N] [--per-class] [--output FILE] [--opts ...]``
grows the labels of training images with the given network, as a training step would but on whole images, and compares
them with the dense labels of the same images. The last line is one JSON object; it has the classes only where their
table is printed, the file of --output always has them.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate
from tqdm import tqdm

from padding.data.files import without_nan, write_json
from padding.data.sample import IGNORE_LABEL
from padding.engine.commands import add_config_arguments, command_parser, parse, start_log
from padding.errors import run_command
from psi.inspection import Inspected, LabelInspection
from psi.label_quality import LabelQuality, mean_thresholds

DEFAULT_IMAGES = 500
Counts = npt.NDArray[np.int64]


@dataclass
class LabelCounts:
    """Pixels of each class in one state y_t where the truth is known, and thresholds of the step that led to it.

    Attributes:
        matrix: (K, K + 1) pixels by true class and label, the last column unlabeled.
        diffused: (K, K) the same of diffused labels alone.
        threshold_sum: (K,) gamma_c summed over images.
        threshold_images: (K,) images that show the class.
    """

    matrix: Counts
    diffused: Counts
    threshold_sum: npt.NDArray[np.float64]
    threshold_images: Counts

    @classmethod
    def empty(cls, num_classes: int) -> "LabelCounts":
        """No pixel yet."""
        k = num_classes
        square = np.zeros((k, k + 1), np.int64), np.zeros((k, k), np.int64)
        return cls(*square, np.zeros(k), np.zeros(k, np.int64))

    @property
    def mean_threshold(self) -> float:
        """Over images and the classes that they show; NaN for y_0."""
        return _ratio(self.threshold_sum.sum(), self.threshold_images.sum())


@dataclass
class LabelReport:
    """What was measured.

    Attributes:
        names: of the classes.
        images: how many were read.
        pixels: with a known truth.
        predicted: of them, where the network itself ranks the true class first.
        quality: counts of y_0 to y_T.
        classes: the same by class.
    """

    names: tuple[str, ...]
    images: int = 0
    pixels: int = 0
    predicted: int = 0
    quality: list[LabelQuality] = field(default_factory=list)
    classes: list[LabelCounts] = field(default_factory=list)

    def add(self, image: Inspected) -> None:
        """Count one image, whose truth is known."""
        assert image.truth is not None
        self.images += 1
        qualities = image.quality
        if not self.quality:
            self.quality = [LabelQuality() for _ in qualities]
            self.classes = [LabelCounts.empty(len(self.names)) for _ in qualities]
        self.quality = [before + new for before, new in zip(self.quality, qualities, strict=True)]
        truth = image.truth.numpy()
        self.pixels += int((truth != IGNORE_LABEL).sum())
        self.predicted += int((image.labels.scores.argmax(dim=0).cpu().numpy() == truth).sum())
        for step, state in enumerate(image.labels.states):
            labels, drawn = state.labels[0].cpu().numpy(), state.scribbles[0].cpu().numpy()
            self._count(self.classes[step], labels, drawn, truth)
            if step:
                self._note_thresholds(
                    self.classes[step], mean_thresholds(image.labels.steps[step - 1], len(self.names))
                )

    def _count(self, counts: LabelCounts, labels: Counts, drawn: npt.NDArray[np.bool_], truth: Counts) -> None:
        k = len(self.names)
        known = truth != IGNORE_LABEL
        # Pairs of true class and label as one number; column K: unlabeled.
        columns = np.where(labels == IGNORE_LABEL, k, labels)
        counts.matrix += np.bincount((truth * (k + 1) + columns)[known], minlength=k * (k + 1)).reshape(k, k + 1)
        grown = known & ~drawn & (labels != IGNORE_LABEL)
        counts.diffused += np.bincount((truth * k + labels)[grown], minlength=k * k).reshape(k, k)

    def _note_thresholds(self, counts: LabelCounts, thresholds: Any) -> None:
        values = thresholds.cpu().numpy()
        # Only classes that the image shows have a threshold.
        shown = np.isfinite(values)
        counts.threshold_sum[shown] += values[shown]
        counts.threshold_images += shown

    @property
    def network_accuracy(self) -> float:
        """Share of the pixels that the network gets right without scribbles; what diffused labels have to beat."""
        return _ratio(self.predicted, self.pixels)

    def step_rows(self) -> list[dict[str, Any]]:
        """For y_0 to y_T: percentages and the mean threshold."""
        return [
            {
                "step": step,
                "coverage": 100 * quality.coverage,
                "accuracy": 100 * quality.accuracy,
                "diffused_accuracy": 100 * quality.diffused_accuracy,
                "mean_threshold": counts.mean_threshold,
            }
            for step, (quality, counts) in enumerate(zip(self.quality, self.classes, strict=True))
        ]

    def class_rows(self) -> list[dict[str, Any]]:
        """For each class, percentages of y_0 and y_T.

        ``drawn`` and ``covered`` are shares of the true pixels of the class with any label in y_0 and y_T, ``correct``
        with its own in y_T. ``precision`` is the share of its labels that are right, ``diffused_precision`` of the
        diffused ones; ``threshold`` is gamma_c of the last step, mean over the images that show the class.
        """
        first, last = self.classes[0], self.classes[-1]
        rows = []
        for i, name in enumerate(self.names):
            total = last.matrix[i].sum()
            shares = {
                "drawn": _ratio(first.matrix[i, :-1].sum(), total),
                "covered": _ratio(last.matrix[i, :-1].sum(), total),
                "correct": _ratio(last.matrix[i, i], total),
                "precision": _ratio(last.matrix[i, i], last.matrix[:, i].sum()),
                "diffused_precision": _ratio(last.diffused[i, i], last.diffused[:, i].sum()),
            }
            threshold = _ratio(last.threshold_sum[i], last.threshold_images[i])
            rows.append({"class": name, **{key: 100 * share for key, share in shares.items()}, "threshold": threshold})
        return rows

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON values only."""
        content = {"images": self.images, "network_accuracy": 100 * self.network_accuracy, "steps": self.step_rows()}
        return dict(without_nan({**content, "classes": self.class_rows()}))

    def step_table(self) -> str:
        """Markdown, a row for each t."""
        return _table(self.step_rows(), ("t", "coverage %", "accuracy %", "of the diffused %", "mean threshold"))

    def class_table(self) -> str:
        """Markdown, a row for each class."""
        headers = ("class", "drawn %", "covered %", "correct %", "precision %", "of the diffused %", "threshold")
        return _table(self.class_rows(), headers)


def measure(images: Iterable[Inspected], names: Sequence[str]) -> LabelReport:
    """Count images whose truth is known.

    Args:
        images: of ``LabelInspection``, at least one.
        names: of the classes.
    """
    report = LabelReport(tuple(names))
    for image in images:
        report.add(image)
    return report


def main(arguments: Sequence[str] | None = None) -> LabelReport:
    """Command line; returns what it prints."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, weights="checkpoint of this configuration")
    parser.add_argument(
        "--images", type=int, default=DEFAULT_IMAGES, metavar="N", help="evenly spread, 0: all (default %(default)s)"
    )
    parser.add_argument("--per-class", action="store_true", help="print the table of classes as well")
    parser.add_argument("--output", metavar="FILE", help="JSON file to write")
    args = parse(parser, arguments)
    start_log(warnings_only=True)
    inspection = LabelInspection.open(args.config_file, args.weights, args.opts, number=args.images)
    inspection.require_truth()
    progress = tqdm(inspection, total=len(inspection), desc="labels", unit="image", mininterval=2.0)
    report = measure(progress, inspection.class_split.names)
    own = (
        f"The network itself is right in {100 * report.network_accuracy:.2f} % of the pixels of {report.images} images."
    )
    tables = [report.step_table(), report.class_table()] if args.per_class else [report.step_table()]
    print("\n\n".join([*tables, own]) + "\n", flush=True)  # noqa: T201  (the command's result)
    content = {"data": list(inspection.cfg.DATASETS.TRAIN), "weights": args.weights, **report.to_json()}
    if args.output:
        write_json(args.output, content)
    if not args.per_class:
        del content["classes"]
    print(json.dumps(content))  # noqa: T201
    return report


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _table(rows: Sequence[dict[str, Any]], headers: Sequence[str]) -> str:
    cells = [[_cell(value, 3 if "threshold" in key else 2) for key, value in row.items()] for row in rows]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _cell(value: Any, digits: int) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(run_command(main))
