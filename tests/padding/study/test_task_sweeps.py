# SPDX-License-Identifier: Apache-2.0
"""Sweeps of semantic and instance predictions: hand-made cases, and equality with the evaluators at gamma 0."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_api

from padding.data.class_split import ClassSplit
from padding.evaluation.instance import InstanceEvaluator, InstanceGroundTruth, mask_entries
from padding.evaluation.semantic import SemanticGroundTruth, SemSegEvaluator
from padding.modeling.postprocessing import InferenceOptions
from padding.study.curve import GAMMAS, sweep_results
from padding.study.seen_bias import QueryPrediction, Sizes, label_map_with_bias
from padding.study.task_sweeps import (
    ConfusionAccumulator,
    InstanceSweep,
    MaskGrid,
    QueryMasks,
    sweep_masks,
    sweep_semantic,
)

SPLIT = ClassSplit(("dog", "zebra"), (True, True), (5, 9), frozenset({"zebra"}))
SIZE = (8, 12)


def left_and_right() -> np.ndarray:
    """(2, h, w) bool: the left and the right half."""
    left = np.zeros(SIZE, bool)
    left[:, :6] = True
    return np.stack([left, ~left])


@pytest.fixture
def semantic_truth(tmp_path: Path, register: Any) -> SemanticGroundTruth:
    """Four images, dog on the left, zebra on the right."""
    Image.fromarray(left_and_right()[1].astype(np.uint8)).save(tmp_path / "labels.png")
    records = [
        {"file_name": f"{i}.jpg", "image_id": i, "sem_seg_file_name": str(tmp_path / "labels.png")}
        for i in (40, 10, 30, 20)
    ]
    return SemanticGroundTruth.of_dataset(register("two_halves", records, class_split=SPLIT, ignore_label=255))


def label_map_at(gamma: float) -> Any:
    """The seen class leads by the image's ``lead`` on the right half and by 6 on the left."""

    def run(lead: float) -> np.ndarray:
        scores = np.where(left_and_right()[0], 6.0, lead) - gamma
        return np.where(scores >= 0, 0, 1)

    return run


def test_semantic_sweep_of_two_halves(semantic_truth: SemanticGroundTruth) -> None:
    leads = [(image_id, 2.0) for image_id in (40, 10, 30, 20)]
    results = sweep_results(sweep_semantic(leads, label_map_at, semantic_truth), semantic_truth.groups, "iou")
    curve = {point["gamma"]: (point["seen"], point["unseen"]) for point in results["curve"]}
    assert curve[0.0] == (50.0, 0.0)  # everything is called dog
    assert curve[4.0] == (100.0, 100.0)
    assert curve[GAMMAS[-1]] == (0.0, 50.0)
    assert results["best_hm"] == 100.0
    assert 2 < results["best_hm_gamma"] <= 6


def test_semantic_halves_follow_the_sorted_ids(semantic_truth: SemanticGroundTruth) -> None:
    """Images 10 and 30 (half A) have lead 2, the others 4: the best gamma of A is too small for B."""
    leads = [(40, 4.0), (10, 2.0), (30, 2.0), (20, 4.0)]
    results = sweep_results(sweep_semantic(leads, label_map_at, semantic_truth), semantic_truth.groups, "iou")
    assert results["best_hm_gamma"] == 2.5
    assert (results["best_hm_on_a"], results["best_hm_unseen"]) == (100.0, 0.0)


def test_all_images_equal_the_evaluator(semantic_truth: SemanticGroundTruth) -> None:
    rng = np.random.default_rng(0)
    predictions = {image_id: rng.integers(0, 2, SIZE) for image_id in semantic_truth.image_ids}
    sweep = sweep_semantic(predictions.items(), lambda _: lambda raw: raw, semantic_truth, (0.0, 1.0))
    evaluator = SemSegEvaluator("two_halves")
    for image_id, labels in predictions.items():
        evaluator.process([{"file_name": f"{image_id}.jpg"}], [{"sem_seg": torch.from_numpy(labels)}])
    expected = evaluator.evaluate()["sem_seg"]
    point = sweep_results(sweep, semantic_truth.groups, "iou")["curve"][0]
    assert (point["seen"], point["unseen"]) == pytest.approx((expected["mIoU_seen"], expected["mIoU_unseen"]))
    # Asking for "all" must not add one half to the other for good.
    assert sweep.half_a[0].matrix.sum() == sweep.half_b[0].matrix.sum() == 2 * SIZE[0] * SIZE[1]


def test_confusions_merge() -> None:
    one, other = ConfusionAccumulator(2, 255), ConfusionAccumulator(2, 255)
    one.update(np.array([[0, 1]]), np.array([[0, 0]]))
    other.update(np.array([[1, 1]]), np.array([[1, 255]]))
    scores = one.merge(other).compute()
    np.testing.assert_allclose(scores.iou, [1 / 2, 1 / 2])


