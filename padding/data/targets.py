# SPDX-License-Identifier: Apache-2.0
"""Arrays of annotation files to training targets; pure functions.

A panoptic PNG is turned into a *segment index map* once, at the size of the file: uint8 (uint16 beyond 254 segments), 0
for void, ``k + 1`` for segment ``k``. It is augmented like any label map; only what is left of it becomes binary masks.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.coco_json import MAX_SEGMENT_ID, segment_id_problem
from padding.data.sample import VOID_INDEX, SegmentInfo
from padding.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detectron2.structures import Instances
    from fvcore.transforms.transform import Transform

_per_thread = threading.local()

LabelMap = npt.NDArray[Any]  # (h, w) uint8 or uint16


def check_size(path: str | Path, found: Sequence[int], listed: Mapping[str, Any]) -> None:
    """Raise a ValueError naming the file unless its (h, w) is the listed one; nothing listed is accepted."""
    expected = (listed.get("height", found[0]), listed.get("width", found[1]))
    if tuple(found[:2]) != expected:
        raise DataError(
            f"{path}: the file is {found[0]} x {found[1]} (height x width), the annotations say {expected[0]} x "
            f"{expected[1]}; image and annotations belong to different versions, obtain both again"
        )


def check_label_range(labels: LabelMap, *, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Raise a ValueError naming the file and the values unless all are class ids or the ignore label.

    On a GPU such a label would only show as a device-side assertion, long after its file was closed.
    """
    counts = _value_counts(labels)
    # Classes and void are set to 0, what is left should not be there.
    counts[:num_classes] = 0
    if ignore_label < len(counts):
        counts[ignore_label] = 0
    wrong = np.flatnonzero(counts)
    if len(wrong):
        raise DataError(
            f"{path}: holds the label {', '.join(map(str, wrong[:5]))}, but the data set has {num_classes} classes "
            f"(0 to {num_classes - 1}) and the ignore label {ignore_label}; convert the labels, or register all classes"
        )


def translate_labels(labels: LabelMap, label_map: Mapping[int, int], *, path: str | Path) -> LabelMap:
    """Renumber a label map.

    Args:
        labels: (h, w) uint8 or uint16, as in the file.
        label_map: value in the file -> label returned, 0 to 65535.
        path: the file, for the message.

    Returns:
        (h, w) uint8, or uint16 where a label is larger.

    Raises:
        DataError: the file holds a value that the map does not.
    """
    distinct = np.flatnonzero(_value_counts(labels))
    unknown = [int(value) for value in distinct if int(value) not in label_map]
    if unknown:
        raise DataError(
            f"{path}: holds the values {unknown[:5]}, which the sem_seg_label_map of the data set does not translate; "
            "correct the file, or register the set with a complete map"
        )
    translated = [label_map[int(value)] for value in distinct]
    table = np.zeros(int(np.iinfo(labels.dtype).max) + 1, np.uint8 if max(translated) <= 255 else np.uint16)
    table[distinct] = translated
    return table[labels]


def _value_counts(labels: LabelMap) -> npt.NDArray[np.float32]:
    """Number of pixels of every value of the type; ten times faster than sorting them."""
    size = int(np.iinfo(labels.dtype).max) + 1
    return cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [size], [0, size]).ravel().astype(np.float32)


def _lookup_table() -> npt.NDArray[np.uint16]:
    """Zeros for every possible segment id, one table per thread, zeros again after use.

    A new one for every image would cost more than all else that is done with the ids.
    """
    if not hasattr(_per_thread, "table"):
        _per_thread.table = np.zeros(MAX_SEGMENT_ID + 1, np.uint16)
    return _per_thread.table


def segment_index_map(
    ids: npt.NDArray[np.uint32], segments: Sequence[SegmentInfo], *, void_ids: Sequence[int] = (), path: str | Path = ""
) -> LabelMap:
    """Replace segment ids by indices into ``segments``.

    Args:
        ids: (h, w), as in the PNG; 0 is void.
        segments: as in the JSON.
        void_ids: further ids that count as void.
        path: the PNG, for the message.

    Returns:
        (h, w) uint8, or uint16 for more than 254 segments: 0 for void, k + 1 for segment k.

    Raises:
        DataError: PNG and JSON contradict each other: the PNG holds an id that the JSON does not list, the JSON lists a
            segment that has no pixel, an id twice, or one that no PNG can hold.
    """
    dtype = np.uint8 if len(segments) < np.iinfo(np.uint8).max else np.uint16
    segment_ids = [segment["id"] for segment in segments]
    if problem := segment_id_problem(segment_ids):
        raise DataError(f"{path}: the panoptic JSON {problem}")
    table = _lookup_table()
    # Written, read by all pixels, and cleared: only the entries of this image were touched.
    table[segment_ids] = np.arange(1, len(segments) + 1)
    index = table[ids].astype(dtype)
    table[segment_ids] = VOID_INDEX
    empty = np.flatnonzero(_value_counts(index)[1 : len(segments) + 1] == 0)
    if len(empty):
        raise DataError(
            f"{path}: no pixel of the segments {[segment_ids[i] for i in empty[:5]]}, which the panoptic JSON lists "
            "for this image; PNG and JSON belong to different versions, obtain or generate both again"
        )
    # Void by number of pixels first, which is cheap; which ids are strange is asked only of a wrong file.
    void = index == VOID_INDEX
    if np.count_nonzero(void) != np.count_nonzero(ids == 0):
        strange = np.setdiff1d(ids[void], [0, *void_ids])
        if len(strange):
            raise DataError(
                f"{path}: holds the segment ids {strange[:5].tolist()}, which the panoptic JSON does not list for this "
                "image; PNG and JSON belong to different versions, obtain or generate both again"
            )
    return index


