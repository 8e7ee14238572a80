# SPDX-License-Identifier: Apache-2.0
"""How good are the labels that students give to unlabeled images? Accuracy and coverage by confidence, class and time.

``python -m tcc.label_report --config-file FILE --weights FILE [FILE ...] [--images N] [--student NAME]``
segments unlabeled images of the training whose truth is known all the same (a split of a labeled set hides it), as an
evaluation would, and compares. Several checkpoints of one training show how labels grow. Rows: pixels whose largest
probability is at least a threshold; classes; the last line is one JSON object with all of it.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.files import without_nan, write_json
from padding.data.mappers import SemanticMapper, build_mapper
from padding.data.sample import IGNORE_LABEL
from padding.data.semi_stream import load_semi_supervised_entries
from padding.engine.commands import add_pairs_argument, command_parser, parse, positive, start_log
from padding.engine.inspection import Inspection
from padding.errors import DataError, run_command
from padding.modeling.label_space import training_split
from tcc.meta_arch import TCC

DEFAULT_IMAGES = 200
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PseudoLabels:
    """One image.

    Attributes:
        labels: (h, w) int64, the class of the largest probability.
        confidence: (h, w) float, that probability.
        truth: (h, w) int64, void where it is not known.
    """

    labels: Array
    confidence: Array
    truth: Array


class PseudoLabelInspection(Inspection[PseudoLabels]):
    """Unlabeled images of a configuration, what a trained model makes of them, and the truth."""

    architecture = "TCC"
    what = "unlabeled image"

    def prepare(self, cfg: CfgNode, model: TCC) -> tuple[ClassSplit, list[dict[str, Any]]]:
        """Readers; the unlabeled images.

        Raises:
            DataError: there are none, or nothing is known of them.
        """
        _, unlabeled = load_semi_supervised_entries(cfg)
        known = [entry for entry in unlabeled if entry.get("sem_seg_file_name")]
        if not known:
            raise DataError(
                f"of {len(unlabeled)} unlabeled images none has a label map to compare with; take a DATASETS.SPLIT of "
                "a labeled set"
            )
        mapper = build_mapper(cfg, is_train=True)
        assert isinstance(mapper, SemanticMapper)
        as_test = cfg.clone()
        as_test.defrost()
        as_test.DATASETS.TEST = cfg.DATASETS.TRAIN  # of the training, as a test would see them
        self._labels, self._image, self._model = mapper, build_mapper(as_test, is_train=False), model
        return training_split(cfg), known

    def inspect(self, entry: dict[str, Any]) -> PseudoLabels:
        """Segment one image."""
        sample = self._image(entry)
        with torch.no_grad():
            confidence, labels = self._model([sample])[0]["sem_seg"].max(dim=0)
        truth, _ = self._labels.read_labels(entry, (labels.shape[0], labels.shape[1]))
        assert truth is not None
        return PseudoLabels(labels.cpu().numpy(), confidence.cpu().numpy(), truth.astype(np.int64))


@dataclass
class PseudoLabelReport:
    """Counts over images.

    Attributes:
        names: of the K classes.
        thresholds: ascending, the first 0.
        images: how many were read.
        matrix: (T, K, K) pixels by the highest threshold that their confidence reaches, true class and label.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...] = THRESHOLDS
    images: int = 0
    matrix: Array = field(init=False)

    def __post_init__(self) -> None:
        """Start from nothing."""
        self.matrix = np.zeros((len(self.thresholds), len(self.names), len(self.names)), np.int64)

    def add(self, image: PseudoLabels) -> None:
        """Count one image."""
        shape = self.matrix.shape
        known = image.truth != IGNORE_LABEL
        level = np.searchsorted(self.thresholds, image.confidence[known], side="right") - 1
        index = np.ravel_multi_index((level, image.truth[known], image.labels[known]), shape)
        self.matrix += np.bincount(index, minlength=self.matrix.size).reshape(shape)
        self.images += 1

    def threshold_rows(self) -> list[dict[str, float]]:
        """For each threshold, percentages: pixels that reach it, and which of their labels are right."""
        pixels, rows = self.matrix.sum(), []
        for i, threshold in enumerate(self.thresholds):
            kept = self.matrix[i:].sum(axis=0)
            row = {"coverage": _percent(kept.sum(), pixels), "accuracy": _percent(np.trace(kept), kept.sum())}
            rows.append({"threshold": threshold, **row})
        return rows

    def class_rows(self, threshold: float = 0.0) -> list[dict[str, Any]]:
        """For each class, percentages over the pixels that reach a threshold.

        ``share`` is its share of the labels, ``true_share`` of the truth of all pixels; ``precision`` is the share of
        its labels that are right, ``recall`` the share of its true pixels with its label.
        """
        kept = self.matrix[int(np.searchsorted(self.thresholds, threshold)) :].sum(axis=0)
        true = self.matrix.sum(axis=(0, 2))
        return [
            {
                "class": name,
                "true_share": _percent(true[k], true.sum()),
                "share": _percent(kept[:, k].sum(), kept.sum()),
                "precision": _percent(kept[k, k], kept[:, k].sum()),
                "recall": _percent(kept[k, k], true[k]),
            }
            for k, name in enumerate(self.names)
        ]

    def to_json(self, threshold: float) -> dict[str, Any]:
        """All of it, JSON values only."""
        rows = {"thresholds": self.threshold_rows(), "classes": self.class_rows(), "threshold": threshold}
        return dict(without_nan({"images": self.images, **rows, "confident_classes": self.class_rows(threshold)}))


