# SPDX-License-Identifier: Apache-2.0
"""Zero-shot evaluation: classes that do not count are void in the ground truth and stand in no mean."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from padding.evaluation.grouping import ClassGroups
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator, PanopticGroundTruth
from padding.evaluation.semantic import SemSegEvaluator

# Classes of the fixture "split": person, dog, zebra (things), road, sea; zebra (2) and sea (4) are unseen.
UNSEEN = (2, 4)
LABEL_MAP = {0: 255, 1: 255, 2: 2, 3: 255, 4: 4, 255: 255}
Dataset = Callable[..., tuple[str, list[dict[str, Any]]]]


def scene() -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Four columns: dog, zebra, road, sea."""
    ids = np.repeat(np.array([[11, 12, 13, 14]]), 5, axis=0).repeat(6, axis=1)
    kinds = zip((11, 12, 13, 14), (1, 2, 3, 4), strict=True)
    return ids, [{"id": i, "category_id": c, "iscrowd": 0, "area": 30} for i, c in kinds]


def test_groups_hold_the_counted_classes_alone(panoptic_dataset: Dataset) -> None:
    name, _ = panoptic_dataset([scene()], evaluated_ids=UNSEEN)
    groups = PanopticGroundTruth.of_dataset(name).groups
    assert (groups.seen_ids, groups.unseen_ids, groups.thing_ids) == ((), UNSEEN, frozenset({2}))
    assert groups.counted_ids == set(UNSEEN)
    assert groups.num_classes == 5
    assert ClassGroups(("a", "b"), (0,), (1,), frozenset(), (0, 1)).counted_ids == {0, 1}


def test_panoptic_seen_segments_are_void(panoptic_dataset: Dataset) -> None:
    """Unseen labels on seen segments lie on void: no false alarm. On all classes they would be."""
    ids, segments = scene()
    prediction = [
        {"id": s["id"], "category_id": {1: 2, 3: 4}.get(s["category_id"], s["category_id"])} for s in segments
    ]
    name, records = panoptic_dataset([scene()], evaluated_ids=UNSEEN)
    id_map, kept = PanopticGroundTruth.of_dataset(name).read(1)
    assert np.unique(id_map).tolist() == [0, 12, 14]
    assert [segment["category_id"] for segment in kept] == list(UNSEEN)
    evaluator = PanopticEvaluator(name)
    evaluator.process(records, [{"panoptic_seg": (torch.from_numpy(ids), prediction)}])
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ"] == results["PQ_unseen"] == results["PQ_things"] == results["PQ_stuff"] == 100.0
    assert math.isnan(results["PQ_seen"])
    assert math.isnan(results["PQ_hm"])
    assert results["num_classes"] == results["num_classes_unseen"] == 2


def test_semantic_seen_pixels_are_void(panoptic_dataset: Dataset) -> None:
    name, records = panoptic_dataset([scene()], evaluated_ids=UNSEEN, sem_seg_label_map=LABEL_MAP)
    labels = np.repeat(np.array([[2, 2, 4, 4]]), 5, axis=0).repeat(6, axis=1)
    labels[0] = 2  # a fifth of the sea is called zebra
    evaluator = SemSegEvaluator(name)
    evaluator.process(records, [{"sem_seg": torch.from_numpy(labels)}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU_unseen"] == results["mIoU"] == pytest.approx(100 * (5 / 6 + 4 / 5) / 2)
    assert math.isnan(results["mIoU_seen"])
    assert results["pACC"] == pytest.approx(90.0)
    assert results["num_classes"] == 2


def test_instances_of_seen_classes_stand_in_no_mean(panoptic_dataset: Dataset, tmp_path: Path, split: Any) -> None:
    ids, _ = scene()
    masks = torch.from_numpy(np.stack([ids == 11, ids == 12]))
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": split.dataset_ids[c], "iscrowd": 0, "area": 30,
         "bbox": [6 * i, 0, 6, 5], "segmentation": [[6 * i, 0, 6 * i + 6, 0, 6 * i + 6, 5, 6 * i, 5]]}
        for i, c in enumerate((1, 2))
    ]  # fmt: skip
    categories = [{"id": i, "name": n} for i, n in zip(split.dataset_ids[:3], split.names[:3], strict=True)]
    content = {"images": [{"id": 1, "height": 5, "width": 24, "file_name": "1.jpg"}], "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps({**content, "categories": categories}))
    name, records = panoptic_dataset([scene()], evaluated_ids=UNSEEN, json_file=str(tmp_path / "instances.json"))
    evaluator = InstanceEvaluator(name)
    wrong_dog = Instances((5, 24), pred_masks=masks, pred_classes=torch.tensor([0, 2]), scores=torch.ones(2))
    evaluator.process(records, [{"instances": wrong_dog}])
    results = evaluator.evaluate()["segm"]
    assert results["AP50"] == results["AP50_unseen"] == results["recall100"] == pytest.approx(100.0)
    assert math.isnan(results["AP50_seen"])
    assert results["num_classes"] == 1
