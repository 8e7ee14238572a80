# SPDX-License-Identifier: Apache-2.0
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic_quality import PanopticQuality
from padding.study.curve import (
    GAMMAS,
    SeenUnseenCurve,
    area_under_curve,
    best_harmonic_mean,
    draw_curve,
    sweep_results,
)
from tests.panoptic_reference import sweep_panoptic

# Class 0 seen, class 1 unseen; no-object is column 2.
GROUPS = ClassGroups(("seen", "unseen"), (0,), (1,), frozenset({0, 1}), (1, 2))


class TwoSegmentTruth:
    """Every image: left half class 0, right half class 1."""

    groups = GROUPS
    image_ids: tuple[int, ...] = (10, 20, 30, 40)

    def read(self, image_id: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        return np.array([[5, 5, 6, 6]]), [
            {"id": 5, "category_id": 0, "iscrowd": 0},
            {"id": 6, "category_id": 1, "iscrowd": 0},
        ]


def prediction(image_id: int, lead: float) -> Any:
    """Two perfect masks; the seen class leads by ``lead`` on the unseen segment, and by 6 on the seen one."""
    masks = torch.tensor([[[9.0, 9.0, -9.0, -9.0]], [[-9.0, -9.0, 9.0, 9.0]]])
    return {"class_logits": torch.tensor([[6.0, 0.0, -4], [lead, 0.0, -4]]), "mask_logits": masks, "image_id": image_id}


def postprocess_at(gamma: float) -> Callable[[Any], Any]:
    def run(raw: Any) -> tuple[torch.Tensor, list[dict[str, int]]]:
        logits = raw["class_logits"].clone()
        logits[:, 0] -= gamma
        assert torch.isfinite(logits.softmax(-1)).all()
        classes = logits.argmax(-1)
        kept = [q for q in range(2) if classes[q] < 2]
        id_map = torch.zeros(raw["mask_logits"].shape[1:], dtype=torch.int32)
        for q in kept:
            id_map[raw["mask_logits"][q] > 0] = q + 1
        return id_map, [{"id": q + 1, "category_id": int(classes[q])} for q in kept]

    return run


def test_gammas_are_the_agreed_ones() -> None:
    assert GAMMAS[1:-1] == tuple(np.arange(-10, 10.5, 0.5))
    assert len(GAMMAS) == 43
    ends = torch.tensor([50.0, -50.0, 0.0]) - torch.tensor(GAMMAS[-1]) * torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(ends.softmax(-1)[0], torch.tensor(0.0), rtol=0, atol=0)


def test_area_of_simple_curves() -> None:
    assert area_under_curve([50, 50, 0], [0, 40, 40]) == pytest.approx(0.5 * 0.4)  # a rectangle
    assert area_under_curve([60, 0], [0, 30]) == pytest.approx(0.6 * 0.3 / 2)  # a triangle
    assert area_under_curve([100, 100, 0], [0, 100, 100]) == pytest.approx(1.0)


def test_detour_gains_nothing() -> None:
    """Seen first rises from 30 to 60 at unseen 0, then falls: the area is that of the falling part."""
    assert area_under_curve([30, 60, 0], [0, 0, 30]) == pytest.approx(0.09)
    assert area_under_curve([60, 40, 50, 0], [0, 20, 20, 20]) == pytest.approx(
        area_under_curve([60, 40], [0, 20]) - 0.1 * 0.2 + 0.5 * 0.2
    )


def test_area_needs_two_points() -> None:
    with pytest.raises(ValueError, match="two or more points"):
        area_under_curve([50], [10])
    with pytest.raises(ValueError, match="2 seen and 1 unseen"):
        area_under_curve([50, 0], [10])


def test_gamma_is_chosen_on_a_and_reported_on_b() -> None:
    half_a = SeenUnseenCurve((-1.0, 0.0, 1.0), (60, 50, 40), (10, 20, 40))
    half_b = SeenUnseenCurve((-1.0, 0.0, 1.0), (60, 50, 10), (60, 50, 10))
    best = best_harmonic_mean(half_a, half_b)
    assert (best.gamma, best.seen, best.unseen) == (1.0, 10, 10)
    assert best.hm == pytest.approx(10.0)  # although B's own best would be 60
    assert best.hm_chosen_on == pytest.approx(40.0)


def test_equal_gammas_give_the_smallest() -> None:
    curve = SeenUnseenCurve((-2.0, -0.5, 1.0), (30, 30, 30), (30, 30, 30))
    assert best_harmonic_mean(curve, curve).gamma == -0.5


def test_halves_without_a_group_give_nan() -> None:
    curve = SeenUnseenCurve((0.0, 1.0), (30, 20), (math.nan, math.nan))
    assert math.isnan(best_harmonic_mean(curve, curve).hm)
    with pytest.raises(ValueError, match="different gammas"):
        best_harmonic_mean(curve, SeenUnseenCurve((0.0, 2.0), (30, 20), (1, 1)))


def test_sweep_of_two_segments() -> None:
    """Unseen is found once gamma passes the lead (2), seen is lost once it passes 6: between them both are perfect."""
    predictions = [prediction(image_id, 2.0) for image_id in (40, 10, 30, 20)]
    results = sweep_results(sweep_panoptic(predictions, postprocess_at, TwoSegmentTruth()), GROUPS)
    curve = {point["gamma"]: (point["seen"], point["unseen"]) for point in results["curve"]}
    assert curve[3.0] == (100.0, 100.0)
    assert curve[-10.0][1] == curve[GAMMAS[0]][1] == 0.0
    assert curve[10.0][0] == curve[GAMMAS[-1]][0] == 0.0
    # With every label seen, class 0 has one match and one false alarm per image: PQ = 1 / 1.5.
    assert curve[0.0][0] == pytest.approx(200 / 3)
    assert results["best_hm"] == results["best_hm_on_a"] == 100.0
    assert 2 < results["best_hm_gamma"] <= 6
    json.dumps(results, allow_nan=False)


def test_halves_follow_the_sorted_ids_not_the_order_of_arrival() -> None:
    """Images 10 and 30 (half A) have lead 2, the others 4: the best gamma of A is too small for B."""
    leads = {10: 2.0, 20: 4.0, 30: 2.0, 40: 4.0}
    for order in ((10, 20, 30, 40), (40, 30, 20, 10)):
        sweep = sweep_panoptic([prediction(i, leads[i]) for i in order], postprocess_at, TwoSegmentTruth())
        assert [quality.num_images for quality in sweep.half_a] == [2] * len(GAMMAS)
        results = sweep_results(sweep, GROUPS)
        assert results["best_hm_gamma"] == 2.5
        assert (results["best_hm_on_a"], results["best_hm_unseen"]) == (100.0, 0.0)


def test_whole_sweep_equals_one_accumulator() -> None:
    predictions = [prediction(i, float(lead)) for i, lead in zip((10, 20, 30, 40), (1, 3, 5, 7), strict=True)]
    truth, gammas = TwoSegmentTruth(), (0.0, 4.0)
    sweep = sweep_panoptic(predictions, postprocess_at, truth, gammas)
    for index, gamma in enumerate(gammas):
        quality = PanopticQuality(2)
        for raw in predictions:
            id_map, segments = postprocess_at(gamma)(raw)
            quality.update(id_map.numpy(), segments, *truth.read(raw["image_id"]))
        np.testing.assert_array_equal(sweep.scores("all")[index].pq, quality.compute().pq)


def test_figure_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "curve.png"
    draw_curve(path, {"ours": [(60, 0), (50, 20), (0, 30)], "one point": [(55.0, 3.0)]})
    image = np.asarray(Image.open(path).convert("RGB"))
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
