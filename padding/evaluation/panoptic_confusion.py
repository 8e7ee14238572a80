# SPDX-License-Identifier: Apache-2.0
"""Which class stole the segment: a confusion matrix of panoptic segments, as a pure numpy accumulator.

A ground-truth segment and a predicted one belong together when their IoU exceeds 0.5, whatever their classes; such a
pair is unique. Areas, unions and crowds follow panoptic quality, so that the diagonal is its TP and the rest of a row,
missed segments included, its FN.

Letters: K classes, G ground-truth segments, N predicted segments of one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic_quality import FORGIVEN_FRAC, MATCH_IOU, on_own_crowd, overlap_of


class PanopticConfusion:
    """Counts pairs of classes over image after image.

    Attributes:
        matrix: (K, K) int64, ground-truth class (row) against the class of the matching predicted segment (column).
        missed: (K,) int64, ground-truth segments that no predicted segment matches.
        false_alarms: (K,) int64, predicted segments that match no ground-truth segment, by predicted class; those
            mostly on void or on a crowd region of their own class are forgiven.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.missed = np.zeros(num_classes, dtype=np.int64)
        self.false_alarms = np.zeros(num_classes, dtype=np.int64)

    def update(
        self,
        pred_map: npt.NDArray[np.integer],
        pred_segments: Sequence[Mapping[str, Any]],
        gt_map: npt.NDArray[np.integer],
        gt_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take in one image; arguments as in ``PanopticQuality.update``.

        Raises:
            ValueError: if shapes differ, a category is unknown, or a map holds an id its list lacks.
        """
        overlap, pred_class, gt_class, crowd = overlap_of(
            pred_map, pred_segments, gt_map, gt_segments, self.num_classes
        )
        shared, on_void = overlap[1:, 1:], overlap[0, 1:]
        gt_area, pred_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
        union = gt_area[:, None] + pred_area[None, :] - shared - on_void[None, :]
        # As in PQ, but whatever the classes: a segment found under another name is a theft, not a miss.
        matched = (shared > MATCH_IOU * union) & ~crowd[:, None]
        gt_row, pred_column = np.nonzero(matched)
        np.add.at(self.matrix, (gt_class[gt_row], pred_class[pred_column]), 1)
        self.missed += self._count(gt_class[~crowd & ~matched.any(axis=1)])
        forgiven_pixels = on_void + on_own_crowd(shared, gt_class, pred_class, crowd)
        false_alarm = ~matched.any(axis=0) & (forgiven_pixels <= FORGIVEN_FRAC * pred_area)
        self.false_alarms += self._count(pred_class[false_alarm])

    def merge(self, other: "PanopticConfusion") -> "PanopticConfusion":
        """Add the counts of ``other`` to these and return self.

        Raises:
            ValueError: if the numbers of classes differ.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge {other.num_classes} classes into {self.num_classes}")
        self.matrix += other.matrix
        self.missed += other.missed
        self.false_alarms += other.false_alarms
        return self

    def _count(self, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.bincount(classes, minlength=self.num_classes)


def confusion_results(confusion: PanopticConfusion, groups: ClassGroups) -> dict[str, Any]:
    """Counts and their reading, ready for JSON.

    Args:
        confusion: the counts.
        groups: names of the classes, seen and unseen.

    Returns:
        ``classes`` and ``unseen`` (names), ``matrix`` (rows are ground truth), ``missed`` and ``false_alarms`` by
        class, ``thefts``: ``{truth, predicted, segments, share}`` of every wrong pair, most frequent first, where
        share is that of the true class's segments; and ``by_group``: what became of the segments of seen and of
        unseen classes, counted as ``correct, to_seen, to_unseen, missed``.
    """
    matrix, total = confusion.matrix, confusion.matrix.sum(axis=1) + confusion.missed
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    rows, columns = np.nonzero(wrong)
    # By number of segments, most frequent first; ties in the order of the classes (stable).
    order = np.argsort(-wrong[rows, columns], kind="stable")
    thefts = [
        {
            "truth": groups.names[row],
            "predicted": groups.names[column],
            "segments": int(wrong[row, column]),
            "share": float(wrong[row, column] / total[row]),
        }
        for row, column in zip(rows[order], columns[order], strict=True)
    ]
    seen, unseen = list(groups.seen_ids), list(groups.unseen_ids)
    by_group = {
        name: {
            "correct": int(matrix[ids, ids].sum()),
            "to_seen": int(wrong[np.ix_(ids, seen)].sum()),
            "to_unseen": int(wrong[np.ix_(ids, unseen)].sum()),
            "missed": int(confusion.missed[ids].sum()),
        }
        for name, ids in (("seen", seen), ("unseen", unseen))
    }
    return {
        "classes": list(groups.names),
        "unseen": [groups.names[i] for i in unseen],
        "matrix": matrix.tolist(),
        "missed": confusion.missed.tolist(),
        "false_alarms": confusion.false_alarms.tolist(),
        "thefts": thefts,
        "by_group": by_group,
    }
