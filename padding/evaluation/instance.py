# SPDX-License-Identifier: Apache-2.0
"""COCO instance evaluation by class: AP, AP50 and recall at IoU 0.5, with seen and unseen means (PADing, Tab. 2 and 5).

COCO's protocol with area "all" and at most 100 detections per class and image, which is also the generalised zero-shot
instance protocol. Counted by faster-coco-eval, or by pycocotools where that is not installed; both give equal numbers.
"""

import contextlib
import importlib.util
import io
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from padding.data.coco_json import ImageEntry, InstanceFile, read_instance_file
from padding.data.masks import run_length_code
from padding.errors import ConfigError, DataError
from padding.evaluation.detections import ImageDetections, class_groups, encode_masks, with_boxes
from padding.evaluation.grouping import ClassGroups, grouped_results
from padding.evaluation.report import build_report, publish

logger = logging.getLogger(__name__)

IouType = Literal["bbox", "segm"]
IOU_TYPES: tuple[IouType, ...] = ("segm", "bbox")
METRICS = ("AP", "AP50", "recall100")
MAX_DETECTIONS = 100
ALL_AREAS = [0.0, 1e10]  # square pixels; COCO's "all"
BACKENDS = ("faster_coco_eval", "pycocotools")
_AT_ONCE = 100_000  # detections in the form that the backends want, some 2 kB each


@dataclass(frozen=True)
class DetectionScores:
    """Scores as fractions, NaN for a class without ground truth.

    Attributes:
        ap: (K,) float64, mean over the IoU thresholds 0.5, 0.55 .. 0.95 and 101 recall points.
        ap50: (K,) float64, at IoU 0.5.
        recall: (K,) float64, largest recall at IoU 0.5 with at most 100 detections per image.
        present: (K,) bool, classes with ground truth that is not crowd.
    """

    ap: npt.NDArray[np.float64]
    ap50: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class InstanceGroundTruth:
    """Objects of a data set, and the backend that compares with them.

    Attributes:
        json_file: the annotations.
        groups: the thing classes that count.
        images: id to entry of each image.
        coco: COCO object of the backend. Its images and annotations are numbered from 1, for 0 means "no match" to the
            backends, and ids of the file may repeat or be texts.
        backend: one of ``BACKENDS``.
    """

    json_file: str
    groups: ClassGroups
    images: Mapping[Any, ImageEntry]
    coco: Any
    backend: str

    @classmethod
    def of_dataset(cls, dataset_name: str) -> "InstanceGroundTruth":
        """Read the annotations of a registered data set.

        Args:
            dataset_name: registered data set with ``json_file``.

        Raises:
            ConfigError: if there is no ground truth.
            DataError: if it cannot be read, see ``coco_json.read_instance_file``, or lacks a thing class of the data
                set.
        """
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if not json_file or not Path(json_file).is_file():
            raise ConfigError(
                f"data set '{dataset_name}' needs an instances JSON as json_file in its metadata, got {json_file!r}; "
                "prepare it, or switch MODEL.MASK_FORMER.TEST.INSTANCE_ON off"
            )
        groups = ClassGroups.from_metadata(metadata)
        content = read_instance_file(json_file, image_root=metadata.get("image_root"))
        known = {category.id for category in content.categories}
        missing = sorted({groups.dataset_ids[i] for i in groups.thing_ids} - known)
        if missing:
            raise DataError(f"{json_file}: lacks categories {missing[:10]}, thing classes of data set '{dataset_name}'")
        backend = _installed_backend()
        images = {image.id: image for image in content.images}
        coco = _coco_object(_backend_classes(backend)[0], content)
        return cls(str(json_file), groups.subset(groups.thing_ids), images, coco, backend)

    @cached_property
    def number(self) -> dict[Any, int]:
        """Image id to its number in ``coco``."""
        return {image_id: number for number, image_id in enumerate(self.images, start=1)}

    @property
    def image_ids(self) -> list[Any]:
        """Ids of all images, sorted."""
        return sorted(self.images)

    def image(self, image_id: Any, file_name: str = "") -> ImageEntry:
        """Entry of an image with its size.

        Raises:
            DataError: the annotations do not list it.
        """
        image = self.images.get(image_id)
        if image is None:
            raise DataError(f"{self.json_file}: has no image {image_id!r} ({file_name})")
        return image


def _coco_object(kind: Any, content: InstanceFile) -> Any:
    """The backend's data set of checked annotations, numbered from 1: masks as run-length code, areas counted."""
    from pycocotools import mask as mask_api

    number = {image.id: i for i, image in enumerate(content.images, start=1)}
    sizes = {image.id: image.size for image in content.images}
    objects = content.annotations
    codes = [run_length_code(entry.segmentation, sizes[entry.image_id]) for entry in objects]  # checked by the reader
    # One by one: pycocotools with numpy 2 fails on more than 255 masks at once.
    areas, boxes = [mask_api.area(code) for code in codes], [mask_api.toBbox(code) for code in codes]
    drawn = zip(objects, codes, areas, boxes, strict=True)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = kind()
        coco.dataset = {
            "images": [{"id": number[i.id], "height": i.size[0], "width": i.size[1]} for i in content.images],
            "categories": [{"id": category.id, "name": category.name} for category in content.categories],
            "annotations": [
                {
                    "id": index,
                    "image_id": number[entry.image_id],
                    "category_id": entry.category_id,
                    "iscrowd": int(entry.iscrowd or 0),
                    "segmentation": code,
                    "area": float(area),
                    "bbox": box.tolist() if entry.bbox is None else entry.bbox,
                }
                for index, (entry, code, area, box) in enumerate(drawn, start=1)
            ],
        }
        coco.createIndex()
    return coco


class InstanceEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of ``output["instances"]``: ``scores``, ``pred_classes`` and ``pred_masks``.

    The boxes are those of the masks. Classes are contiguous ids of the data set; the
    ground truth is an instances JSON, so the means run over its things. The result keys are ``segm`` and ``bbox``:
    ``AP, AP50, recall100`` (each also ``_seen, _unseen, _hm``) in percent, class counts, ``num_images``.
    """

    needs_scores = False
    """Of semantic classes, see ``padding.engine.evaluation_loop``."""

    def __init__(self, dataset_name: str, output_folder: str | Path | None = None) -> None:
        """Read the ground truth.

        Args:
            dataset_name: registered data set with ``json_file``.
            output_folder: where the per-class reports go; None writes nothing.

        Raises:
            ValueError: if there is no ground truth, or it lacks a thing class of the data set.
        """
        self.truth = InstanceGroundTruth.of_dataset(dataset_name)
        self.groups = self.truth.groups
        self._dataset_name = dataset_name
        self._output_folder = output_folder
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._detections: list[ImageDetections] = []
        self._image_ids: list[int] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch.

        Args:
            inputs: dataset dicts with ``file_name`` and ``image_id``.
            outputs: predictions of the same images, at their original size.

        Raises:
            ValueError: naming the image, if it is not in the ground truth or its size is another one.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise ConfigError(
                    f"{record['file_name']}: the prediction has only {sorted(output)}, not 'instances'; switch "
                    "MODEL.MASK_FORMER.TEST.INSTANCE_ON on"
                )
            image = self.truth.image(record["image_id"], record["file_name"])
            self._image_ids.append(record["image_id"])
            try:
                self._detections.append(self._detections_of(output["instances"], image))
            except ValueError as error:
                raise DataError(f"{record['file_name']} (image {record['image_id']!r}): {error}") from error

    def _detections_of(self, instances: Instances, image: ImageEntry) -> ImageDetections:
        """Detections of one image; those that are not of a thing class are dropped."""
        classes = instances.pred_classes.cpu()
        keep = torch.isin(classes, torch.tensor(sorted(self.groups.thing_ids)))
        if not bool(keep.any()):
            return ImageDetections.of(image.id, classes[keep], classes[keep].float(), torch.zeros(0, *image.size))
        if not instances.has("pred_masks"):
            raise ValueError("instances without pred_masks cannot be compared; boxes alone are not evaluated")
        scores, masks = instances.scores.cpu(), instances.pred_masks.cpu()
        if not bool(keep.all()):  # masks are large, and usually all are kept
            classes, scores, masks = classes[keep], scores[keep], masks[keep]
        check_mask_size(masks, image.size)
        return ImageDetections.of(image.id, classes, scores, masks)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Join the ranks and report.

        Returns:
            ``{"segm": {...}, "bbox": {...}}`` on the main rank, None on the others.
        """
        comm.synchronize()
        parts = comm.gather((self._detections, self._image_ids))
        if not comm.is_main_process():
            return None
        detections = [image for part in parts for image in part[0]]
        # Each image once, whichever ranks evaluated it.
        image_ids = sorted({image_id for part in parts for image_id in part[1]})
        total = len(self.truth.image_ids)
        if len(image_ids) < total:
            logger.warning("%s: evaluated %d of %d images", self._dataset_name, len(image_ids), total)
        scores = scores_of_images(self.truth, detections, image_ids)
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for iou_type in IOU_TYPES:
            results[iou_type] = self._report(iou_type, scores[iou_type])
        for part in results.values():
            part["num_images"] = len(image_ids)
        return results

    def _report(self, iou_type: str, scores: DetectionScores) -> dict[str, float]:
        per_class = dict(zip(METRICS, (100 * scores.ap, 100 * scores.ap50, 100 * scores.recall), strict=True))
        results = grouped_results(per_class, scores.present, self.groups)
        publish(build_report(iou_type, results, METRICS, per_class, scores.present, self.groups), self._output_folder)
        return results


