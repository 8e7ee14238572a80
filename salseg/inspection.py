# SPDX-License-Identifier: Apache-2.0
"""A trained SalSeg beside its test images: classes and saliency, predicted and, as far as the sets know them, true.

DATASETS.TEST names semantic and saliency sets. An image file that stands in both kinds of sets has both truths.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.class_split import ClassSplit, class_split_of
from padding.data.photographs import read_photograph
from padding.data.saliency.maps import SALIENT_ABOVE, read_saliency, saliency_to_bytes
from padding.data.sample import IGNORE_LABEL, DatasetDict
from padding.data.sets.scribbles import label_key
from padding.engine import Predictor, inspection
from padding.engine.label_map import label_map_of
from padding.errors import ConfigError
from padding.evaluation.confusion import confusion_matrix, scores_from_confusion
from padding.evaluation.saliency import saliency_at_size
from padding.evaluation.semantic import SemanticGroundTruth

Labels = npt.NDArray[np.integer]
Grey = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Inspected:
    """One test image and what is known about it; maps have its size.

    Attributes:
        key: its id, or the stem of its file.
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) predicted classes.
        num_classes: of the model.
        true_labels: (h, w), ``IGNORE_LABEL`` is void; None where no set knows them.
        saliency: (h, w) in [0, 1]; None of a model that does not predict it.
        true_saliency: (h, w) bool salient pixels, and (h, w) bool where that is known; None where no set knows it.
    """

    key: str
    image: npt.NDArray[np.uint8]
    labels: Labels
    num_classes: int
    true_labels: Labels | None
    saliency: Grey | None
    true_saliency: tuple[Mask, Mask] | None

    @property
    def miou(self) -> float:
        """Mean IoU in percent over the classes that this image's truth shows; NaN without truth."""
        return np.nan if self.true_labels is None else image_miou(self.labels, self.true_labels, self.num_classes)

    @property
    def mae(self) -> float:
        """Mean absolute error of the saliency, a fraction; NaN without truth or prediction."""
        if self.saliency is None or self.true_saliency is None:
            return np.nan
        return saliency_mae(self.saliency, *self.true_saliency)


def image_miou(labels: Labels, truth: Labels, num_classes: int) -> float:
    """Mean IoU of one image in percent, over the classes its truth shows; NaN if all of it is void."""
    scores = scores_from_confusion(confusion_matrix(labels, truth, num_classes, IGNORE_LABEL))
    return 100 * float(scores.iou[scores.present].mean()) if scores.present.any() else np.nan


def saliency_mae(saliency: Grey, salient: Mask, known: Mask) -> float:
    """Mean absolute error over the known pixels; NaN if there are none."""
    return float(np.abs(saliency - salient)[known].mean()) if known.any() else np.nan


class PredictionInspection(inspection.Inspection[Inspected]):
    """Test images of a configuration and what a trained network makes of them; iterate over it."""

    architecture = "SalSeg"
    what = "test image"
    load = Predictor

    def prepare(self, cfg: CfgNode, model: Predictor) -> tuple[ClassSplit, list[dict[str, Any]]]:
        """Readers of both truths; the test sets one after the other.

        Raises:
            ConfigError: a set has neither class labels nor saliency, or there is no semantic set.
        """
        self._predictor = model
        kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
        others = [name for name, kind in kinds.items() if kind not in ("sem_seg", "saliency")]
        semantic = [name for name, kind in kinds.items() if kind == "sem_seg"]
        if others or not semantic:
            raise ConfigError(
                f"DATASETS.TEST is {tuple(kinds)}; expected semantic and saliency sets, at least one semantic set, "
                "whose classes have the names and colors"
            )
        self._truths = [SemanticGroundTruth.of_dataset(name) for name in semantic]
        entries: dict[str, dict[str, Any]] = {}
        self._saliency: dict[str, dict[str, Any]] = {}
        for name, kind in kinds.items():
            for entry in DatasetCatalog.get(name):
                entries.setdefault(entry["file_name"], entry)
                if kind == "saliency":
                    self._saliency.setdefault(entry["file_name"], entry)
        return class_split_of(semantic[0]), list(entries.values())

    def inspect(self, entry: dict[str, Any]) -> Inspected:
        """Predict one image and read what is true."""
        file_name = entry["file_name"]
        image = read_photograph(file_name, value_range=self._predictor.cfg.INPUT.VALUE_RANGE)
        prediction = self._predictor(image)
        saliency = prediction.get("saliency")
        return Inspected(
            key=label_key(cast(DatasetDict, entry)),
            image=image,
            labels=label_map_of(prediction),
            num_classes=len(prediction["sem_seg"]),
            true_labels=self._true_labels(file_name),
            saliency=None if saliency is None else saliency_at_size(saliency, image.shape[:2]),
            true_saliency=self._true_saliency(file_name),
        )

    def _true_labels(self, file_name: str) -> Labels | None:
        for truth in self._truths:
            if file_name in truth.files:
                labels = truth.labels_of(file_name)
                return np.where(labels == truth.ignore_label, IGNORE_LABEL, labels)
        return None

    def _true_saliency(self, file_name: str) -> tuple[Mask, Mask] | None:
        if file_name not in self._saliency:
            return None
        saliency, known = read_saliency(self._saliency[file_name])
        return saliency_to_bytes(saliency) > SALIENT_ABOVE, known
