# SPDX-License-Identifier: Apache-2.0
"""COCO panoptic evaluation: PQ, SQ, RQ of all, seen and unseen classes (PADing, Tab. 1).

Computed from the predicted tensors in this process; the tests compare with panopticapi, which knows no seen and unseen
classes.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from padding.data.coco_json import PanopticEntry
from padding.data.panoptic_table import read_panoptic_file
from padding.data.readers import read_panoptic_ids
from padding.data.sample import SegmentInfo
from padding.data.targets import segment_index_map
from padding.errors import ConfigError, DataError
from padding.evaluation.grouping import ClassGroups, group_means, grouped_results
from padding.evaluation.panoptic_quality import PanopticQuality, PanopticScores
from padding.evaluation.report import build_report, publish
from padding.evaluation.workers import StagedEvaluator

logger = logging.getLogger(__name__)

METRICS = ("PQ", "SQ", "RQ")
_CURE = "Prepare the data set first (datasets/README.md)."


class PanopticGroundTruth:
    """Ground truth of a data set in COCO panoptic form, read image by image with contiguous category ids.

    Attributes:
        groups: the classes.
        image_ids: all annotated images, sorted.
        num_wrong_areas: segments read so far whose ``area`` in the JSON is not the number of their pixels.
    """

    def __init__(
        self,
        panoptic_json: str | Path,
        panoptic_root: str | Path,
        groups: ClassGroups,
        *,
        outside_is_void: bool = False,
    ) -> None:
        self.panoptic_json = Path(panoptic_json)
        self.panoptic_root = Path(panoptic_root)
        self.groups = groups
        self._contiguous_id = groups.contiguous_id
        self._outside_is_void = outside_is_void
        self._table = read_panoptic_file(self.panoptic_json, cure=_CURE)
        self.image_ids = sorted(self._table.image_ids)  # type: ignore[type-var]
        self.num_wrong_areas = 0

    @classmethod
    def of_dataset(cls, dataset_name: str) -> "PanopticGroundTruth":
        """Find the files through the metadata of a registered data set.

        Raises:
            ConfigError: if the metadata lacks ``panoptic_json`` or ``panoptic_root``.
        """
        metadata = MetadataCatalog.get(dataset_name)
        panoptic_json, panoptic_root = metadata.get("panoptic_json"), metadata.get("panoptic_root")
        if not panoptic_json or not panoptic_root:
            raise ConfigError(
                f"data set '{dataset_name}' has no panoptic_json and panoptic_root in its metadata; register it with "
                "register_panoptic, or switch MODEL.MASK_FORMER.TEST.PANOPTIC_ON off"
            )
        outside_is_void = metadata.get("outside_is_void", False)
        groups = ClassGroups.from_metadata(metadata)
        return cls(panoptic_json, panoptic_root, groups, outside_is_void=outside_is_void)

    def annotation(self, image_id: int | str) -> PanopticEntry:
        """Entry of an image as it stands in the JSON, with the data set's own category ids.

        Raises:
            DataError: if the image is not annotated.
        """
        if image_id not in self._table.position:
            raise DataError(
                f"{self.panoptic_json}: no annotation of image {image_id!r}; evaluate the images of this file, or name "
                "the JSON that belongs to them"
            )
        return self._table.entry(image_id)

    def read(self, image_id: int | str) -> tuple[npt.NDArray[np.uint32], list[dict[str, Any]]]:
        """Ground truth of one image, by the rules of the training mappers.

        Returns:
            The (h, w) uint32 segment ids, 0 = void or a class that does not count, and the segments
            ``{id, category_id, iscrowd}`` with contiguous category ids.

        Raises:
            MissingFileError: if its PNG is missing.
            DataError: if the image is not annotated, its PNG is unreadable or contradicts the JSON, or a category is
                unknown.
        """
        annotation = self.annotation(image_id)
        path = self.panoptic_root / annotation.file_name
        id_map = read_panoptic_ids(path)
        all_ids: list[SegmentInfo] = [{"id": segment.id} for segment in annotation.segments_info]
        index = segment_index_map(id_map, all_ids, void_ids=annotation.ignored_segment_ids, path=path)
        self._compare_areas(annotation, np.bincount(index.ravel(), minlength=len(all_ids) + 1)[1:])
        segments, void = [], list(annotation.ignored_segment_ids)
        for segment in annotation.segments_info:
            category = self._contiguous_id.get(segment.category_id)
            # Classes that do not count are void, so that predictions on them are neither right nor wrong.
            if category in self.groups.counted_ids:
                segments.append({"id": segment.id, "category_id": category, "iscrowd": int(segment.iscrowd or 0)})
            elif category is not None or self._outside_is_void:
                void.append(segment.id)
            else:
                raise DataError(
                    f"{self.panoptic_json}: image {image_id!r}, segment {segment.id}: category_id "
                    f"{segment.category_id} is not among the {self.groups.num_classes} classes of the data set"
                )
        if void:
            id_map = np.where(np.isin(id_map, void), 0, id_map).astype(np.uint32)
        return id_map, segments

    def _compare_areas(self, annotation: PanopticEntry, pixels: npt.NDArray[np.int64]) -> None:
        """Count, and report once, the segments whose area is another one than their pixels (S,)."""
        for segment, counted in zip(annotation.segments_info, pixels.tolist(), strict=True):
            if segment.area is None or segment.area == counted:
                continue
            if not self.num_wrong_areas:
                logger.warning(
                    "%s: segment %d of %s has the area %g, its pixels are %d; areas are counted, not read (how many "
                    "differ is said at the end)",
                    *(self.panoptic_json, segment.id, annotation.file_name, segment.area, counted),
                )
            self.num_wrong_areas += 1


class PanopticEvaluator(StagedEvaluator):
    """Detectron2 evaluator of ``output["panoptic_seg"]`` = (int32 (h, w) tensor, segments_info with contiguous ids).

    The result key is ``panoptic_seg``: ``PQ, SQ, RQ``, each also with ``_seen, _unseen, _hm`` where the data set has
    unseen classes and with ``_things, _stuff``, in percent; the numbers of classes that counted; ``num_images``.
    """

    needs_scores = False
    """Of semantic classes, see ``padding.engine.evaluation_loop``."""

    def __init__(self, dataset_name: str, output_folder: str | Path | None = None) -> None:
        """Read the ground-truth JSON.

        Args:
            dataset_name: registered data set with ``panoptic_json`` and ``panoptic_root``.
            output_folder: where the per-class report goes; None writes nothing.
        """
        self.truth = PanopticGroundTruth.of_dataset(dataset_name)
        self._dataset_name = dataset_name
        self._output_folder = Path(output_folder) if output_folder is not None else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._quality = PanopticQuality(self.truth.groups.num_classes)
        self._num_wrong_areas = 0

    def reduced(
        self, record: Mapping[str, Any], output: Mapping[str, Any]
    ) -> tuple[npt.NDArray[np.integer], list[Mapping[str, Any]]]:
        """The (h, w) map in few bytes and its segments.

        Raises:
            ConfigError: the model predicts no panoptic segments.
        """
        pred_map, segments = _prediction(record, output)
        narrow = pred_map.size and pred_map.min() >= 0 and pred_map.max() <= np.iinfo(np.uint8).max
        return (pred_map.astype(np.uint8) if narrow else pred_map), segments

    def counted(
        self, record: Mapping[str, Any], reduced: tuple[npt.NDArray[np.integer], list[Mapping[str, Any]]]
    ) -> tuple[PanopticQuality, int]:
        """Sums of one image, and how many of its areas in the JSON are wrong.

        Raises:
            DataError: naming the image, if prediction and ground truth do not fit together.
        """
        wrong_before = self.truth.num_wrong_areas
        gt_map, gt_segments = self.truth.read(record["image_id"])
        quality = PanopticQuality(self.truth.groups.num_classes)
        try:
            quality.update(*reduced, gt_map, gt_segments)
        except ValueError as error:
            raise DataError(f"{record['file_name']} (image {record['image_id']!r}): {error}") from error
        return quality, self.truth.num_wrong_areas - wrong_before

    def add(self, counted: tuple[PanopticQuality, int]) -> None:
        """Add the sums of one image."""
        self._quality.merge(counted[0])
        self._num_wrong_areas += counted[1]

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Join the ranks and report.

        Returns:
            ``{"panoptic_seg": {...}}`` on the main rank, None on the others.
        """
        comm.synchronize()
        parts = comm.gather(self._quality)
        if not comm.is_main_process():
            return None
        # Sums of the ranks, not means: ranks hold different numbers of segments.
        quality = PanopticQuality(self.truth.groups.num_classes)
        for part in parts:
            quality.merge(part)
        if quality.num_images < len(self.truth.image_ids):
            logger.warning(
                "%s: evaluated %d of %d images", self._dataset_name, quality.num_images, len(self.truth.image_ids)
            )
        if self._num_wrong_areas:
            logger.warning(
                "%s: %d segments read by this process have another 'area' than pixels; the pixels count",
                *(self.truth.panoptic_json, self._num_wrong_areas),
            )
        scores = quality.compute()
        results = panoptic_results(scores, self.truth.groups)
        results["num_images"] = quality.num_images
        self._report(scores, results)
        return OrderedDict(panoptic_seg=results)

    def _report(self, scores: PanopticScores, results: dict[str, float]) -> None:
        per_class = {**_percent(scores), "TP": scores.tp, "FP": scores.fp, "FN": scores.fn}
        report = build_report("panoptic_seg", results, METRICS, per_class, scores.present, self.truth.groups)
        publish(report, self._output_folder)