@pytest.fixture
def instance_truth(tmp_path: Path, register: Any) -> InstanceGroundTruth:
    """Four images with a dog on the left and a zebra on the right."""
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in (10, 20, 30, 40)]
    annotations = []
    for image in images:
        for mask, category in zip(left_and_right(), (5, 9), strict=True):
            rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "iscrowd": 0,
                    "area": int(mask.sum()), "bbox": mask_api.toBbox(rle).tolist(),
                    "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
                }
            )  # fmt: skip
    categories = [{"id": 5, "name": "dog"}, {"id": 9, "name": "zebra"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    name = register("two_animals", [], class_split=SPLIT, json_file=str(tmp_path / "instances.json"))
    return InstanceGroundTruth.of_dataset(name)


def queries(truth: InstanceGroundTruth, image_id: int, lead: float) -> QueryMasks:
    """Two perfect masks; the seen class leads by ``lead`` on the zebra, by 6 on the dog."""
    shapes = mask_entries(torch.from_numpy(left_and_right()), truth.image(image_id).size)
    logits = torch.tensor([[6.0, 0.0, -4.0], [lead, 0.0, -4.0]])
    return {"image_id": image_id, "class_logits": logits, "shapes": shapes, "mask_scores": torch.ones(2)}


def detect_at(gamma: float) -> Any:
    """The best class of each query."""

    def run(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        biased = logits - torch.tensor([gamma, 0.0, 0.0])
        probs, classes = biased.softmax(-1)[:, :-1].max(-1)
        return probs, torch.arange(len(logits)), classes

    return run


def test_instance_sweep_of_two_animals(instance_truth: InstanceGroundTruth) -> None:
    leads = {10: 2.0, 20: 4.0, 30: 2.0, 40: 4.0}
    images = [queries(instance_truth, image_id, lead) for image_id, lead in leads.items()]
    sweep = InstanceSweep(GAMMAS, detect_at, instance_truth, images)
    results = sweep_results(sweep, instance_truth.groups, "ap50")
    curve = {point["gamma"]: (point["seen"], point["unseen"]) for point in results["curve"]}
    assert curve[0.0][1] == curve[GAMMAS[0]][1] == 0.0
    assert curve[4.5] == pytest.approx((100.0, 100.0))
    assert curve[GAMMAS[-1]][0] == 0.0
    assert results["best_hm_gamma"] == 2.5
    assert (results["best_hm_on_a"], results["best_hm_unseen"]) == pytest.approx((100.0, 0.0))
    recall = sweep_results(sweep, instance_truth.groups, "recall")["curve"]
    assert {point["gamma"]: point["unseen"] for point in recall}[3.0] == pytest.approx(50.0)


def test_instance_sweep_equals_the_evaluator_at_gamma_zero(instance_truth: InstanceGroundTruth) -> None:
    images = [queries(instance_truth, i, lead) for i, lead in ((10, -3.0), (20, 4.0), (30, -1.0), (40, 1.0))]
    point = sweep_results(InstanceSweep((0.0, 1.0), detect_at, instance_truth, images), instance_truth.groups, "ap50")[
        "curve"
    ][0]
    evaluator = InstanceEvaluator("two_animals")
    for image in images:
        scores, _, classes = detect_at(0.0)(image["class_logits"])
        masks = torch.from_numpy(left_and_right())
        instances = Instances(SIZE, pred_masks=masks, pred_classes=classes, scores=scores)
        record = {"file_name": "x", "image_id": image["image_id"]}
        evaluator.process([record], [{"instances": instances}])
    expected = evaluator.evaluate()["segm"]
    assert 0 < expected["AP50_unseen"] < 100
    assert (point["seen"], point["unseen"]) == pytest.approx((expected["AP50_seen"], expected["AP50_unseen"]))


def some_predictions(truth: SemanticGroundTruth) -> list[tuple[int | str, QueryPrediction]]:
    """Three queries with smooth masks at half the size, for each image."""
    sizes: Sizes = {"padded_size": SIZE, "image_size": SIZE, "output_size": SIZE}
    draws = torch.Generator().manual_seed(0)
    return [
        (i, QueryPrediction(i, torch.randn(3, 3, generator=draws), 4 * torch.randn(3, 4, 6, generator=draws), sizes))
        for i in truth.image_ids
    ]


def on_grid(
    predictions: list[tuple[int | str, QueryPrediction]], truth: SemanticGroundTruth, step: int
) -> list[tuple[int | str, torch.Tensor, MaskGrid]]:
    return [(i, raw.class_logits, MaskGrid.of(raw, truth.read(i), step)) for i, raw in predictions]


def test_masks_enlarged_once_give_what_each_gamma_gives_by_itself(semantic_truth: SemanticGroundTruth) -> None:
    predictions, gammas = some_predictions(semantic_truth), (-2.0, 0.0, 1.5)
    options = InferenceOptions(
        semantic_on=True, panoptic_on=False, instance_on=False, object_mask_threshold=0.0, overlap_threshold=0.0,
        top_k=1, resize_first=True,
    )  # fmt: skip
    model: Any = SimpleNamespace(inference=options, thing_ids=frozenset({0, 1}))
    expected = sweep_semantic(
        predictions, partial(label_map_with_bias, model, semantic_truth.groups.seen_ids), semantic_truth, gammas
    )
    found = sweep_masks(on_grid(predictions, semantic_truth, 1), semantic_truth, gammas)
    for half in ("half_a", "half_b"):
        for ours, theirs in zip(getattr(found, half), getattr(expected, half), strict=True):
            np.testing.assert_array_equal(ours.matrix, theirs.matrix)


def test_a_grid_counts_every_nth_pixel(semantic_truth: SemanticGroundTruth) -> None:
    predictions = some_predictions(semantic_truth)
    coarse, fine = (
        sweep_masks(on_grid(predictions, semantic_truth, step), semantic_truth, (0.0,)).half_a[0].matrix
        for step in (4, 1)
    )
    assert coarse.sum() == 2 * (SIZE[0] // 4) * (SIZE[1] // 4)
    assert (coarse <= fine).all()
