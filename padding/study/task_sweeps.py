# SPDX-License-Identifier: Apache-2.0
"""Sweeps over gamma for semantic segmentation (mIoU) and instances (AP50, recall), beside that of panoptic quality.

Semantic confusion matrices are accumulated like panoptic counts. Average precision needs all detections at once: what
does not depend on gamma (masks, their codes and scores) is kept per query, and detections are put together per gamma.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from padding.evaluation.confusion import SemanticScores, confusion_matrix, scores_from_confusion
from padding.evaluation.grouping import ClassGroups
from padding.evaluation.instance import DetectionScores, InstanceGroundTruth, detection_scores
from padding.evaluation.semantic import SemanticGroundTruth
from padding.modeling.inference import apply_seen_bias
from padding.study.curve import GAMMAS, AccumulatedSweep, half_of_images

Raw = TypeVar("Raw")
# (class logits (Q, K+1)) -> class probabilities (N,), query indices (N,), class ids (N,) of the detections
Detect = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class ConfusionAccumulator:
    """Confusion matrix (K, K+1) of some images."""

    num_classes: int
    ignore_label: int
    matrix: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def update(self, pred: npt.NDArray[np.integer], gt: npt.NDArray[np.integer]) -> None:
        """Count one image, (h, w) labels each."""
        self.matrix += confusion_matrix(pred, gt, self.num_classes, self.ignore_label)

    def merge(self, other: "ConfusionAccumulator") -> "ConfusionAccumulator":
        """Add the counts of another accumulator to this one."""
        self.matrix += other.matrix
        return self

    def compute(self) -> SemanticScores:
        """Scores of the images so far."""
        return scores_from_confusion(self.matrix)


def sweep_semantic(
    predictions: Iterable[tuple[int | str, Raw]],
    label_map_at: Callable[[float], Callable[[Raw], npt.NDArray[np.integer]]],
    truth: SemanticGroundTruth,
    gammas: Sequence[float] = GAMMAS,
) -> AccumulatedSweep:
    """Semantic scores at every gamma, in one pass over cached predictions.

    Args:
        predictions: image id and whatever ``label_map_at`` works on; each image once.
        label_map_at: gamma -> function that turns a cached prediction into labels (h, w) at the original size. It
            subtracts gamma from the seen logits only.
        truth: ground truth of the same images.
        gammas: ascending.
    """
    functions = [label_map_at(gamma) for gamma in gammas]
    num_classes = truth.groups.num_classes
    halves = [[ConfusionAccumulator(num_classes, truth.ignore_label) for _ in gammas] for _ in range(2)]
    # Sorted ids, alternating: the halves do not depend on the order of arrival.
    half_of = half_of_images(truth.image_ids)
    for image_id, raw in predictions:
        labels = truth.read(image_id)
        for accumulator, function in zip(halves[half_of[image_id]], functions, strict=True):
            accumulator.update(function(raw), labels)
    return AccumulatedSweep(tuple(gammas), halves[0], halves[1])


class MaskPrediction(Protocol):
    """``seen_bias.QueryPrediction``: class logits (Q, K+1), and mask logits (Q, h, w) at the original size."""

    @property
    def class_logits(self) -> Tensor:
        """(Q, K+1) float."""

    def full_masks(self) -> Tensor:
        """(Q, h, w) float."""


@dataclass(frozen=True)
class MaskGrid:
    """What a semantic sweep needs of an image beside class logits: it serves every classifier and every gamma."""

    masks: Tensor  # (Q, h, w) float in [0, 1], at some of the original pixels
    labels: npt.NDArray[np.integer]  # (h, w) contiguous labels there

    @classmethod
    def of(cls, raw: MaskPrediction, labels: npt.NDArray[np.integer], step: int) -> "MaskGrid":
        """Every ``step``-th pixel of every ``step``-th row."""
        return cls(raw.full_masks()[:, ::step, ::step].float().sigmoid(), labels[::step, ::step])

    def best_classes(self, class_logits: Tensor) -> npt.NDArray[np.int64]:
        """(h, w) ids, as post-processing gives them where masks are enlarged before classes are summed."""
        probs = class_logits.float().softmax(dim=-1)[:, :-1]
        # (K, Q) @ (Q, h w), then the best class of each pixel.
        return (probs.T @ self.masks.flatten(1)).max(dim=0).indices.view(self.masks.shape[1:]).cpu().numpy()


def sweep_masks(
    predictions: Iterable[tuple[int | str, Tensor, MaskGrid]],
    truth: SemanticGroundTruth,
    gammas: Sequence[float] = GAMMAS,
) -> AccumulatedSweep:
    """Semantic scores at every gamma; the numbers of ``sweep_semantic``, on the pixels of a grid.

    They are equal where MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE is set: masks are brought to the
    original size first, here once for all gammas.

    Args:
        predictions: image id, class logits (Q, K+1) and grid; each image once.
        truth: ground truth of the same images.
        gammas: ascending; subtracted from the seen logits only.
    """
    groups = truth.groups
    halves = [[ConfusionAccumulator(groups.num_classes, truth.ignore_label) for _ in gammas] for _ in range(2)]
    half_of = half_of_images(truth.image_ids)
    for image_id, logits, grid in predictions:
        for accumulator, gamma in zip(halves[half_of[image_id]], gammas, strict=True):
            accumulator.update(grid.best_classes(apply_seen_bias(logits, groups.seen_ids, gamma)), grid.labels)
    return AccumulatedSweep(tuple(gammas), halves[0], halves[1])


class QueryMasks(TypedDict):
    """What is kept of one image: class logits (Q, K+1), a result entry of each query's mask, mask scores (Q,)."""

    image_id: int | str
    class_logits: Tensor
    shapes: list[dict[str, Any]]
    mask_scores: Tensor