def panoptic_results(scores: PanopticScores, groups: ClassGroups) -> dict[str, float]:
    """Class-averaged PQ, SQ, RQ by group, in percent, and how many classes counted.

    Args:
        scores: per-class fractions.
        groups: seen, unseen and thing classes.

    Returns:
        Keys of ``grouping.grouped_results`` and the same with ``_things`` and ``_stuff``.
    """
    per_class = _percent(scores)
    results = grouped_results(per_class, scores.present, groups)
    things = sorted(groups.thing_ids)
    stuff = sorted(groups.counted_ids - groups.thing_ids)
    for name, values in per_class.items():
        # Two groups that are not seen and unseen, but averaged by the same rule.
        means = group_means(values, scores.present, things, stuff)
        results.update({f"{name}_things": means.seen, f"{name}_stuff": means.unseen})
    return results


def _prediction(
    record: Mapping[str, Any], output: Mapping[str, Any]
) -> tuple[npt.NDArray[np.int32], list[Mapping[str, Any]]]:
    if "panoptic_seg" not in output:
        raise ConfigError(
            f"{record['file_name']}: the prediction has only {sorted(output)}, not 'panoptic_seg'; switch "
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON on"
        )
    pred_map, segments = output["panoptic_seg"]
    return pred_map.cpu().numpy(), list(segments)


def _percent(scores: PanopticScores) -> dict[str, npt.NDArray[np.float64]]:
    return {"PQ": 100 * scores.pq, "SQ": 100 * scores.sq, "RQ": 100 * scores.rq}
