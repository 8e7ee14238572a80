# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality of cached predictions at many settings of gamma and object-mask threshold, in one pass.

Equal to post-processing and counting each setting by itself, and several times faster:
masks, ground truth and class probabilities of an image are prepared once, and quality is counted from the table
(true segments x queries) without drawing an id map.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from padding.evaluation.panoptic_quality import PanopticQuality, segment_columns, segment_positions
from padding.modeling.inference import apply_seen_bias, assign_segments
from padding.study.curve import AccumulatedSweep, GroundTruth, RawPrediction, half_of_images

_MASK_PROBABILITY = 0.5


class Setting(NamedTuple):
    """Of the panoptic merge: gamma, subtracted from seen logits, and the probability that makes a query a segment."""

    gamma: float
    threshold: float


@dataclass(frozen=True)
class _Truth:
    """Ground truth of one image of P pixels and G segments."""

    position: npt.NDArray[np.int64]  # (P,) index of the segment plus one, 0 for void
    classes: npt.NDArray[np.int64]  # (G,)
    crowd: npt.NDArray[np.bool_]  # (G,)

    @classmethod
    def read(cls, truth: GroundTruth, image_id: Any) -> "_Truth":
        gt_map, segments = truth.read(image_id)
        ids, classes = segment_columns(segments, truth.groups.num_classes, "ground truth")
        position = segment_positions(gt_map.ravel().astype(np.int64), ids, "ground truth")
        crowd = [bool(segment.get("iscrowd", 0)) for segment in segments]
        return cls(position, classes, np.array(crowd, dtype=bool))


@dataclass(frozen=True)
class _Masks:
    """Masks of one image of P pixels and Q queries."""

    probability: npt.NDArray[np.float32]  # (Q, P)
    solid: npt.NDArray[np.bool_]  # (Q, P)
    areas: npt.NDArray[np.int64]  # (Q,) of the solid part

    @classmethod
    def of(cls, raw: RawPrediction) -> "_Masks":
        probability = raw["mask_logits"].float().sigmoid().flatten(1).numpy()
        solid = probability >= _MASK_PROBABILITY
        return cls(probability, solid, solid.sum(axis=1))


def sweep_settings(
    predictions: Iterable[RawPrediction],
    truth: GroundTruth,
    settings: Sequence[Setting],
    *,
    thing_ids: frozenset[int],
    overlap_threshold: float,
) -> AccumulatedSweep:
    """Panoptic quality at every setting on each half of the images (``curve.half_of_images``).

    Args:
        predictions: each image once; no-object is the last logit.
        truth: ground truth of these images, and which classes are seen.
        settings: any number.
        thing_ids: ids of countable classes.
        overlap_threshold: see ``inference.panoptic_inference``.

    Returns:
        Accumulators in the order of ``settings``; ``gammas`` are those of the settings.
    """
    groups = truth.groups
    halves = [[PanopticQuality(groups.num_classes) for _ in settings] for _ in range(2)]
    half_of = half_of_images(truth.image_ids)
    for raw in predictions:
        gt = _Truth.read(truth, raw["image_id"])
        counts = _counts(raw, gt, groups.seen_ids, settings, thing_ids, overlap_threshold)
        for quality, (overlap, pred_class) in zip(halves[half_of[raw["image_id"]]], counts, strict=True):
            quality.update_overlap(overlap, pred_class, gt.classes, gt.crowd)
    return AccumulatedSweep(tuple(setting.gamma for setting in settings), *halves)


def _counts(
    raw: RawPrediction,
    gt: _Truth,
    seen_ids: Sequence[int],
    settings: Sequence[Setting],
    thing_ids: frozenset[int],
    overlap_threshold: float,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Overlap table (G+1, N+1) and classes (N,) of the predicted segments at each setting."""
    if not settings:
        return
    # As ``inference.panoptic_inference``, but masks are squashed and compared once for all settings.
    masks = _Masks.of(raw)
    num_classes = raw["class_logits"].shape[-1] - 1
    gammas = sorted({setting.gamma for setting in settings})
    logits = torch.stack([apply_seen_bias(raw["class_logits"].float(), seen_ids, gamma) for gamma in gammas])
    best = logits.softmax(dim=-1).max(dim=-1)
    at = {gamma: (best.values[i].numpy(), best.indices[i].numpy()) for i, gamma in enumerate(gammas)}
    # Neighbouring thresholds mostly let the same queries through.
    known: dict[tuple[float, bytes], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
    for gamma, threshold in settings:
        scores, labels = at[gamma]
        kept = np.flatnonzero((labels != num_classes) & (scores > threshold))
        key = (gamma, kept.tobytes())
        if key not in known:
            known[key] = _count(masks, gt, kept, scores[kept], labels[kept], thing_ids, overlap_threshold)
        yield known[key]


def _count(
    masks: _Masks,
    gt: _Truth,
    kept: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    thing_ids: frozenset[int],
    overlap_threshold: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Overlap table and classes of the segments that the queries ``kept`` make."""
    num_true, num_kept = len(gt.classes) + 1, len(kept)
    if num_kept == 0:
        return np.bincount(gt.position, minlength=num_true)[:, None], np.zeros(0, dtype=np.int64)
    winner, inside = _winners(masks, kept, scores)
    # One number per pixel, (segment * M + query) * 2 + inside, counted once: (G+1, M, 2).
    pairs = (gt.position * num_kept + winner) * 2 + inside
    pixels = np.bincount(pairs, minlength=num_true * num_kept * 2).reshape(num_true, num_kept, 2)
    won, shown = pixels.sum(axis=(0, 2)), pixels[:, :, 1].sum(axis=0)
    rows = [list(row) for row in zip(labels, scores, masks.areas[kept], won, shown, strict=True)]
    ids, segments = assign_segments(rows, thing_ids, overlap_threshold)
    # Merged stuff adds up in one column; what lost its segment is unlabelled, column 0.
    overlap = np.zeros((num_true, len(segments) + 1), dtype=np.int64)
    for query, segment_id in enumerate(ids):
        overlap[:, segment_id] += pixels[:, query, 1]
    overlap[:, 0] = pixels.sum(axis=(1, 2)) - overlap[:, 1:].sum(axis=1)
    return overlap, np.array([segment["category_id"] for segment in segments], dtype=np.int64)


def _winners(
    masks: _Masks, kept: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Which of the M queries has the largest score x probability at each pixel (P,), and whether its mask is solid."""
    # Running maximum over the M queries: no (M, P) product of scores is stored.
    largest = scores[0] * masks.probability[kept[0]]
    winner = np.zeros(len(largest), dtype=np.int64)
    inside = masks.solid[kept[0]].copy()
    for i, query in enumerate(kept[1:], start=1):
        value = scores[i] * masks.probability[query]
        better = value > largest
        np.copyto(largest, value, where=better)
        np.copyto(winner, i, where=better)
        np.copyto(inside, masks.solid[query], where=better)
    return winner, inside
