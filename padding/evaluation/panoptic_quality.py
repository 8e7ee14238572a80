# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019) as a pure numpy accumulator.

The rules are those of the official panopticapi, class by class: a match needs IoU > 0.5 and the same category; the
union leaves out predicted pixels on void; crowd segments are neither matched nor missed; a false alarm with more than
half of its pixels on void or on a crowd region of its own category is forgiven. Faster because equal neighbours are
counted as one run of a packed id, and because the rules are evaluated on the (ground truth x prediction) overlap table.

Letters: K classes, G ground-truth segments, N predicted segments of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from padding.errors import DataError

VOID_ID = 0  # reserved by the COCO panoptic format in ground truth and predictions alike
MATCH_IOU = 0.5  # exclusive: above it a match is unique, which is why no assignment problem arises
FORGIVEN_FRAC = 0.5  # exclusive: a false alarm lying on void or crowd by more than this is not counted


@dataclass(frozen=True)
class PanopticScores:
    """Scores of each class as fractions in [0, 1].

    Attributes:
        pq, sq, rq: (K,) float64; 0 for an absent class, and SQ is 0 where nothing matched.
        tp, fp, fn: (K,) int64 segments.
    """

    pq: npt.NDArray[np.float64]
    sq: npt.NDArray[np.float64]
    rq: npt.NDArray[np.float64]
    tp: npt.NDArray[np.int64]
    fp: npt.NDArray[np.int64]
    fn: npt.NDArray[np.int64]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(K,) bool, classes with TP + FP + FN > 0: those that count in a mean."""
        return (self.tp + self.fp + self.fn) > 0


class PanopticQuality:
    """Sums the matches of image after image; ``merge`` joins the sums of two ranks or halves.

    Attributes:
        iou: (K,) float64, summed IoU of the matched segments.
        tp, fp, fn: (K,) int64, matched, superfluous and missed segments.
        num_images: images taken in.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.num_images = 0
        self.iou = np.zeros(num_classes, dtype=np.float64)
        self.tp = np.zeros(num_classes, dtype=np.int64)
        self.fp = np.zeros(num_classes, dtype=np.int64)
        self.fn = np.zeros(num_classes, dtype=np.int64)

    def update(
        self,
        pred_map: npt.NDArray[np.integer],
        pred_segments: Sequence[Mapping[str, Any]],
        gt_map: npt.NDArray[np.integer],
        gt_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take in one image.

        Args:
            pred_map: (h, w) integer segment ids, 0 = unlabelled.
            pred_segments: ``{id, category_id}`` of each predicted segment, contiguous category ids.
            gt_map: (h, w) integer segment ids below 2**24, 0 = void.
            gt_segments: ``{id, category_id, iscrowd}``. Areas are counted in the map; panopticapi believes an
                ``area`` of the JSON, so the numbers differ where that is wrong.

        Raises:
            ValueError: if shapes differ, a category is unknown, a map holds an id its list lacks, or a predicted
                segment has no pixel.
        """
        found = overlap_of(pred_map, pred_segments, gt_map, gt_segments, self.num_classes)
        empty = found.overlap.sum(axis=0)[1:] == 0
        if empty.any():
            ids = [segment["id"] for segment, none in zip(pred_segments, empty, strict=True) if none]
            raise ValueError(f"predicted segments {ids} have no pixel; leave them out")
        self.update_overlap(*found)

    def update_overlap(
        self,
        overlap: npt.NDArray[np.int64],
        pred_class: npt.NDArray[np.int64],
        gt_class: npt.NDArray[np.int64],
        crowd: npt.NDArray[np.bool_],
    ) -> None:
        """Take in one image whose segments are counted already; nothing is checked.

        Args:
            overlap: (G+1, N+1) pixels shared by each pair, void and unlabelled first; every prediction has some.
            pred_class: (N,) contiguous category ids.
            gt_class: (G,) contiguous category ids.
            crowd: (G,) whether it is a crowd region.
        """
        gt_area, pred_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
        shared, on_void = overlap[1:, 1:], overlap[0, 1:]
        # (G, N): pixels of either segment but void, on which a prediction is neither right nor wrong.
        union = gt_area[:, None] + pred_area[None, :] - shared - on_void[None, :]
        comparable = (gt_class[:, None] == pred_class[None, :]) & ~crowd[:, None] & (shared > 0)
        iou = np.divide(shared, union, out=np.zeros(shared.shape), where=comparable)
        # Above 1/2 a match is unique: no two segments of one map can both cover more than half.
        matched = iou > MATCH_IOU
        gt_row, pred_column = np.nonzero(matched)
        forgiven_pixels = on_void + on_own_crowd(shared, gt_class, pred_class, crowd)
        # Unmatched, and not mostly on void or on a crowd of its class, where nobody counted the objects.
        false_alarm = ~matched.any(axis=0) & (forgiven_pixels / pred_area <= FORGIVEN_FRAC)

        self.tp += self._count(gt_class[gt_row])
        self.iou += np.bincount(gt_class[gt_row], weights=iou[gt_row, pred_column], minlength=self.num_classes)
        self.fn += self._count(gt_class[~crowd & ~matched.any(axis=1)])
        self.fp += self._count(pred_class[false_alarm])
        self.num_images += 1

    def merge(self, other: "PanopticQuality") -> "PanopticQuality":
        """Add the sums of ``other`` to these and return self.

        Raises:
            ValueError: if the numbers of classes differ.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge {other.num_classes} classes into {self.num_classes}")
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.num_images += other.num_images
        return self

    def compute(self) -> PanopticScores:
        """PQ = sum IoU / (TP + FP/2 + FN/2), SQ = sum IoU / TP, RQ = TP / (TP + FP/2 + FN/2) of each class."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        zeros = np.zeros(self.num_classes)
        return PanopticScores(
            pq=np.divide(self.iou, weight, out=zeros.copy(), where=weight > 0),
            sq=np.divide(self.iou, self.tp, out=zeros.copy(), where=self.tp > 0),
            rq=np.divide(self.tp, weight, out=zeros.copy(), where=weight > 0),
            tp=self.tp.copy(),
            fp=self.fp.copy(),
            fn=self.fn.copy(),
        )

    def _count(self, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.bincount(classes, minlength=self.num_classes)


class Overlap(NamedTuple):
    """Segments of one image counted against each other; see ``PanopticQuality.update_overlap``."""

    overlap: npt.NDArray[np.int64]
    pred_class: npt.NDArray[np.int64]
    gt_class: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


def overlap_of(
    pred_map: npt.NDArray[np.integer],
    pred_segments: Sequence[Mapping[str, Any]],
    gt_map: npt.NDArray[np.integer],
    gt_segments: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> Overlap:
    """Count the segments of one image; arguments and errors as of ``PanopticQuality.update``."""
    if pred_map.shape != gt_map.shape:
        raise ValueError(f"prediction has shape {pred_map.shape}, ground truth {gt_map.shape}; both must be equal")
    gt_ids, gt_class = segment_columns(gt_segments, num_classes, "ground truth")
    pred_ids, pred_class = segment_columns(pred_segments, num_classes, "prediction")
    overlap = overlap_table(gt_map, pred_map, gt_ids, pred_ids)  # (G+1, N+1), row 0 void, column 0 unlabelled
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in gt_segments], dtype=bool)
    return Overlap(overlap, pred_class, gt_class, crowd)


def segment_columns(
    segments: Sequence[Mapping[str, Any]], num_classes: int, source: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and checked categories of a segment list, (G,) or (N,) int64 each.

    Args:
        segments: ``{id, category_id}`` each.
        num_classes: K; categories are contiguous.
        source: named in errors.

    Raises:
        DataError: if a category is unknown, or an id is void or not unique.
    """
    ids = np.array([segment["id"] for segment in segments], dtype=np.int64)
    classes = np.array([segment["category_id"] for segment in segments], dtype=np.int64)
    unknown = (classes < 0) | (classes >= num_classes)
    if unknown.any():
        raise DataError(
            f"{source}: segments {ids[unknown].tolist()} have category_id {classes[unknown].tolist()}; expected "
            f"contiguous ids 0..{num_classes - 1}"
        )
    if np.unique(ids).size != ids.size or (ids <= VOID_ID).any():
        raise DataError(f"{source}: segment ids {ids.tolist()} must be unique and above {VOID_ID}, which is void")
    return ids, classes


def overlap_table(
    gt_map: npt.NDArray[np.integer],
    pred_map: npt.NDArray[np.integer],
    gt_ids: npt.NDArray[np.int64],
    pred_ids: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Pixels shared by each ground-truth and each predicted segment, (G+1, N+1) int64, void and unlabelled first."""
    gt_values, pred_values, pixels = _runs(gt_map, pred_map)
    row = segment_positions(gt_values, gt_ids, "ground truth")
    column = segment_positions(pred_values, pred_ids, "prediction")
    columns = pred_ids.size + 1
    # Pairs as one number, row * columns + column, counted by run: far fewer numbers than pixels.
    counts = np.bincount(row * columns + column, weights=pixels, minlength=(gt_ids.size + 1) * columns)
    return counts.astype(np.int64).reshape(gt_ids.size + 1, columns)  # float64 sums of pixels are exact below 2**53


def _runs(
    gt_map: npt.NDArray[np.integer], pred_map: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of equal (ground truth, prediction) pairs in reading order: both ids and the length of each run."""
    if min(gt_map.min(), pred_map.min()) < 0:
        raise ValueError("an id map holds negative ids; segment ids are positive and 0 is void")
    # A COCO id has 24 bits and an image rarely 256 predictions: 32 bits then hold the pair at half the memory traffic.
    narrow = pred_map.max() < 2**8 and gt_map.max() < 2**24
    dtype, shift = (np.uint32, 24) if narrow else (np.uint64, 32)
    packed = pred_map.ravel().astype(dtype)
    np.left_shift(packed, dtype(shift), out=packed)
    np.bitwise_or(packed, gt_map.ravel().astype(dtype, copy=False), out=packed)
    starts = np.concatenate(([0], np.flatnonzero(packed[1:] != packed[:-1]) + 1))
    values = packed[starts].astype(np.uint64)
    lengths = np.diff(starts, append=packed.size)
    gt_values = (values & np.uint64(2**shift - 1)).astype(np.int64)
    return gt_values, (values >> np.uint64(shift)).astype(np.int64), lengths


def segment_positions(values: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], source: str) -> npt.NDArray[np.int64]:
    """Index of each value in ``ids`` plus one, 0 for void.

    Raises:
        DataError: if a value is neither void nor among ``ids``.
    """
    order = np.argsort(ids)
    # Known ids, ascending behind void, and the position + 1 of each in ``ids``.
    known = np.concatenate(([VOID_ID], ids[order]))
    target = np.concatenate(([0], order + 1))
    slot = np.minimum(np.searchsorted(known, values), known.size - 1)
    stray = known[slot] != values
    if stray.any():
        found = np.unique(values[stray])[:10].tolist()
        raise DataError(f"{source}: the id map holds ids {found} that its segment list lacks (0 is void)")
    return target[slot]


def on_own_crowd(
    shared: npt.NDArray[np.int64],
    gt_class: npt.NDArray[np.int64],
    pred_class: npt.NDArray[np.int64],
    crowd: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """Pixels of each predicted segment on the crowd region of its category, (N,) int64.

    Of several crowd regions of one category panopticapi knows only the last; so do we.
    """
    region_of_class = {int(gt_class[row]): int(row) for row in np.flatnonzero(crowd)}
    pixels = np.zeros(pred_class.size, dtype=np.int64)
    for class_id, row in region_of_class.items():
        of_class = pred_class == class_id
        pixels[of_class] = shared[row, of_class]
    return pixels
