# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.evaluation import SemSegEvaluator as DetectronSemSegEvaluator
from PIL import Image

from padding.data.readers import read_label_map
from padding.data.sets.cityscapes import cityscapes_label_map
from padding.errors import MissingFileError
from padding.evaluation import semantic
from padding.evaluation.semantic import SemanticGroundTruth, SemSegEvaluator, label_map_of_scores

Dataset = Callable[..., tuple[str, list[dict[str, Any]]]]
K = 5


@pytest.fixture
def scenes(random_scene: Callable[..., Any]) -> tuple[list[Any], list[dict[str, torch.Tensor]]]:
    rng = np.random.default_rng(2)
    truth = [random_scene(rng) for _ in range(6)]
    return truth, [{"sem_seg": torch.rand((K, *m.shape), generator=torch.Generator().manual_seed(0))} for m, _ in truth]


def scores_of(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), K).movedim(-1, 0).float()


def test_perfect_and_all_wrong(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    name, records = panoptic_dataset(scenes[0])
    truth = _labels(records, tmp_path)
    for shift, expected in ((0, 100.0), (1, 0.0)):
        evaluator = SemSegEvaluator(name)
        evaluator.process(records, [{"sem_seg": scores_of((np.where(t == 255, 0, t) + shift) % K)} for t in truth])
        results = evaluator.evaluate()["sem_seg"]
        keys = ["mIoU", "mIoU_seen", "mIoU_unseen", "mIoU_hm", "fwIoU", "mACC", "pACC"]
        assert [results[key] for key in keys] == [expected] * 7


@pytest.mark.reference
def test_equals_detectron2_per_class(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth, stuff_classes=["cat", "dog", "zebra", "road", "sea"])
    for record in records:  # Detectron2 wants the file in the dict
        record["sem_seg_file_name"] = str(tmp_path / "sem_seg" / f"{record['image_id']}.png")
    ours, theirs = SemSegEvaluator(name, tmp_path / "out"), DetectronSemSegEvaluator(name, distributed=False)
    theirs.reset()
    for evaluator in (ours, theirs):
        evaluator.process(records, outputs)
    results, expected = ours.evaluate()["sem_seg"], theirs.evaluate()["sem_seg"]
    report = json.loads((tmp_path / "out" / "sem_seg_per_class.json").read_text())
    for line in report["per_class"]:
        assert line["IoU"] == pytest.approx(expected[f"IoU-{line['name']}"], rel=1e-12)
        assert line["accuracy"] == pytest.approx(expected[f"ACC-{line['name']}"], rel=1e-12)
    for key in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert results[key] == pytest.approx(expected[key], rel=1e-12)


def test_absent_class_is_left_out_though_it_was_predicted(panoptic_dataset: Dataset) -> None:
    """A class without a ground-truth pixel has no IoU; predicting it only hurts the true classes."""
    id_map = np.full((2, 10), 3)
    name, records = panoptic_dataset([(id_map, [{"id": 3, "category_id": 0, "iscrowd": 0}])])
    pred = np.zeros((2, 10), dtype=np.int64)
    pred[:, 8:] = 4
    evaluator = SemSegEvaluator(name)
    evaluator.process(records, [{"sem_seg": scores_of(pred)}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == results["mIoU_seen"] == pytest.approx(80.0)
    assert np.isnan(results["mIoU_unseen"])
    assert results["num_classes"] == 1


def test_label_maps_are_accepted_as_predictions(panoptic_dataset: Dataset, scenes: Any) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    results = []
    for batch in (outputs, [{"sem_seg": o["sem_seg"].argmax(0)} for o in outputs]):
        evaluator = SemSegEvaluator(name)
        evaluator.process(records, batch)
        results.append(evaluator.evaluate())
    assert results[0] == results[1]


@pytest.mark.parametrize("num_classes", [1, K, 255, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_class_equals_argmax_with_ties(num_classes: int, dtype: torch.dtype) -> None:
    scores = torch.randint(-1, 2, (num_classes, 150, 150)).to(dtype)
    scores[:, 3] = float("-inf")
    scores[num_classes // 2, 5:9] = float("nan")
    scores[num_classes - 1, 7] = float("nan")
    assert torch.equal(label_map_of_scores(scores, num_classes), scores.argmax(0))


def test_cityscapes_ids_become_train_ids(tmp_path: Path, register: Callable[..., str]) -> None:
    ids = np.array([[0, 7, 8], [11, 33, 29], [255, 26, 6]], dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "x_labelIds.png")
    label_map = cityscapes_label_map()
    expected = [[255, 0, 1], [2, 18, 255], [255, 13, 255]]  # road 7, sidewalk 8, building 11, car 26, bicycle 33
    records = [{"file_name": n, "sem_seg_file_name": str(tmp_path / f"{n}_labelIds.png")} for n in ("x", "odd", "gone")]
    name = register("streets", records, stuff_classes=["road"], sem_seg_label_map=label_map)
    truth = SemanticGroundTruth.of_dataset(name)
    np.testing.assert_array_equal(truth.labels_of("x"), expected)
    assert sorted(v for v in label_map.values() if v != 255) == list(range(19))
    Image.fromarray(ids + 100).save(tmp_path / "odd_labelIds.png")
    with pytest.raises(ValueError, match=r"odd_labelIds\.png: holds the values \[99, 100, .*sem_seg_label_map"):
        truth.labels_of("odd")
    with pytest.raises(MissingFileError, match=r"gone_labelIds\.png: no such file; prepare the data set first"):
        truth.labels_of("gone")


def test_evaluator_reads_cityscapes_ids_through_the_metadata(tmp_path: Path, register: Callable[..., str]) -> None:
    Image.fromarray(np.array([[7, 8, 0]], dtype=np.uint8)).save(tmp_path / "a.png")
    records = [{"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}]
    names = [category["name"] for category in CITYSCAPES_CATEGORIES]
    name = register("city", records, stuff_classes=names, ignore_label=255, sem_seg_label_map=cityscapes_label_map())
    evaluator = SemSegEvaluator(name)
    evaluator.process(records, [{"sem_seg": torch.tensor([[0, 2, 5]])}])
    results = evaluator.evaluate()["sem_seg"]
    assert (results["mIoU"], results["num_classes"], results["pACC"]) == (50.0, 2, 50.0)


def test_two_ranks_equal_one(panoptic_dataset: Dataset, scenes: Any, two_ranks: Callable[..., None]) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    whole, main, other = (SemSegEvaluator(name) for _ in range(3))
    whole.process(records, outputs)
    expected = whole.evaluate()
    main.process(records[:2], outputs[:2])
    other.process(records[2:], outputs[2:])
    two_ranks(None, (other.confusions, 4))
    assert main.evaluate() == expected


def test_parts_are_evaluated_by_themselves_and_labels_read_once(
    panoptic_dataset: Dataset, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: Any
) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    generator = torch.Generator().manual_seed(1)
    cnn = [{"sem_seg": torch.rand((K, *m.shape), generator=generator)} for m, _ in truth]
    perfect = [{"sem_seg": scores_of(np.where(t == 255, 0, t))} for t in _labels(records, tmp_path)]

    def alone(predictions: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        evaluator = SemSegEvaluator(name)
        evaluator.process(records, predictions)
        return evaluator.evaluate()["sem_seg"]

    expected = {"sem_seg": alone(outputs), "sem_seg_cnn": alone(cnn), "sem_seg_vit": alone(perfect)}
    reads = []
    monkeypatch.setattr(semantic, "read_label_map", lambda *a, **k: reads.append(a[0]) or read_label_map(*a, **k))
    main, other = (SemSegEvaluator(name, tmp_path / "out", parts=("cnn", "vit")) for _ in range(2))
    joined = [
        {"sem_seg": s["sem_seg"], "sem_seg_cnn": c["sem_seg"], "sem_seg_vit": v["sem_seg"], "sem_seg_other": None}
        for s, c, v in zip(outputs, cnn, perfect, strict=True)
    ]
    main.process(records[:2], joined[:2])
    other.process(records[2:], joined[2:])
    assert len(reads) == len(records)
    two_ranks(None, (other.confusions, 4))
    results = main.evaluate()
    assert results == expected
    assert results["sem_seg_vit"]["mIoU"] == 100.0
    assert results["sem_seg_cnn"]["mIoU"] != results["sem_seg"]["mIoU"]
    assert {p.name for p in (tmp_path / "out").glob("*.json")} == {f"{task}_per_class.json" for task in expected}


def test_missing_part_is_named(panoptic_dataset: Dataset, scenes: Any) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = SemSegEvaluator(name, parts=("ensemble",))
    both = [{**output, "sem_seg_cnn": output["sem_seg"]} for output in outputs]
    with pytest.raises(ValueError, match=r"1\.jpg.*not 'sem_seg_ensemble'; TEST\.SEM_SEG\.PARTS .* parts \['cnn'\]"):
        evaluator.process(records, both)
    with pytest.raises(ValueError, match=r"not 'sem_seg'; switch MODEL\.MASK_FORMER\.TEST\.SEMANTIC_ON on"):
        evaluator.process(records, [{"panoptic_seg": None}] * len(records))


def test_pixels_without_scores_are_left_out_only_when_asked(panoptic_dataset: Dataset, tmp_path: Path) -> None:
    id_map = np.full((4, 10), 3)
    name, records = panoptic_dataset([(id_map, [{"id": 3, "category_id": 1, "iscrowd": 0}])])
    scores = scores_of(np.ones((4, 10)))
    scores[:, :, :5] = 0  # the best class of nothing is class 0
    for only_scored, accuracy in ((False, 50.0), (True, 100.0)):
        evaluator = SemSegEvaluator(name, only_scored=only_scored)
        evaluator.process(records, [{"sem_seg": scores}])
        assert evaluator.evaluate()["sem_seg"]["pACC"] == accuracy
        assert evaluator.confusions["sem_seg"].sum() == (20 if only_scored else 40)
    with pytest.raises(ValueError, match="both must be the original size"):
        SemSegEvaluator(name, only_scored=True).process(records, [{"sem_seg": scores[:, :2]}])


def test_foreground_scores_cannot_choose_the_background(tmp_path: Path, register: Callable[..., str]) -> None:
    """A pixel of class 1 that the background wins is wrong with it and right without; background pixels drop out."""
    truth = np.array([[0, 0, 1, 1], [2, 2, 1, 255]], np.uint8)
    Image.fromarray(truth).save(tmp_path / "a.png")
    records = [{"file_name": "a.jpg", "image_id": 1, "sem_seg_file_name": str(tmp_path / "a.png")}]
    name = register("context", records, stuff_classes=["background", "cat", "dog"], ignore_label=255, background_id=0)
    scores = torch.zeros(3, 2, 4)
    scores[0], scores[1, :, 2:], scores[2, 1, :2] = 0.5, 0.4, 0.9
    evaluator = SemSegEvaluator(name)
    evaluator.process(records, [{"sem_seg": scores}])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (2 / 5 + 0 + 1) / 3)
    assert results["sem_seg_foreground"]["mIoU"] == 100.0
    with pytest.raises(ValueError, match=r"scored without its background class 0, .* must be scores"):
        evaluator.process(records, [{"sem_seg": torch.from_numpy(truth.astype(np.int64))}])


def _labels(records: list[dict[str, Any]], tmp_path: Path) -> list[np.ndarray]:
    return [read_label_map(tmp_path / "sem_seg" / f"{r['image_id']}.png").astype(np.int64) for r in records]


@pytest.mark.usefixtures("second_rank")
def test_other_ranks_return_none(panoptic_dataset: Dataset, scenes: Any) -> None:
    assert SemSegEvaluator(panoptic_dataset(scenes[0])[0]).evaluate() is None


def test_errors_name_file_and_cure(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = SemSegEvaluator(name)
    with pytest.raises(ValueError, match=r"1\.png \(image 1\.jpg\): sem_seg: prediction has shape \(3, 4\)"):
        evaluator.process(records[:1], [{"sem_seg": torch.rand(K, 3, 4)}])
    with pytest.raises(ValueError, match=r"expected \(5, h, w\) scores"):
        evaluator.process(records[:1], [{"sem_seg": torch.rand(K + 1, 24, 32)}])
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        evaluator.process(records[:1], [{"instances": None}])
    with pytest.raises(ValueError, match="not an image of data set 'tiny_panoptic'"):
        evaluator.process([{"file_name": "stranger.jpg"}], outputs[:1])
    Image.fromarray(np.full((24, 32), 9, dtype=np.uint8)).save(tmp_path / "sem_seg" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png .*ground truth holds labels \[9\]; expected 0..4 or 255"):
        evaluator.process(records[:1], outputs[:1])


def test_data_set_without_semantic_truth_is_an_error(panoptic_dataset: Dataset, scenes: Any) -> None:
    name, _ = panoptic_dataset(scenes[0], sem_seg_root="")
    with pytest.raises(ValueError, match=r"image 1\.jpg has no sem_seg_file_name"):
        SemSegEvaluator(name)