def instance_classes(segments: Sequence[SegmentInfo]) -> npt.NDArray[np.int64]:
    """Contiguous class of every segment, -1 for a crowd: it is no training target."""
    return np.array([-1 if s.get("iscrowd", 0) else s["category_id"] for s in segments], np.int64)


def semantic_labels(index: LabelMap, segments: Sequence[SegmentInfo], *, ignore_label: int) -> LabelMap:
    """Label map of a segment index map; a crowd counts as its class, void as the ignore label."""
    classes = [ignore_label, *(segment["category_id"] for segment in segments)]
    return np.array(classes, np.uint8 if max(classes) <= np.iinfo(np.uint8).max else np.uint16)[index]


def label_map_to_instances(labels: LabelMap, classes: npt.NDArray[np.int64], *, keep_empty: bool = False) -> Instances:
    """Binary masks of the values that occur in a label map.

    Args:
        labels: (H, W) values; those without an entry in ``classes``, or with the entry -1, have no mask.
        classes: class of each value, from value 0 on.
        keep_empty: values that do not occur have a mask too, without a pixel.

    Returns:
        Instances of image size (H, W) with ``gt_classes`` (N,) int64 and ``gt_masks`` (N, H, W) bool, in the order of
        the values; every mask has a pixel unless ``keep_empty``.
    """
    occurs = _value_counts(labels)[: len(classes)] > 0
    values = np.flatnonzero((occurs | keep_empty) & (classes[: len(occurs)] >= 0))
    # (1, H, W) == (N, 1, 1) -> (N, H, W).
    masks = labels[None] == values.astype(labels.dtype)[:, None, None]
    return masks_to_instances(masks, classes[values], keep_empty=keep_empty)


def masks_to_instances(
    masks: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64], *, keep_empty: bool = False
) -> Instances:
    """Instances with ``gt_classes`` and ``gt_masks`` from (N, H, W) masks, empty masks dropped unless ``keep_empty``.

    A mask that the crop emptied would be matched, and would teach its query nothing but noise (Mask2Former issue 215).
    """
    import torch

    from padding.data.instances import PinnableInstances

    kept = masks.any(axis=(1, 2)) | keep_empty if len(masks) else np.zeros(0, bool)
    instances = PinnableInstances(tuple(masks.shape[1:]))
    instances.gt_classes = torch.from_numpy(np.ascontiguousarray(classes[kept], np.int64))
    instances.gt_masks = torch.from_numpy(masks if kept.all() else masks[kept])
    return instances


def transform_labels(transform: Transform, labels: LabelMap) -> LabelMap:
    """Apply a geometric transform to a label map without inventing labels.

    Detectron2 resizes uint8 with Pillow and all else with torch, whose nearest neighbour lies half a pixel off; the two
    bytes of a uint16 map are therefore transformed apart.
    """
    if labels.dtype == np.uint8:
        return transform.apply_segmentation(labels)
    low = transform.apply_segmentation((labels & 0xFF).astype(np.uint8))
    high = transform.apply_segmentation((labels >> 8).astype(np.uint8))
    return low.astype(np.uint16) | (high.astype(np.uint16) << 8)


def pad_to_size(array: npt.NDArray[Any], size: tuple[int, int] | None, value: float, *, name: str = "array") -> Any:
    """Pad an (h, w, ...) array at the right and the bottom with a constant; ``size`` None returns it as it is.

    Raises:
        ConfigError: the array is larger than ``size``.
    """
    if size is None or array.shape[:2] == size:
        return array
    height, width = array.shape[:2]
    if height > size[0] or width > size[1]:
        raise ConfigError(
            f"{name} is {height} x {width} after the augmentation and does not fit the padded {size[0]} x {size[1]}; "
            "raise INPUT.SIZE_DIVISIBILITY to the size of the crop (or set it to -1), or crop smaller"
        )
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded
