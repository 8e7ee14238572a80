# SPDX-License-Identifier: Apache-2.0
"""Semantic IoU on the data set's confusion matrix, with seen and unseen means (PADing, Tab. 4).

Label conventions. A ground-truth file is an index image (PIL mode P, L or 16 bit; palettes are never looked at).
Contiguous labels 0..K-1 with ``ignore_label`` need nothing more: COCO's prepared maps, VOC and Cityscapes' train ids.
Other numberings are declared in the metadata by ``sem_seg_label_map``, label on disk -> contiguous id or
``ignore_label``; that of Cityscapes' ``labelIds`` files is ``padding.data.sets.cityscapes.cityscapes_label_map()``.
Panoptic data without semantic files are read from their panoptic PNGs.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import Tensor

from padding.data.best_class import best_class
from padding.data.readers import read_label_map, read_panoptic_ids
from padding.data.targets import segment_index_map, semantic_labels, translate_labels
from padding.errors import ConfigError, DataError
from padding.evaluation.confusion import confusion_matrix, scores_from_confusion
from padding.evaluation.grouping import ClassGroups, group_means, grouped_results
from padding.evaluation.report import build_report, publish
from padding.evaluation.workers import StagedEvaluator

logger = logging.getLogger(__name__)

_CURE = "prepare the data set first (datasets/README.md)"


# (h, w) labels and, where not all pixels count, which do; places and values of a flat matrix.
_Labels = tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_] | None]
_Counts = tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]

FOREGROUND = "sem_seg_foreground"
"""Result of a data set whose metadata names a ``background_id``: arg-max over the other classes, on their pixels."""


@dataclass(frozen=True)
class SemanticGroundTruth:
    """Where the labels of a data set lie and how they are numbered.

    Attributes:
        dataset_name: for messages.
        groups: the classes.
        ignore_label: label of pixels that do not count.
        label_map: label on disk -> contiguous id or ``ignore_label``; None: nothing to translate.
        files: image file -> label file.
        image_files: image id -> image file.
        background_id: class that tables of the data set leave out as well; None: there is none.
        panoptic: image file -> its entry, of images whose label file is a panoptic PNG.
    """

    dataset_name: str
    groups: ClassGroups
    ignore_label: int
    label_map: Mapping[int, int] | None
    files: Mapping[str, Path]
    image_files: Mapping[int | str, str]
    background_id: int | None = None
    panoptic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of_dataset(cls, dataset_name: str) -> "SemanticGroundTruth":
        """Find the files of a registered data set.

        Raises:
            ValueError: an image has no label file.
        """
        metadata = MetadataCatalog.get(dataset_name)
        records = DatasetCatalog.get(dataset_name)
        sem_seg_root = metadata.get("sem_seg_root")
        return cls(
            dataset_name=dataset_name,
            groups=ClassGroups.from_metadata(metadata),
            ignore_label=int(metadata.get("ignore_label", 255)),
            label_map=metadata.get("sem_seg_label_map"),
            files=_truth_files(dataset_name, records, sem_seg_root),
            image_files={record["image_id"]: record["file_name"] for record in records if "image_id" in record},
            background_id=metadata.get("background_id"),
            panoptic={
                record["file_name"]: record
                for record in records
                if not (record.get("sem_seg_file_name") or sem_seg_root) and "segments_info" in record
            },
        )

    @property
    def image_ids(self) -> list[int | str]:
        """Ids of all images, sorted."""
        return sorted(self.image_files)  # type: ignore[type-var]

    def file_of(self, image_file: str) -> Path:
        """Label file of an image.

        Raises:
            DataError: the image does not belong to the data set.
        """
        if image_file not in self.files:
            raise DataError(f"{image_file}: not an image of data set '{self.dataset_name}'")
        return self.files[image_file]

    def read(self, image_id: int | str) -> npt.NDArray[np.integer]:
        """(h, w) contiguous labels of an image, see ``labels_of``."""
        return self.labels_of(self.image_files[image_id])

    def labels_of(self, image_file: str) -> npt.NDArray[np.integer]:
        """(h, w) contiguous labels of an image.

        Raises:
            MissingFileError: there is no label file.
            DataError: it cannot be used, or the image does not belong to the data set.
        """
        path = self.file_of(image_file)
        if image_file in self.panoptic:
            labels = _labels_of_segments(self.panoptic[image_file], path, self.ignore_label)
        else:
            labels = read_label_map(path, cure=_CURE)
        return labels if self.label_map is None else translate_labels(labels, self.label_map, path=path)


class SemSegEvaluator(StagedEvaluator):
    """Detectron2 evaluator of ``output["sem_seg"]`` = scores (K, h, w), or a label map (h, w) of an integer dtype.

    The result key is ``sem_seg``: ``mIoU`` (also ``_seen, _unseen, _hm`` where the data set has unseen classes),
    ``fwIoU, mACC, pACC`` in percent; the numbers of classes that counted; ``num_images``. Further predictions of the
    same images, such as those of each of two networks, are evaluated in the same run under keys of their own.

    Attributes:
        tasks: keys of the predictions and of the results.
        confusions: (K, K+1) int64 confusion matrix of each task.
    """

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | Path | None = None,
        *,
        parts: Sequence[str] = (),
        only_scored: bool = False,
    ) -> None:
        """Find the ground-truth file of each image.

        Args:
            dataset_name: registered data set whose dicts name ``sem_seg_file_name``, or whose metadata has
                ``sem_seg_root`` with equally named PNGs.
            output_folder: where the per-class report goes; None writes nothing.
            parts: further predictions: "vit" is ``output["sem_seg_vit"]`` and the result ``sem_seg_vit``.
            only_scored: leave out pixels whose scores are all 0, those that the model did not look at.
        """
        self.truth = SemanticGroundTruth.of_dataset(dataset_name)
        self.groups = self.truth.groups
        self.tasks = ("sem_seg", *(f"sem_seg_{part}" for part in parts))
        if self.truth.background_id is not None:
            self.tasks = (*self.tasks, FOREGROUND)
        self._only_scored = only_scored
        self._output_folder = Path(output_folder) if output_folder is not None else None
        self.reset()

    @property
    def needs_scores(self) -> bool:
        """Whether labels in place of scores would not do."""
        return self._only_scored or FOREGROUND in self.tasks

    def reset(self) -> None:
        """Forget all images."""
        shape = (self.groups.num_classes, self.groups.num_classes + 1)
        self.confusions = {task: np.zeros(shape, dtype=np.int64) for task in self.tasks}
        self._num_images = 0

    def reduced(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, _Labels]:
        """Labels of each task.

        Raises:
            DataError: naming the file, if a prediction is missing or of another shape.
        """
        labels = {}
        for task in self.tasks:
            source = "sem_seg" if task == FOREGROUND else task
            if source not in output:
                raise DataError(_missing_prediction(source, record["file_name"], output))
            try:
                labels[task] = self._labels(task, output[source])
            except ValueError as error:
                raise self._named(record, task, error) from error
        return labels

    def counted(self, record: Mapping[str, Any], reduced: Mapping[str, _Labels]) -> dict[str, _Counts]:
        """Confusion matrix of each task on one image, its entries that are not 0.

        Raises:
            DataError: naming the file, if sizes differ or a label is out of range.
        """
        self.truth.file_of(record["file_name"])
        gt = self.truth.labels_of(record["file_name"])  # once for all tasks
        counts = {}
        for task, labels in reduced.items():
            try:
                matrix = self._confusion(task, labels, gt).ravel()
            except ValueError as error:
                raise self._named(record, task, error) from error
            places = np.flatnonzero(matrix)
            counts[task] = (places, matrix[places])
        return counts

    def add(self, counted: Mapping[str, _Counts]) -> None:
        """Add the matrices of one image."""
        for task, (places, numbers) in counted.items():
            self.confusions[task].reshape(-1)[places] += numbers
        self._num_images += 1

    def _named(self, record: Mapping[str, Any], task: str, error: ValueError) -> DataError:
        path = self.truth.file_of(record["file_name"])
        return DataError(f"{path} (image {record['file_name']}): {task}: {error}")

    def _labels(self, task: str, prediction: Tensor) -> _Labels:
        """Predicted labels (h, w) of a task, and where the model looked; None: everywhere."""
        if task == FOREGROUND:
            prediction = self._without_background(prediction)
        labels = label_map_of_scores(prediction, self.groups.num_classes).cpu().numpy()
        if labels.size and 0 <= labels.min() <= labels.max() <= np.iinfo(np.uint8).max:
            labels = labels.astype(np.uint8)  # an eighth to send to another process
        # 0 in all classes: the model was never run there ("center_crop").
        looked_at = self._only_scored and prediction.dim() == 3
        return labels, (prediction.amax(dim=0) > 0).cpu().numpy() if looked_at else None

    def _confusion(self, task: str, labels: _Labels, gt: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """(K, K+1) confusion matrix of one image."""
        num_classes, ignore_label = self.groups.num_classes, self.truth.ignore_label
        pred, looked_at = labels
        if task == FOREGROUND:
            gt = np.where(gt == self.truth.background_id, ignore_label, gt)
        if looked_at is not None and pred.shape == gt.shape:
            gt = np.where(looked_at, gt, ignore_label)
        return confusion_matrix(pred, gt, num_classes, ignore_label)

    def _without_background(self, prediction: Tensor) -> Tensor:
        """Scores that cannot choose the background.

        Raises:
            DataError: for labels in place of scores, which have chosen already.
        """
        background = self.truth.background_id
        if prediction.dim() != 3:
            raise DataError(
                f"'{self.truth.dataset_name}' is also scored without its background class {background}, for which the "
                "prediction must be scores (K, h, w), not labels"
            )
        # Before the arg-max, so that the second best class takes the pixel.
        scores = prediction.clone()
        scores[background] = -torch.inf
        return scores

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Join the ranks and report.

        Returns:
            ``{"sem_seg": {...}}``, and the same for every part, on the main rank, None on the others.
        """
        comm.synchronize()
        of_rank = comm.gather((self.confusions, self._num_images))
        if not comm.is_main_process():
            return None
        # Matrices are summed, then scored once: IoU of the data set, not a mean over images.
        num_images = sum(entry[1] for entry in of_rank)
        return OrderedDict(
            (task, self._report(task, np.sum([entry[0][task] for entry in of_rank], axis=0), num_images))
            for task in self.tasks
        )

    def _report(self, task: str, matrix: npt.NDArray[np.int64], num_images: int) -> dict[str, float]:
        """Log and write the scores of one task; returns its results."""
        scores = scores_from_confusion(matrix)
        iou, accuracy = 100 * scores.iou, 100 * scores.accuracy
        results = grouped_results({"mIoU": iou}, scores.present, self.groups)
        # fwIoU and pACC are over pixels, mIoU and mACC over classes that occur.
        results["fwIoU"] = 100 * scores.frequency_weighted_iou
        results["mACC"] = group_means(accuracy, scores.present, range(self.groups.num_classes), ()).all
        results["pACC"] = 100 * scores.pixel_accuracy
        results["num_images"] = num_images
        per_class = {"IoU": iou, "accuracy": accuracy, "pixels": scores.gt_pixels}
        publish(build_report(task, results, ("mIoU",), per_class, scores.present, self.groups), self._output_folder)
        return results


def _missing_prediction(task: str, file_name: str, output: Mapping[str, Any]) -> str:
    cure = "switch MODEL.MASK_FORMER.TEST.SEMANTIC_ON on"
    if task != "sem_seg":
        known = [name.removeprefix("sem_seg_") for name in sorted(output) if name.startswith("sem_seg_")]
        cure = f"TEST.SEM_SEG.PARTS names it, but this model has only the parts {known}"
    return f"{file_name}: the prediction has only {sorted(output)}, not '{task}'; {cure}"


def label_map_of_scores(prediction: Tensor, num_classes: int) -> Tensor:
    """Best class of each pixel.

    Args:
        prediction: (K, h, w) scores, or (h, w) labels of an integer dtype, which are returned as they are.
        num_classes: K.

    Returns:
        (h, w) integer labels.

    Raises:
        DataError: for any other shape.
    """
    if prediction.dim() == 2 and not prediction.is_floating_point():
        return prediction
    if prediction.dim() != 3 or prediction.shape[0] != num_classes:
        raise DataError(
            f"sem_seg has shape {tuple(prediction.shape)}; expected ({num_classes}, h, w) scores: the model must "
            "predict the classes of the data set it is tested on"
        )
    return best_class(prediction.flatten(1)).view(prediction.shape[1:])