def measure(images: Iterable[PseudoLabels], names: Sequence[str]) -> PseudoLabelReport:
    """Count images whose truth is known."""
    report = PseudoLabelReport(tuple(names))
    for image in images:
        report.add(image)
    return report


def main(arguments: Sequence[str] | None = None) -> dict[str, PseudoLabelReport]:
    """Command line; returns what it prints, by weight file."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--weights", required=True, nargs="+", metavar="FILE", help="checkpoints, in order of time")
    parser.add_argument(
        "--images", type=positive, default=DEFAULT_IMAGES, metavar="N", help="evenly spread (default %(default)s)"
    )
    parser.add_argument("--student", choices=("cnn", "vit", "ensemble"), help="default: MODEL.TCC.TEST.STUDENT")
    parser.add_argument(
        "--threshold", type=float, default=0.95, choices=THRESHOLDS, metavar="P", help="of the table of classes"
    )
    parser.add_argument("--output", metavar="FILE", help="JSON file to write")
    add_pairs_argument(parser)
    args = parse(parser, arguments)
    start_log(warnings_only=True)
    options = [*args.opts, *(("MODEL.TCC.TEST.STUDENT", args.student) if args.student else ())]
    reports: dict[str, PseudoLabelReport] = {}
    for weights in args.weights:
        inspection = PseudoLabelInspection.open(args.config_file, weights, options, number=args.images)
        progress = tqdm(inspection, total=len(inspection), desc=weights[-30:], unit="image", mininterval=2.0)
        reports[weights] = measure(progress, inspection.class_split.names)
    content = {weights: report.to_json(args.threshold) for weights, report in reports.items()}
    print(_tables(reports, args.threshold), flush=True)  # noqa: T201  (the command's result)
    if args.output:
        write_json(args.output, content)
    print(json.dumps(content))  # noqa: T201
    return reports


def _tables(reports: dict[str, PseudoLabelReport], threshold: float) -> str:
    """Markdown: a row for each checkpoint and threshold, then the classes of the last checkpoint."""
    rows = [{"weights": weights, **row} for weights, report in reports.items() for row in report.threshold_rows()]
    last = list(reports.values())[-1]
    classes = [
        {**every, "confident": sure["share"], "confident precision": sure["precision"]}
        for every, sure in zip(last.class_rows(), last.class_rows(threshold), strict=True)
    ]
    return "\n\n".join(
        tabulate([list(row.values()) for row in table], headers=list(table[0]), tablefmt="github", floatfmt=".2f")
        for table in (rows, classes)
    )


def _percent(part: float, whole: float) -> float:
    return float(100 * part / whole) if whole else float("nan")


if __name__ == "__main__":
    sys.exit(run_command(main))