def scores_of_images(
    truth: InstanceGroundTruth, images: Sequence[ImageDetections], image_ids: Sequence[int]
) -> dict[IouType, DetectionScores]:
    """Scores of masks and boxes; classes are independent, so that few are unpacked at a time.

    Args:
        truth: the ground truth.
        images: detections.
        image_ids: images that were evaluated.
    """
    scores = {iou_type: _no_scores(truth.groups.num_classes) for iou_type in IOU_TYPES}
    for classes in class_groups(images, sorted(truth.groups.thing_ids), _AT_ONCE):
        entries = [entry for image in images for entry in image.entries(truth.groups.dataset_ids.__getitem__, classes)]
        for iou_type in IOU_TYPES:
            usable = entries if iou_type == "segm" else with_boxes(entries)
            part = detection_scores(truth, usable, image_ids, iou_type, classes=classes)
            for name, values in vars(scores[iou_type]).items():
                values[sorted(classes)] = getattr(part, name)[sorted(classes)]
    return scores


def _no_scores(num_classes: int) -> DetectionScores:
    nan = np.full(num_classes, np.nan)
    return DetectionScores(nan.copy(), nan.copy(), nan.copy(), np.zeros(num_classes, dtype=bool))


def detection_scores(
    truth: InstanceGroundTruth,
    detections: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    iou_type: IouType,
    *,
    classes: frozenset[int] | None = None,
) -> DetectionScores:
    """Run the COCO evaluation and read its tables class by class.

    Args:
        truth: the ground truth.
        detections: result entries with data-set category ids; may be empty.
        image_ids: images that were evaluated.
        iou_type: "segm" or "bbox".
        classes: contiguous ids of the things to score; None: all.

    Returns:
        (K,) scores over all contiguous ids; classes that are no things are NaN and not present.
    """
    groups = truth.groups
    # The backends sort the classes by their ids in the file, which may be another order than that of the label space.
    class_ids = sorted(
        groups.thing_ids if classes is None else classes, key=lambda class_id: groups.dataset_ids[class_id]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        results = _result_set(truth, detections, iou_type)
        # The official parameters, but for the areas and limits that nobody reports.
        evaluation = _backend_classes(truth.backend)[1](truth.coco, results, iou_type)
        evaluation.params.imgIds = [truth.number[image_id] for image_id in image_ids]
        evaluation.params.catIds = [groups.dataset_ids[class_id] for class_id in class_ids]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [ALL_AREAS], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # precision (thresholds, recall points, classes, areas, limits), recall without the second; -1: no ground truth
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
    recall = np.asarray(evaluation.eval["recall"])[0, :, 0, 0]
    scores = _no_scores(groups.num_classes)
    # Columns are thing classes in the order of their ids in the file; the result has all K.
    for column, class_id in enumerate(class_ids):
        if recall[column] < 0:
            continue
        scores.present[class_id] = True
        # (thresholds, recall points) of one class: AP is their mean, AP50 that of the first threshold.
        scores.ap[class_id] = precision[:, :, column].mean()
        scores.ap50[class_id] = precision[0, :, column].mean()
        scores.recall[class_id] = recall[column]
    return scores


def _result_set(truth: InstanceGroundTruth, detections: Sequence[Mapping[str, Any]], iou_type: IouType) -> Any:
    """Detections as a COCO object of the same backend; ``loadRes`` refuses an empty list."""
    if not detections:
        result = type(truth.coco)()
        result.dataset = {**truth.coco.dataset, "annotations": []}
        result.createIndex()
        return result
    # loadRes takes the kind of result from the keys it finds, and a box in a segm result for the truth about its area.
    key = "segmentation" if iou_type == "segm" else "bbox"
    return truth.coco.loadRes(
        [
            {
                "image_id": truth.number[d["image_id"]],
                **{name: d[name] for name in ("category_id", "score")},
                key: d[key],
            }
            for d in detections
        ]
    )


def mask_entries(masks: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run-length code and tight box of masks, as result entries hold them.

    Args:
        masks: (N, h, w) bool, or numbers of which the positive ones are inside; on the CPU.
        size: (h, w) of the image, according to the ground truth.

    Raises:
        DataError: the masks have another size than the image.
    """
    from pycocotools import mask as mask_api

    check_mask_size(masks, size)
    codes = [{"size": list(size), "counts": code.decode("ascii")} for code in encode_masks(masks)]
    return [{"segmentation": code, "bbox": mask_api.toBbox(code).tolist()} for code in codes]


def check_mask_size(masks: Tensor, size: tuple[int, int]) -> None:
    """Raise a DataError unless masks (N, h, w) have the size (h, w) of the ground truth."""
    if tuple(masks.shape[-2:]) != size:
        raise DataError(f"masks of size {tuple(masks.shape[-2:])}, the ground truth says {size}")


def _installed_backend() -> str:
    for name in BACKENDS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ConfigError(f"none of {BACKENDS} is installed; pip install faster-coco-eval")


def _backend_classes(backend: str) -> tuple[Any, Any]:
    """Classes of the data set and of the evaluation."""
    if backend == "faster_coco_eval":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval
