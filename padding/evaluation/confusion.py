# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix of a whole data set, and the semantic scores that follow from it.

Papers report the IoU of the data set's confusion matrix, never the mean of the images' IoU.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from padding.errors import DataError


@dataclass(frozen=True)
class SemanticScores:
    """Scores as fractions; per-class arrays are NaN where the class has no ground-truth pixel.

    Attributes:
        iou: (K,) float64, intersection over union.
        accuracy: (K,) float64, recall of the pixels of each class.
        gt_pixels: (K,) int64, labelled pixels of each class.
        frequency_weighted_iou: IoU weighted by the share of ground-truth pixels.
        pixel_accuracy: share of labelled pixels that are right.
    """

    iou: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    gt_pixels: npt.NDArray[np.int64]
    frequency_weighted_iou: float
    pixel_accuracy: float

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(K,) bool, classes with at least one ground-truth pixel: those that count in a mean."""
        return self.gt_pixels > 0


def confusion_matrix(
    pred: npt.NDArray[np.integer], gt: npt.NDArray[np.integer], num_classes: int, ignore_label: int
) -> npt.NDArray[np.int64]:
    """Count pixels by true class (row) and predicted class (column).

    Pixels whose ground truth is ``ignore_label`` are left out. The last column takes predictions that are
    ``ignore_label``: such a pixel is a miss for its true class and no false alarm for any other.

    Args:
        pred: (h, w) integer, 0..K-1 or ``ignore_label``.
        gt: (h, w) integer, 0..K-1 or ``ignore_label``.
        num_classes: K.
        ignore_label: outside 0..K-1, usually 255.

    Returns:
        (K, K+1) int64.

    Raises:
        ValueError: if the shapes differ, or a value is neither a class nor ``ignore_label``.
    """
    if pred.shape != gt.shape:
        raise ValueError(f"prediction has shape {pred.shape}, ground truth {gt.shape}; both must be the original size")
    columns = num_classes + 1
    # true * (K + 1) + predicted counts all pairs at once; the row of ignored ground truth is cut off below.
    counts = np.bincount(
        (
            _with_ignore_last(gt, num_classes, ignore_label, "ground truth") * columns
            + _with_ignore_last(pred, num_classes, ignore_label, "prediction")
        ).ravel(),
        minlength=columns * columns,
    )
    return counts.reshape(columns, columns)[:num_classes]


def _with_ignore_last(
    labels: npt.NDArray[np.integer], num_classes: int, ignore_label: int, source: str
) -> npt.NDArray[np.int64]:
    """Int64 copy of a label map in which ``ignore_label`` became K."""
    wide = labels.astype(np.int64)
    ignored = labels == ignore_label
    wide[ignored] = 0  # set to K only after the check, or a stray K on disk would pass for ignored
    if wide.size and (wide.min() < 0 or wide.max() >= num_classes):
        found = np.unique(wide[(wide < 0) | (wide >= num_classes)])[:10].tolist()
        raise DataError(f"{source} holds labels {found}; expected 0..{num_classes - 1} or {ignore_label} (ignored)")
    wide[ignored] = num_classes
    return wide


def iou_from_confusion(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """IoU of each class, TP / (ground truth + prediction - TP); NaN for a class without ground truth.

    Args:
        matrix: (K, K+1) int64 of ``confusion_matrix``, summed over the data set.

    Returns:
        (K,) float64 in [0, 1] or NaN.
    """
    num_classes = matrix.shape[0]
    true_positive = matrix.diagonal()
    gt_pixels = matrix.sum(axis=1)
    # Predictions on ignored pixels are in no row: they are no false alarms.
    union = gt_pixels + matrix[:, :num_classes].sum(axis=0) - true_positive
    return _ratio(true_positive, union, gt_pixels > 0)


def scores_from_confusion(matrix: npt.NDArray[np.int64]) -> SemanticScores:
    """All semantic scores of a data set.

    Args:
        matrix: (K, K+1) int64 of ``confusion_matrix``, summed over the data set.
    """
    iou = iou_from_confusion(matrix)
    gt_pixels = matrix.sum(axis=1)
    true_positive = matrix.diagonal()
    present = gt_pixels > 0
    total = int(gt_pixels.sum())
    return SemanticScores(
        iou=iou,
        accuracy=_ratio(true_positive, gt_pixels, present),
        gt_pixels=gt_pixels,
        frequency_weighted_iou=float((iou[present] * gt_pixels[present]).sum() / total) if total else float("nan"),
        pixel_accuracy=float(true_positive.sum() / total) if total else float("nan"),
    )


def _ratio(
    numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64], where: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=where)
    return result
