# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from padding.data.files import save_panoptic_png
from padding.evaluation.panoptic_quality import PanopticQuality

K = 5


def row(*runs: tuple[int, int]) -> np.ndarray:
    """One-line id map from (id, length) runs."""
    return np.concatenate([np.full(length, value) for value, length in runs])[None]


def segment(segment_id: int, category_id: int, iscrowd: int = 0) -> dict[str, int]:
    return {"id": segment_id, "category_id": category_id, "iscrowd": iscrowd}


def counts(quality: PanopticQuality, class_id: int) -> tuple[int, int, int]:
    return int(quality.tp[class_id]), int(quality.fp[class_id]), int(quality.fn[class_id])


def test_perfect_prediction_scores_one(random_scene: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    quality = PanopticQuality(K)
    for _ in range(5):
        gt_map, gt = random_scene(rng, crowds=0)
        quality.update(gt_map, gt, gt_map, gt)
    scores = quality.compute()
    assert scores.present.all()
    for values in (scores.pq, scores.sq, scores.rq):
        np.testing.assert_array_equal(values, 1.0)


def test_all_wrong_scores_zero(random_scene: Callable[..., Any]) -> None:
    gt_map, gt = random_scene(np.random.default_rng(0), crowds=0)
    quality = PanopticQuality(K)
    quality.update(gt_map, [{**s, "category_id": (s["category_id"] + 1) % K} for s in gt], gt_map, gt)
    assert quality.tp.sum() == 0
    assert quality.fn.sum() == len(gt)
    assert (quality.compute().pq == 0).all()


def test_empty_prediction_misses_everything_but_crowd() -> None:
    gt = [segment(7, 0), segment(8, 1, iscrowd=1), segment(9, 2)]
    quality = PanopticQuality(K)
    quality.update(np.zeros((1, 9), int), [], row((7, 3), (8, 3), (9, 3)), gt)
    assert [counts(quality, c) for c in range(3)] == [(0, 0, 1), (0, 0, 0), (0, 0, 1)]
    np.testing.assert_array_equal(quality.compute().present, [True, False, True, False, False])


def test_hand_computed_quality() -> None:
    # Class 0: truth 10 px and prediction 8 px share 8, IoU 0.8. Class 1: one miss and one false alarm.
    quality = PanopticQuality(K)
    quality.update(
        row((1, 8), (0, 2), (2, 4), (0, 6)),
        [segment(1, 0), segment(2, 1)],
        row((5, 10), (6, 4), (7, 6)),
        [segment(5, 0), segment(6, 2), segment(7, 1)],
    )
    scores = quality.compute()
    assert scores.pq[0] == scores.sq[0] == 0.8
    assert scores.rq[0] == 1.0
    assert counts(quality, 1) == (0, 1, 1)
    assert counts(quality, 2) == (0, 0, 1)
    assert scores.pq[1] == scores.sq[1] == 0.0


def test_iou_of_exactly_one_half_is_no_match() -> None:
    quality = PanopticQuality(K)
    quality.update(row((1, 2), (0, 2)), [segment(1, 0)], row((3, 4)), [segment(3, 0)])
    assert counts(quality, 0) == (0, 1, 1)


def test_union_leaves_out_void() -> None:
    # 6 of the prediction's 12 px lie on void: IoU = 6 / (12 + 6 - 6 - 6) = 1, not 6 / 12.
    quality = PanopticQuality(K)
    quality.update(row((1, 12)), [segment(1, 0)], row((3, 6), (0, 6)), [segment(3, 0)])
    assert quality.compute().pq[0] == 1.0


@pytest.mark.parametrize(("void_px", "false_alarms"), [(6, 0), (5, 1)])
def test_false_alarm_is_forgiven_only_above_half_on_void(void_px: int, false_alarms: int) -> None:
    quality = PanopticQuality(K)
    quality.update(row((1, 10)), [segment(1, 0)], row((0, void_px), (3, 10 - void_px)), [segment(3, 1)])
    assert counts(quality, 0) == (0, false_alarms, 0)


@pytest.mark.parametrize(("category", "false_alarms"), [(0, 0), (1, 1)])
def test_crowd_forgives_its_own_category_only(category: int, false_alarms: int) -> None:
    # 3 px void + 3 px crowd of class 0 together exceed half of the 10 predicted px.
    gt_map, gt = row((0, 3), (3, 3), (4, 4)), [segment(3, 0, iscrowd=1), segment(4, 2)]
    quality = PanopticQuality(K)
    quality.update(row((1, 10)), [segment(1, category)], gt_map, gt)
    assert counts(quality, category) == (0, false_alarms, 0)


def test_crowd_is_never_matched() -> None:
    quality = PanopticQuality(K)
    quality.update(row((1, 10)), [segment(1, 0)], row((3, 10)), [segment(3, 0, iscrowd=1)])
    assert counts(quality, 0) == (0, 0, 0)


@pytest.mark.parametrize("area", [0, 1, 10, -5, 10**9])
def test_area_of_the_json_is_not_believed(area: int) -> None:
    # 8 shared px of 8 and 8: IoU 1, whatever the truth's area is said to be (panopticapi: 8 / area).
    quality = PanopticQuality(K)
    quality.update(row((1, 8)), [segment(1, 0)], row((3, 8)), [{**segment(3, 0), "area": area}])
    assert quality.compute().sq[0] == quality.compute().pq[0] == 1.0


def test_merge_equals_one_accumulator(random_scene: Callable[..., Any], as_prediction: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    whole, parts = PanopticQuality(K), [PanopticQuality(K), PanopticQuality(K)]
    for index in range(6):
        gt_map, gt = random_scene(rng)
        pred_map, pred = as_prediction(gt_map, gt, rng)
        for quality in (whole, parts[index % 2]):
            quality.update(pred_map, pred, gt_map, gt)
    merged = parts[0].merge(parts[1])
    assert merged.num_images == 6
    np.testing.assert_array_equal(merged.tp, whole.tp)
    np.testing.assert_allclose(merged.compute().pq, whole.compute().pq, rtol=1e-12)


def test_many_segments_and_large_ids_need_the_wide_packing() -> None:
    """300 predictions do not fit eight bits; a perfect prediction must still be perfect."""
    id_map = np.arange(1, 301).reshape(15, 20).repeat(2, axis=0)
    segments = [segment(i, i % K) for i in range(1, 301)]
    quality = PanopticQuality(K)
    quality.update(id_map, segments, id_map + 2**30, [{**s, "id": s["id"] + 2**30} for s in segments])
    assert quality.tp.sum() == 300
    assert (quality.compute().pq == 1).all()


@pytest.mark.reference
@pytest.mark.parametrize("seed", range(12))
def test_equals_panopticapi(
    seed: int, tmp_path: Path, random_scene: Callable[..., Any], as_prediction: Callable[..., Any]
) -> None:
    """Counts equal, summed IoU to rounding, with void, crowds, absent classes and forgiven false alarms."""
    from panopticapi.evaluation import pq_compute_single_core

    rng = np.random.default_rng(seed)
    ours, pairs = PanopticQuality(K), []
    for index in range(6):
        gt_map, gt = random_scene(rng, num_classes=K - seed % 2, segments=int(rng.integers(3, 12)))
        pred_map, pred = as_prediction(gt_map, gt, rng)
        pred = [s for s in pred if (pred_map == s["id"]).any() and rng.random() < 0.9]
        pred_map[~np.isin(pred_map, [s["id"] for s in pred])] = 0
        ours.update(pred_map, pred, gt_map, gt)
        save_panoptic_png(gt_map, tmp_path / f"gt{index}.png")
        save_panoptic_png(pred_map, tmp_path / f"pred{index}.png")
        sides = (("gt", gt), ("pred", pred))
        pairs.append(tuple({"image_id": index, "file_name": f"{n}{index}.png", "segments_info": s} for n, s in sides))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute_single_core(0, pairs, str(tmp_path), str(tmp_path), dict.fromkeys(range(K)))
    expected = [(theirs[c].tp, theirs[c].fp, theirs[c].fn) for c in range(K)]
    assert [counts(ours, c) for c in range(K)] == expected
    np.testing.assert_allclose(ours.iou, [theirs[c].iou for c in range(K)], rtol=1e-12)
    assert ours.tp.sum() > 0
    _, per_class = theirs.pq_average({c: {"isthing": 1} for c in range(K)}, isthing=None)
    scores = ours.compute()
    for ours_values, key in ((scores.pq, "pq"), (scores.sq, "sq"), (scores.rq, "rq")):
        np.testing.assert_allclose(ours_values, [per_class[c][key] for c in range(K)], rtol=1e-12)


@pytest.mark.parametrize(
    ("pred_map", "pred", "gt", "message"),
    [
        (row((1, 4)), [], [segment(3, 0)], r"prediction: the id map holds ids \[1\] that its segment list lacks"),
        (row((1, 4)), [segment(1, 0)], [], r"ground truth: the id map holds ids \[3\]"),
        (row((1, 4)), [segment(1, 0), segment(2, 0)], [segment(3, 0)], r"segments \[2\] have no pixel"),
        (row((1, 4)), [segment(1, 5)], [segment(3, 0)], r"prediction: segments \[1\] have category_id \[5\]"),
        (row((1, 3)), [segment(1, 0)], [segment(3, 0)], r"shape \(1, 3\), ground truth \(1, 4\)"),
        (row((-1, 4)), [segment(1, 0)], [segment(3, 0)], "negative ids"),
        (row((1, 4)), [segment(1, 0), segment(1, 0)], [segment(3, 0)], "must be unique"),
    ],
)
def test_inconsistent_input_is_an_error(pred_map: np.ndarray, pred: list, gt: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PanopticQuality(K).update(pred_map, pred, row((3, 4)), gt)


def test_merge_refuses_other_classes() -> None:
    with pytest.raises(ValueError, match="cannot merge 3 classes into 5"):
        PanopticQuality(K).merge(PanopticQuality(3))