def _truth_files(dataset_name: str, records: Sequence[Mapping[str, Any]], sem_seg_root: str | None) -> dict[str, Path]:
    files = {}
    for record in records:
        if record.get("sem_seg_file_name"):
            files[record["file_name"]] = Path(record["sem_seg_file_name"])
        elif sem_seg_root:
            files[record["file_name"]] = Path(sem_seg_root) / f"{Path(record['file_name']).stem}.png"
        elif "pan_seg_file_name" in record and "segments_info" in record:
            files[record["file_name"]] = Path(record["pan_seg_file_name"])
        else:
            raise ConfigError(
                f"data set '{dataset_name}': image {record['file_name']} has no sem_seg_file_name and the metadata no "
                "sem_seg_root; register one of them, or switch MODEL.MASK_FORMER.TEST.SEMANTIC_ON off"
            )
    return files


def _labels_of_segments(record: Mapping[str, Any], path: Path, ignore_label: int) -> npt.NDArray[np.integer]:
    """(h, w) labels of a panoptic PNG, see ``padding.data.targets.semantic_labels``."""
    segments, void_ids = record["segments_info"], record.get("void_segment_ids", ())
    index = segment_index_map(read_panoptic_ids(path), segments, void_ids=void_ids, path=path)
    return semantic_labels(index, segments, ignore_label=ignore_label)
