# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix of segments against pixel loops, against panoptic quality, and by hand."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic_confusion import PanopticConfusion, confusion_results
from padding.evaluation.panoptic_quality import PanopticQuality

K = 5
Scene = tuple[np.ndarray, list[dict[str, Any]]]


def slow_confusion(pred: Scene, truth: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment by segment with boolean masks, in the words of the definition."""
    (pred_map, pred_segments), (gt_map, gt_segments) = pred, truth
    matrix, missed, false_alarms = np.zeros((K, K), int), np.zeros(K, int), np.zeros(K, int)
    void = gt_map == 0
    found = set()
    for gt in gt_segments:
        if gt["iscrowd"]:
            continue
        mask = gt_map == gt["id"]
        partner = None
        for candidate in pred_segments:
            other = (pred_map == candidate["id"]) & ~void
            if (mask & other).sum() / (mask | other).sum() > 0.5:
                partner = candidate
        if partner is None:
            missed[gt["category_id"]] += 1
        else:
            matrix[gt["category_id"], partner["category_id"]] += 1
            found.add(partner["id"])
    for candidate in pred_segments:
        mask = pred_map == candidate["id"]
        crowds = [s for s in gt_segments if s["iscrowd"] and s["category_id"] == candidate["category_id"]]
        forgiven = void | (gt_map == crowds[-1]["id"] if crowds else np.zeros_like(void))
        if candidate["id"] not in found and (mask & forgiven).sum() / mask.sum() <= 0.5:
            false_alarms[candidate["category_id"]] += 1
    return matrix, missed, false_alarms


def test_equals_pixel_loops_and_panoptic_quality(
    random_scene: Callable[..., Scene], as_prediction: Callable[..., Scene]
) -> None:
    rng = np.random.default_rng(1)
    total = PanopticConfusion(K)
    quality = PanopticQuality(K)
    expected = [np.zeros((K, K), int), np.zeros(K, int), np.zeros(K, int)]
    for _ in range(40):
        gt_map, gt_segments = random_scene(rng, segments=9)
        pred = as_prediction(*random_scene(rng, crowds=0) if rng.random() < 0.2 else (gt_map, gt_segments), rng)
        one = PanopticConfusion(K)
        one.update(*pred, gt_map, gt_segments)
        total.merge(one)
        quality.update(*pred, gt_map, gt_segments)
        for sums, part in zip(expected, slow_confusion(pred, (gt_map, gt_segments)), strict=True):
            sums += part
    np.testing.assert_array_equal(total.matrix, expected[0])
    np.testing.assert_array_equal(total.missed, expected[1])
    np.testing.assert_array_equal(total.false_alarms, expected[2])
    assert np.diag(total.matrix).sum() > 50
    assert (total.matrix.sum() - np.trace(total.matrix)) > 20
    assert total.missed.sum() > 20
    assert total.false_alarms.sum() > 20
    # The same arithmetic as PQ: the diagonal is TP, the rest of a row FN.
    np.testing.assert_array_equal(np.diag(total.matrix), quality.tp)
    np.testing.assert_array_equal(total.matrix.sum(axis=1) - quality.tp + total.missed, quality.fn)


def hand_made() -> PanopticConfusion:
    """A cat taken for a zebra, a zebra taken for a cat, two dogs found, one road missed, one sea invented."""
    gt = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5]])
    pred = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 0, 6]])
    gt_class, pred_class = {1: 0, 2: 2, 3: 1, 4: 1, 5: 3}, {1: 2, 2: 0, 3: 1, 4: 1, 6: 4}
    confusion = PanopticConfusion(K)
    confusion.update(
        pred,
        [{"id": i, "category_id": c} for i, c in pred_class.items()],
        gt,
        [{"id": i, "category_id": c, "iscrowd": 0} for i, c in gt_class.items()],
    )
    return confusion


def groups() -> ClassGroups:
    return ClassGroups(
        ("cat", "dog", "zebra", "road", "sea"), (0, 1, 3), (2, 4), frozenset({0, 1, 2}), (1, 2, 3, 11, 12)
    )


def test_hand_made_scene() -> None:
    """The IoU of road and the invented sea is exactly 1/2, which is no match."""
    confusion = hand_made()
    assert confusion.matrix[0, 2] == confusion.matrix[2, 0] == 1
    assert confusion.matrix[1, 1] == 2
    assert confusion.matrix.sum() == 4
    assert confusion.missed.tolist() == [0, 0, 0, 1, 0]
    assert confusion.false_alarms.tolist() == [0, 0, 0, 0, 1]


def test_results_name_the_thief() -> None:
    results = confusion_results(hand_made(), groups())
    assert json.loads(json.dumps(results)) == results
    assert results["thefts"] == [
        {"truth": "cat", "predicted": "zebra", "segments": 1, "share": 1.0},
        {"truth": "zebra", "predicted": "cat", "segments": 1, "share": 1.0},
    ]
    assert results["unseen"] == ["zebra", "sea"]
    assert results["by_group"] == {
        "seen": {"correct": 2, "to_seen": 0, "to_unseen": 1, "missed": 1},
        "unseen": {"correct": 0, "to_seen": 1, "to_unseen": 0, "missed": 0},
    }


def test_thefts_come_most_frequent_first_with_the_share_of_the_true_class() -> None:
    confusion = PanopticConfusion(K)
    confusion.matrix[0, 1], confusion.matrix[2, 0], confusion.matrix[2, 2] = 1, 3, 4
    confusion.missed[2] = 5
    first, second = confusion_results(confusion, groups())["thefts"]
    assert (first["truth"], first["predicted"], first["segments"], first["share"]) == ("zebra", "cat", 3, 0.25)
    assert second["truth"] == "cat"


def test_what_does_not_fit_is_refused() -> None:
    confusion = PanopticConfusion(K)
    with pytest.raises(ValueError, match=r"shape \(1, 2\), ground truth \(1, 3\)"):
        confusion.update(np.zeros((1, 2), int), [], np.zeros((1, 3), int), [])
    with pytest.raises(ValueError, match="category_id"):
        confusion.update(np.ones((1, 2), int), [{"id": 1, "category_id": K}], np.zeros((1, 2), int), [])
    with pytest.raises(ValueError, match="cannot merge 3 classes into 5"):
        confusion.merge(PanopticConfusion(3))
