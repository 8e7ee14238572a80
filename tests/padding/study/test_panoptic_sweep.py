# SPDX-License-Identifier: Apache-2.0
"""The fast sweep counts what post-processing and counting each setting by itself do."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from padding.evaluation.grouping import ClassGroups
from padding.modeling.inference import apply_seen_bias, panoptic_inference
from padding.study.curve import GAMMAS, RawPrediction
from padding.study.panoptic_sweep import Setting, sweep_settings
from tests.panoptic_reference import sweep_panoptic

CLASSES, SEEN, THINGS, OVERLAP = 6, (0, 2, 3, 5), frozenset({0, 1, 2}), 0.6
HEIGHT, WIDTH, QUERIES = 24, 20, 7


class RandomTruth:
    """Images of a few rectangles, with void, a crowd region and an area that is wrong."""

    groups = ClassGroups(tuple("abcdef"), SEEN, (1, 4), THINGS, tuple(range(10, 16)))

    def __init__(self, count: int) -> None:
        self.image_ids = list(range(count))

    def read(self, image_id: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        rng = np.random.default_rng(image_id)
        id_map = np.zeros((HEIGHT, WIDTH), dtype=np.uint32)
        for segment_id in (5, 90_000, 7, 12):
            top, left = rng.integers(0, HEIGHT - 6), rng.integers(0, WIDTH - 6)
            id_map[top : top + 12, left : left + 12] = segment_id
        segments = [{"id": int(i), "category_id": int(rng.integers(0, CLASSES))} for i in np.unique(id_map) if i]
        segments[0]["iscrowd"] = int(image_id % 3 == 0)
        segments[-1]["area"] = 150
        return id_map, segments


def predictions(truth: RandomTruth) -> Iterator[RawPrediction]:
    for image_id in truth.image_ids:
        generator = torch.Generator().manual_seed(image_id)
        id_map, segments = truth.read(image_id)
        masks = torch.randn(QUERIES, HEIGHT, WIDTH, generator=generator)
        logits = 1.5 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
        for query, segment in enumerate(segments):  # most queries find a segment
            masks[query] += 4.0 * torch.from_numpy((id_map == segment["id"]).astype(np.float32)) - 2.0
            logits[query, segment["category_id"]] += 4.0
        yield {"class_logits": logits, "mask_logits": masks, "image_id": image_id}


def one_by_one(truth: RandomTruth, gammas: Sequence[float], threshold: float) -> Any:
    def at(gamma: float) -> Any:
        return lambda raw: panoptic_inference(
            apply_seen_bias(raw["class_logits"], SEEN, gamma),
            raw["mask_logits"],
            thing_ids=THINGS,
            object_mask_threshold=threshold,
            overlap_threshold=OVERLAP,
        )

    return sweep_panoptic(predictions(truth), at, truth, gammas)


def fast(truth: RandomTruth, settings: Sequence[Setting]) -> Any:
    return sweep_settings(predictions(truth), truth, settings, thing_ids=THINGS, overlap_threshold=OVERLAP)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_counts_are_those_of_each_setting_by_itself(threshold: float) -> None:
    truth = RandomTruth(20)
    expected = one_by_one(truth, GAMMAS[::7], threshold)
    found = fast(truth, [Setting(gamma, threshold) for gamma in GAMMAS[::7]])
    assert found.gammas == expected.gammas
    for half in ("half_a", "half_b"):
        for mine, other in zip(getattr(found, half), getattr(expected, half), strict=True):
            np.testing.assert_array_equal(mine.iou, other.iou)
            for name in ("tp", "fp", "fn"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
            assert mine.num_images == other.num_images == 10
    matched = sum(int(quality.tp.sum()) for quality in found.half_a)
    assert (matched > 0) == (threshold < 1.0)


def test_thresholds_and_gammas_mix_in_any_order() -> None:
    truth = RandomTruth(6)
    settings = [Setting(gamma, threshold) for threshold in (0.7, 0.1) for gamma in (2.0, -1.0)]
    together = fast(truth, settings)
    for i, setting in enumerate(settings):
        alone = fast(truth, [setting])
        np.testing.assert_array_equal(together.half_a[i].iou, alone.half_a[0].iou)
        np.testing.assert_array_equal(together.half_b[i].fp, alone.half_b[0].fp)


def test_unknown_ids_in_the_ground_truth_are_an_error() -> None:
    class Damaged(RandomTruth):
        def read(self, image_id: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
            id_map, segments = super().read(image_id)
            return id_map, segments[1:]

    with pytest.raises(ValueError, match="ground truth: the id map holds ids"):
        fast(Damaged(1), [Setting(0.0, 0.5)])
