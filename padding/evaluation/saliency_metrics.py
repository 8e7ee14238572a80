# SPDX-License-Identifier: Apache-2.0
"""Scores of a saliency map against a binary truth: MAE, F-measure, S-measure, E-measure. Pure numpy.

Void pixels (``known`` False) are left out exactly, as if the image did not have them: no score looks at more of an
image than counts and sums over pixels, taken over the four quadrants in the case of the S-measure.

Curves have 256 thresholds t = 0..255: a pixel counts as salient when ``floor(255 * prediction) >= t``. They come from
two histograms, so that an image costs O(pixels), not O(256 * pixels).
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

NUM_THRESHOLDS = 256
BETA_SQUARED = 0.3
"""Weight of precision against recall, as in every paper since Achanta et al. (CVPR 2009)."""

S_ALPHA = 0.5
"""Share of the object-aware part in the S-measure."""

_EPS = float(np.finfo(np.float64).eps)

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image as fractions; curves are (256,) float64, ascending in the threshold.

    Attributes:
        mae: mean absolute error, the only one where less is better.
        precision: curve; 0 where nothing is predicted.
        recall: curve; 0 where nothing is salient.
        f: curve of the F-measure with beta^2 = 0.3.
        adaptive_f: F-measure at the threshold min(2 * mean prediction, 1).
        s: S-measure.
        e: curve of the E-measure.
        adaptive_e: E-measure at the adaptive threshold.
    """

    mae: float
    precision: _Floats
    recall: _Floats
    f: _Floats
    adaptive_f: float
    s: float
    e: _Floats
    adaptive_e: float