@dataclass
class InstanceSweep:
    """Detections of all gammas from cached predictions, each image once, evaluated when they are asked for."""

    gammas: tuple[float, ...]  # ascending
    detect_at: Callable[[float], Detect]  # gamma, subtracted from the seen logits only -> ``Detect``
    truth: InstanceGroundTruth  # ground truth of the images
    images: list[QueryMasks]  # what is kept of each image
    _scores: dict[str, list[DetectionScores]] = field(default_factory=dict, init=False)

    @property
    def groups(self) -> ClassGroups:
        """The thing classes."""
        return self.truth.groups

    def scores(self, half: str) -> list[DetectionScores]:
        """Per-class scores at each gamma, of masks.

        Args:
            half: "a", "b", or "all".
        """
        if half not in self._scores:
            half_of = half_of_images(self.truth.image_ids)
            wanted = {"a": (0,), "b": (1,), "all": (0, 1)}[half]
            images = [image for image in self.images if half_of[image["image_id"]] in wanted]
            ids: Any = sorted(image["image_id"] for image in images)  # type: ignore[type-var]
            self._scores[half] = [
                detection_scores(self.truth, self._detections(images, gamma), ids, "segm") for gamma in self.gammas
            ]
        return self._scores[half]

    def _detections(self, images: Iterable[QueryMasks], gamma: float) -> list[dict[str, Any]]:
        """COCO result entries at one gamma; classes that do not count are left out."""
        detect = self.detect_at(gamma)
        entries = []
        for image in images:
            probs, queries, classes = detect(image["class_logits"])
            # A detection's score is class probability x mask score; gamma moves the first alone.
            scores = probs * image["mask_scores"][queries]
            for score, query, class_id in zip(scores.tolist(), queries.tolist(), classes.tolist(), strict=True):
                if class_id in self.groups.thing_ids:
                    category = self.groups.dataset_ids[class_id]
                    shape = image["shapes"][query]
                    entries.append({"image_id": image["image_id"], "category_id": category, "score": score, **shape})
        return entries
