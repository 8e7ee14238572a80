# SPDX-License-Identifier: Apache-2.0
"""Tests of the post-processing: published values, a slow and obvious panoptic merge, hand-made cases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from torch import Tensor

from padding.modeling.inference import (
    apply_seen_bias,
    boxes_of_masks,
    instance_inference,
    instance_queries,
    keep_classes,
    panoptic_inference,
    panoptic_queries,
    semantic_classes,
    semantic_inference,
    widen_logits,
)
from padding.modeling.postprocessing import InferenceOptions, predict_image


def class_logits(labels: list[int], num_classes: int, value: float = 8.0) -> Tensor:
    logits = torch.zeros(len(labels), num_classes + 1)
    logits[torch.arange(len(labels)), torch.tensor(labels, dtype=torch.int64)] = value
    return logits


def slow_panoptic(
    logits: Tensor, masks: Tensor, thing_ids: frozenset[int], score_threshold: float, overlap: float
) -> tuple[Tensor, list[tuple[int, bool, int]]]:
    """Pixel by pixel, query by query."""
    num_classes = logits.shape[1] - 1
    probs = logits.softmax(-1)
    kept = [
        q for q in range(len(logits)) if probs[q].argmax() != num_classes and float(probs[q].max()) > score_threshold
    ]
    height, width = masks.shape[1:]
    won: dict[int, list[tuple[int, int]]] = {q: [] for q in kept}
    for y in range(height):
        for x in range(width):
            values = [float(probs[q].max() * masks[q, y, x].sigmoid()) for q in kept]
            if values:
                won[kept[int(np.argmax(values))]].append((y, x))
    result = torch.zeros(height, width, dtype=torch.int32)
    segments: list[tuple[int, bool, int]] = []
    for q in kept:
        own = int((masks[q].sigmoid() >= 0.5).sum())
        shown = [(y, x) for y, x in won[q] if masks[q, y, x].sigmoid() >= 0.5]
        if not shown or len(won[q]) / own < overlap:
            continue
        label = int(probs[q].argmax())
        same = [i for i, is_thing, category in segments if category == label and not is_thing]
        if label in thing_ids or not same:
            segments.append((len(segments) + 1, label in thing_ids, label))
            same = [len(segments)]
        for y, x in shown:
            result[y, x] = same[0]
    return result, segments


@pytest.fixture
def golden(goldens: Path) -> dict[str, Any]:
    return dict(np.load(goldens / "mask2former_inference.npz"))


def golden_inputs(golden: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(golden["mask_cls"]), torch.from_numpy(golden["mask_pred"])


def test_semantic_equals_published(golden: dict[str, Any]) -> None:
    scores = semantic_inference(*golden_inputs(golden))
    assert (scores.argmax(0).numpy() == golden["semseg_argmax"]).mean() >= 0.999
    torch.testing.assert_close(scores.sum((1, 2)), torch.from_numpy(golden["semseg_sum"]), rtol=1e-4, atol=1e-4)


def test_panoptic_equals_published(golden: dict[str, Any]) -> None:
    ids, segments = panoptic_inference(
        *golden_inputs(golden), thing_ids=frozenset(range(80)), object_mask_threshold=0.8, overlap_threshold=0.8
    )
    assert ids.dtype == torch.int32
    assert (ids.numpy() == golden["panoptic"]).mean() >= 0.999
    assert [[s["id"], int(s["isthing"]), s["category_id"]] for s in segments] == golden["segments"].tolist()


def test_instances_equal_published(golden: dict[str, Any]) -> None:
    found = instance_inference(*golden_inputs(golden), top_k=100, keep_ids=frozenset(range(80)))
    order, expected_order = found.scores.argsort().numpy(), golden["inst_scores"].argsort()
    assert len(order) == len(expected_order) == 66
    np.testing.assert_allclose(found.scores.numpy()[order], golden["inst_scores"][expected_order], rtol=1e-4)
    np.testing.assert_array_equal(found.pred_classes.numpy()[order], golden["inst_classes"][expected_order])
    areas = found.pred_masks.flatten(1).sum(1).numpy()
    np.testing.assert_array_equal(areas[order], golden["inst_area"][expected_order])


@pytest.mark.parametrize("seed", range(12))
def test_panoptic_equals_the_obvious_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(9, 5, generator=generator)
    masks = 3 * torch.nn.functional.interpolate(torch.randn(1, 9, 3, 4, generator=generator), size=(11, 13))[0]
    masks += torch.randn(9, 11, 13, generator=generator)
    thresholds = (0.3, [0.0, 0.2, 0.4][seed % 3])
    expected, expected_segments = slow_panoptic(logits, masks, frozenset({0, 1}), *thresholds)
    ids, segments = panoptic_inference(
        logits,
        masks,
        thing_ids=frozenset({0, 1}),
        object_mask_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
    )
    assert [(s["id"], s["isthing"], s["category_id"]) for s in segments] == expected_segments
    torch.testing.assert_close(ids, expected)


def panoptic(logits: Tensor, masks: Tensor, overlap: float = 0.8) -> tuple[Tensor, list[dict[str, Any]]]:
    """Classes 0 and 1 are things, 2 is stuff."""
    return panoptic_inference(
        logits, masks, thing_ids=frozenset({0, 1}), object_mask_threshold=0.5, overlap_threshold=overlap
    )


def stripes(*columns: tuple[int, int], height: int = 4, width: int = 12) -> Tensor:
    """(N, height, width) logits: +10 in the columns [start, stop), -10 elsewhere."""
    masks = torch.full((len(columns), height, width), -10.0)
    for mask, (start, stop) in zip(masks, columns, strict=True):
        mask[:, start:stop] = 10.0
    return masks


def test_stuff_of_one_class_is_one_segment_and_things_stay_apart() -> None:
    ids, segments = panoptic(class_logits([2, 0, 2, 0], 3), stripes((0, 2), (2, 4), (4, 6), (6, 8)))
    assert ids[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3, 0, 0, 0, 0]
    assert [(s["id"], s["isthing"], s["category_id"]) for s in segments] == [(1, False, 2), (2, True, 0), (3, True, 0)]
    assert all(0.9 < s["score"] <= 1 for s in segments)


def test_merged_stuff_has_the_best_score() -> None:
    logits = class_logits([2, 2], 3)
    logits[0] /= 2
    _, [segment] = panoptic(logits, stripes((0, 2), (4, 6)))
    assert segment["score"] == pytest.approx(float(logits[1].softmax(0)[2]))


def test_covered_segment_is_dropped() -> None:
    logits = class_logits([0, 1], 3)
    logits[1] *= 2  # the surer one wins the six shared columns of eight
    masks = stripes((0, 8), (2, 8))
    ids, segments = panoptic(logits, masks)
    assert ids[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [s["category_id"] for s in segments] == [1]
    ids, segments = panoptic(logits, masks, overlap=0.2)
    assert [s["category_id"] for s in segments] == [0, 1]


@pytest.mark.parametrize("labels", [[], [3, 3]])
def test_nothing_found_is_void(labels: list[int]) -> None:
    ids, segments = panoptic(class_logits(labels, 3), stripes(*[(0, 4)] * len(labels)))
    assert segments == []
    assert ids.shape == (4, 12)
    assert not ids.any()


def test_all_empty_masks_are_void() -> None:
    ids, segments = panoptic(class_logits([0, 2], 3), torch.full((2, 4, 12), -10.0))
    assert segments == []
    assert not ids.any()


def test_chosen_queries_alone_give_the_same_result() -> None:
    """What lets the post-processing enlarge only some masks."""
    logits, masks = 4 * torch.randn(20, 5), 3 * torch.randn(20, 6, 7)
    keep = panoptic_queries(logits, 0.5)
    assert 0 < len(keep) < 20
    ids, segments = panoptic(logits, masks, 0.1)
    ids_alone, segments_alone = panoptic(logits[keep], masks[keep], 0.1)
    assert segments == segments_alone
    torch.testing.assert_close(ids, ids_alone)

    keep = instance_queries(logits, top_k=10)
    assert 0 < len(keep) < 20
    for keep_ids in (None, frozenset({0, 1})):
        whole = instance_inference(logits, masks, top_k=10, keep_ids=keep_ids)
        alone = instance_inference(logits[keep], masks[keep], top_k=10, keep_ids=keep_ids)
        torch.testing.assert_close(whole.scores, alone.scores)
        torch.testing.assert_close(whole.pred_masks, alone.pred_masks)
        torch.testing.assert_close(whole.pred_classes, alone.pred_classes)


def test_semantic_is_the_weighted_sum_of_masks() -> None:
    logits, masks = torch.randn(3, 5), torch.randn(3, 2, 2)
    probs = logits.softmax(-1)
    expected = sum(probs[q, :4, None, None] * masks[q].sigmoid() for q in range(3))
    torch.testing.assert_close(semantic_inference(logits, masks), expected)


@pytest.mark.parametrize("size", [(2, 3), (100, 131)])
def test_semantic_labels_are_the_best_of_the_scores(size: tuple[int, int]) -> None:
    logits, masks = torch.randn(3, 5), torch.randn(3, *size)
    assert torch.equal(semantic_classes(logits, masks), semantic_inference(logits, masks).argmax(0))


@pytest.mark.parametrize("resize_first", [True, False])
def test_an_image_has_labels_in_place_of_scores(resize_first: bool) -> None:
    logits, masks = torch.randn(3, 5), torch.randn(3, 4, 6)
    sizes: Any = {"padded_size": (16, 24), "image_size": (14, 20), "output_size": (30, 41)}
    options = InferenceOptions(
        semantic_on=True,
        panoptic_on=True,
        instance_on=False,
        object_mask_threshold=0.1,
        overlap_threshold=0.1,
        top_k=1,
        resize_first=resize_first,
    )
    scores, labels = (
        predict_image(logits, masks, options=replace(options, semantic_labels=on), thing_ids=frozenset({0}), **sizes)
        for on in (False, True)
    )
    assert torch.equal(labels["sem_seg"], scores["sem_seg"].argmax(0))
    assert torch.equal(labels["panoptic_seg"][0], scores["panoptic_seg"][0])


def test_instances_keep_things_boxes_and_scores() -> None:
    logits, masks = class_logits([2, 0, 1], 3), stripes((0, 2), (3, 7), (0, 0))
    found = instance_inference(logits, masks, top_k=3, keep_ids=frozenset({0, 1}))
    assert sorted(found.pred_classes.tolist()) == [0, 1]
    thing = found[found.pred_classes == 0]
    assert thing.pred_boxes.tensor.tolist() == [[3, 0, 7, 4]]
    prob = float(logits[1].softmax(0)[0] * torch.tensor(10.0).sigmoid())
    assert float(thing.scores) == pytest.approx(prob, rel=1e-5)
    empty = found[found.pred_classes == 1]
    assert float(empty.scores) == 0
    assert empty.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]
    assert found.image_size == (4, 12)
    assert found.pred_masks.dtype == torch.bool


def test_one_query_under_two_classes_and_no_query_at_all() -> None:
    logits = torch.tensor([[5.0, 5.0, -5.0, -5.0]])
    found = instance_inference(logits, stripes((0, 3)), top_k=2, keep_ids=None)
    assert sorted(found.pred_classes.tolist()) == [0, 1]
    torch.testing.assert_close(found.pred_masks[0], found.pred_masks[1])
    assert len(instance_inference(logits[:0], stripes(), top_k=5, keep_ids=None)) == 0
    assert len(instance_inference(logits, stripes((0, 3)), top_k=2, keep_ids=frozenset({2}))) == 0


@pytest.mark.reference
def test_boxes_equal_detectron2() -> None:
    masks = torch.rand(20, 9, 7) > torch.linspace(0.5, 1.0, 20)[:, None, None]
    masks[3] = False
    torch.testing.assert_close(boxes_of_masks(masks), BitMasks(masks).get_bounding_boxes().tensor)
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_widening_keeps_probabilities_and_gives_none_to_others() -> None:
    logits = torch.randn(2, 3, 4)
    wide = widen_logits(logits, (4, 0, 2), 6)
    assert wide.shape == (2, 3, 7)
    probs = wide.softmax(-1)
    torch.testing.assert_close(probs[..., [4, 0, 2, 6]], logits.softmax(-1))
    assert not probs[..., [1, 3, 5]].any()


def test_widening_checks_the_number_of_ids() -> None:
    with pytest.raises(ValueError, match="2 class ids for logits of 3 classes"):
        widen_logits(torch.zeros(1, 4), (0, 1), 6)


def test_widened_logits_survive_every_inference() -> None:
    wide = widen_logits(torch.randn(5, 3), (0, 2), 4)
    masks = torch.randn(5, 4, 12)
    assert semantic_inference(wide, masks).isfinite().all()
    assert instance_inference(wide, masks, top_k=20, keep_ids=None).scores.isfinite().all()
    assert all(s["category_id"] in (0, 2) for s in panoptic(wide, masks, 0.0)[1])


def test_seen_bias_moves_seen_classes_only() -> None:
    logits = widen_logits(torch.randn(2, 3), (0, 2), 3)
    biased = apply_seen_bias(logits, (0, 2), 1.5)
    torch.testing.assert_close(biased[:, [0, 2]], logits[:, [0, 2]] - 1.5)
    torch.testing.assert_close(biased[:, 3], logits[:, 3])
    assert (biased[:, 1] == float("-inf")).all()
    torch.testing.assert_close(apply_seen_bias(logits, (0, 2), 0.0), logits)


def test_left_out_classes_become_no_object_and_the_others_keep_their_probability() -> None:
    logits = torch.randn(2, 3, 6)
    kept = keep_classes(logits, (3, 1)).softmax(-1)
    probs = logits.softmax(-1)
    torch.testing.assert_close(kept[..., [1, 3]], probs[..., [1, 3]])
    torch.testing.assert_close(kept[..., -1], probs[..., [0, 2, 4, 5]].sum(-1))
    assert not kept[..., [0, 2, 4]].any()
    torch.testing.assert_close(keep_classes(keep_classes(logits, (3, 1)), (3, 1)).softmax(-1), kept)
    everything = keep_classes(logits, range(5))
    torch.testing.assert_close(everything, logits)


def test_restriction_takes_classes_that_are_impossible_anyway() -> None:
    wide = widen_logits(torch.randn(5, 3), (0, 2), 4)
    kept = keep_classes(wide, (1, 2)).softmax(-1)
    assert kept.isfinite().all()
    assert not kept[:, [0, 1, 3]].any()