@dataclass
class SaliencyTotals:
    """Sums of the scores of many images; two of them are joined by ``+``.

    Attributes:
        num_images: images behind the sums.
        num_without_object: those whose truth has no salient pixel; their F-measure is 0 whatever is predicted.
        max_f: sum of the images' own largest F-measures; all other sums are those of the ``ImageScores``.
    """

    num_images: int = 0
    num_without_object: int = 0
    mae: float = 0.0
    precision: _Floats | float = 0.0
    recall: _Floats | float = 0.0
    f: _Floats | float = 0.0
    max_f: float = 0.0
    adaptive_f: float = 0.0
    s: float = 0.0
    e: _Floats | float = 0.0
    adaptive_e: float = 0.0

    @classmethod
    def of_image(cls, scores: ImageScores) -> "SaliencyTotals":
        """Sums over one image."""
        sums = {field.name: getattr(scores, field.name) for field in fields(scores)}
        # With threshold 0 everything is predicted: the recall is 1, unless there is nothing to recall.
        return cls(num_images=1, num_without_object=int(scores.recall[0] == 0), max_f=float(scores.f.max()), **sums)

    def __add__(self, other: "SaliencyTotals") -> "SaliencyTotals":
        """Sums over the images of both."""
        return SaliencyTotals(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    def curves(self) -> dict[str, _Floats]:
        """Mean ``precision``, ``recall``, ``F`` and ``E`` over the images, (256,) each; NaN without images."""
        sums = {"precision": self.precision, "recall": self.recall, "F": self.f, "E": self.e}
        return {
            name: np.broadcast_to(np.asarray(total) / self.num_images if self.num_images else np.nan, NUM_THRESHOLDS)
            for name, total in sums.items()
        }

    def results(self) -> dict[str, float]:
        """Scores of the data set: ``MAE`` as a fraction, everything else in percent; NaN without images.

        "Maximal F" has three meanings in the literature, all of them are given: ``max_F`` is the largest value of the
        mean of the images' curves (the usual one), ``max_F_of_mean_PR`` the largest F-measure of mean precision and
        mean recall, ``mean_of_max_F`` the mean of each image's own largest value, the most flattering.
        """
        curves = self.curves()
        count = self.num_images or np.nan
        return {
            "MAE": self.mae / count,
            "max_F": 100 * float(curves["F"].max()),
            "mean_F": 100 * float(curves["F"].mean()),
            "adaptive_F": 100 * self.adaptive_f / count,
            "max_F_of_mean_PR": 100 * float(f_measure(curves["precision"], curves["recall"]).max()),
            "mean_of_max_F": 100 * self.max_f / count,
            "S": 100 * self.s / count,
            "max_E": 100 * float(curves["E"].max()),
            "mean_E": 100 * float(curves["E"].mean()),
            "adaptive_E": 100 * self.adaptive_e / count,
        }


def image_scores(prediction: npt.NDArray[np.floating], truth: _Bools, known: _Bools | None = None) -> ImageScores:
    """All scores of one image.

    Args:
        prediction: (h, w) float in [0, 1].
        truth: (h, w) bool, the salient pixels.
        known: (h, w) bool, False for pixels that do not count; None: all count.

    Raises:
        ValueError: if shapes differ, the prediction leaves [0, 1] or is not finite, or no pixel is known.
    """
    _check(prediction, truth, known)
    values = prediction.astype(np.float64)
    if known is None:
        known = np.ones(truth.shape, dtype=np.bool_)
    flat, salient = values[known], truth[known]
    num_pixels, num_salient = flat.size, int(salient.sum())
    hits, false_alarms = _counts_above_thresholds(flat, salient)
    precision, recall = _precision_recall(hits, false_alarms, num_salient)

    # Adaptive threshold: twice the mean prediction (Achanta et al.), at most 1, else nothing would be salient.
    mask = flat >= min(2 * flat.mean(), 1.0)
    adaptive = np.array([mask[salient].sum()]), np.array([mask[~salient].sum()])
    return ImageScores(
        mae=float(np.abs(flat - salient).mean()),
        precision=precision,
        recall=recall,
        f=f_measure(precision, recall),
        adaptive_f=float(f_measure(*_precision_recall(*adaptive, num_salient))[0]),
        s=s_measure(values, truth, known),
        e=_e_measure(hits, false_alarms, num_salient, num_pixels),
        adaptive_e=float(_e_measure(*adaptive, num_salient, num_pixels)[0]),
    )


def min_max_normalized(prediction: npt.NDArray[np.floating], known: _Bools | None = None) -> npt.NDArray[np.float64]:
    """Stretch a prediction so that its known pixels reach from 0 to 1; a constant one stays as it is.

    Args:
        prediction: (h, w) float.
        known: (h, w) bool, as in ``image_scores``.
    """
    values = prediction.astype(np.float64)
    counted = values if known is None else values[known]
    if counted.size == 0 or counted.max() == counted.min():
        return values
    return np.clip((values - counted.min()) / (counted.max() - counted.min()), 0.0, 1.0)  # void may lie outside


def f_measure(precision: npt.ArrayLike, recall: npt.ArrayLike) -> _Floats:
    """(1 + b) P R / (b P + R) with b = beta^2 = 0.3; 0 where both are 0."""
    precision, recall = np.asarray(precision, dtype=np.float64), np.asarray(recall, dtype=np.float64)
    below = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(below == 0, 1.0, below)


def s_measure(prediction: npt.NDArray[np.floating], truth: _Bools, known: _Bools | None = None) -> float:
    """Structure measure (Fan et al., ICCV 2017), half object-aware, half region-aware.

    Without a salient pixel it is 1 - mean prediction, with salient pixels only the mean prediction.

    Args:
        prediction: (h, w) float in [0, 1].
        truth: (h, w) bool.
        known: (h, w) bool, as in ``image_scores``.

    Returns:
        In [0, 1].
    """
    if known is None:
        known = np.ones(truth.shape, dtype=np.bool_)
    values, salient = prediction[known].astype(np.float64), truth[known]
    share = float(salient.mean())
    if share == 0.0:
        return 1.0 - float(values.mean())
    if share == 1.0:
        return float(values.mean())
    object_aware = share * _object_score(values[salient]) + (1 - share) * _object_score(1.0 - values[~salient])
    return max(0.0, S_ALPHA * object_aware + (1 - S_ALPHA) * _region_score(prediction, truth, known))


def _check(prediction: npt.NDArray[np.floating], truth: _Bools, known: _Bools | None) -> None:
    shapes = {prediction.shape, truth.shape} | (set() if known is None else {known.shape})
    if len(shapes) > 1:
        raise ValueError(f"prediction, truth and mask of known pixels must have one shape, got {sorted(shapes)}")
    if known is not None and not known.any():
        raise ValueError("no pixel is known; leave the image out")
    # Written so that NaN fails as well.
    if not (prediction.min() >= 0 and prediction.max() <= 1):
        raise ValueError(
            f"saliency must lie in [0, 1], got {prediction.min()} to {prediction.max()}; does the model return logits?"
        )


def _counts_above_thresholds(values: _Floats, salient: _Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Salient and other pixels at or above each threshold, (256,) each: true positives and false alarms."""
    levels = (values * (NUM_THRESHOLDS - 1)).astype(np.uint8)  # truncated, as the published scores are
    # Counts from the highest threshold down: the reversed cumulative histogram of 256 levels.
    hits, false_alarms = (
        np.bincount(levels[mask], minlength=NUM_THRESHOLDS)[::-1].cumsum()[::-1] for mask in (salient, ~salient)
    )
    return hits, false_alarms


def _precision_recall(
    hits: npt.NDArray[np.int64], false_alarms: npt.NDArray[np.int64], num_salient: int
) -> tuple[_Floats, _Floats]:
    return hits / np.maximum(hits + false_alarms, 1), hits / max(num_salient, 1)


def _e_measure(
    hits: npt.NDArray[np.int64], false_alarms: npt.NDArray[np.int64], num_salient: int, num_pixels: int
) -> _Floats:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018) of binary maps, from their counts; in [0, 1].

    The alignment of a pixel, 2 p g / (p^2 + g^2) of both maps minus their means, has four values: one for each pair
    of predicted and true label. The sum over pixels is divided by their number less one as the authors do, whence a
    perfect map would exceed 1; it is limited to 1.
    """
    predicted = (hits + false_alarms) / num_pixels
    share = num_salient / num_pixels
    if num_salient in (0, num_pixels):
        total = num_pixels * (1 - predicted if num_salient == 0 else predicted)
    else:
        total = np.zeros(hits.shape)
        num_others = num_pixels - num_salient
        for label, truth, count in (
            (1, 1, hits),
            (1, 0, false_alarms),
            (0, 1, num_salient - hits),
            (0, 0, num_others - false_alarms),
        ):
            # Both maps minus their means: the alignment sees contrast, not brightness.
            p, g = label - predicted, truth - share
            total += count * (2 * p * g / (p**2 + g**2 + _EPS) + 1) ** 2 / 4
    return np.minimum(total / max(num_pixels - 1, 1), 1.0)


def _object_score(values: _Floats) -> float:
    """Nearness of the values to a constant 1: 2 m / (m^2 + 1 + standard deviation)."""
    mean = float(values.mean())
    # Sample variance, as published (MATLAB's std).
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + _EPS)


def _region_score(prediction: npt.NDArray[np.floating], truth: _Bools, known: _Bools) -> float:
    """Similarity in the four quadrants around the truth's centre of gravity, weighted by their known pixels."""
    row, column = (int(where.mean().round()) + 1 for where in np.nonzero(truth & known))
    score = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            counted = known[rows, columns]
            values, salient = prediction[rows, columns][counted], truth[rows, columns][counted]
            if values.size:
                score += values.size * _similarity(values.astype(np.float64), salient.astype(np.float64))
    return score / int(known.sum())


def _similarity(x: _Floats, y: _Floats) -> float:
    """Structural similarity of two samples: 4 mx my cov(x, y) / ((mx^2 + my^2) (var x + var y))."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    dx, dy = x - mean_x, y - mean_y
    divisor = max(x.size - 1, 1)
    above = 4 * mean_x * mean_y * float(dx @ dy) / divisor
    below = (mean_x**2 + mean_y**2) * float(dx @ dx + dy @ dy) / divisor
    if above != 0:
        return above / (below + _EPS)
    return 1.0 if below == 0 else 0.0
