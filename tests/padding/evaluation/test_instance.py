# SPDX-License-Identifier: Apache-2.0
import contextlib
import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from padding.data.class_split import ClassSplit
from padding.errors import DataError
from padding.evaluation import instance
from padding.evaluation.detections import with_boxes
from padding.evaluation.instance import InstanceEvaluator

SIZE = (40, 50)
THINGS = 3
BACKENDS = [name for name in ("faster_coco_eval", "pycocotools") if importlib.util.find_spec(name)]


def random_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N, h, w) bool rectangles."""
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, 28, 2)
        height, width = rng.integers(4, 14, 2)
        mask[top : top + height, left : left + width] = True
    return masks


def instances_of(masks: np.ndarray, classes: Any, scores: Any) -> Instances:
    return Instances(
        SIZE,
        pred_masks=torch.from_numpy(masks),
        pred_classes=torch.as_tensor(classes, dtype=torch.int64),
        scores=torch.as_tensor(scores, dtype=torch.float32),
    )


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each installed backend, as if it were the only one."""
    monkeypatch.setattr(instance, "BACKENDS", (request.param,))


@pytest.fixture
def make_dataset(tmp_path: Path, register: Callable[..., str], split: ClassSplit) -> Callable[..., Any]:
    """Write an instances JSON of (masks, classes, crowd flags) per image."""

    def write(truth: list[tuple[np.ndarray, Any, Any]]) -> tuple[str, list[dict[str, Any]], Path]:
        annotations, images = [], []
        for image_id, (masks, classes, crowd) in enumerate(truth, start=1):
            images.append({"id": image_id, "height": SIZE[0], "width": SIZE[1], "file_name": f"{image_id}.jpg"})
            for mask, class_id, iscrowd in zip(masks, classes, crowd, strict=True):
                rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": split.dataset_ids[class_id],
                        "iscrowd": int(iscrowd),
                        "area": int(mask.sum()),
                        "bbox": mask_api.toBbox(rle).tolist(),
                        "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
                    }
                )
        path = tmp_path / "instances.json"
        categories = [{"id": split.dataset_ids[i], "name": split.names[i]} for i in range(THINGS)]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        records = [{"file_name": image["file_name"], "image_id": image["id"]} for image in images]
        return register("tiny_instances", records, class_split=split, json_file=str(path)), records, path

    return write


@pytest.fixture
def random_case(make_dataset: Callable[..., Any]) -> tuple[str, list[dict[str, Any]], Path, list[dict[str, Instances]]]:
    """Twelve images with crowds, misses, shifted masks, wrong classes and false alarms."""
    rng = np.random.default_rng(4)
    truth, outputs = [], []
    for _ in range(12):
        masks, classes = random_masks(rng, 6), rng.integers(0, THINGS, 6)
        truth.append((masks, classes, rng.random(6) < 0.2))
        shifted = np.stack([np.roll(m, rng.integers(-3, 4, 2), (0, 1)) for m in masks])
        guesses = np.where(rng.random(6) < 0.2, rng.integers(0, THINGS, 6), classes)
        found = rng.random(6) < 0.85
        extra = random_masks(rng, 4)
        outputs.append(
            {
                "instances": instances_of(
                    np.concatenate([shifted[found], extra]),
                    np.concatenate([guesses[found], rng.integers(0, THINGS, 4)]),
                    rng.random(int(found.sum()) + 4),
                )
            }
        )
    return *make_dataset(truth), outputs


@pytest.mark.usefixtures("backend")
def test_perfect_prediction_scores_100(make_dataset: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    truth = [(random_masks(rng, 3), [0, 1, 2], [0, 0, 0]) for _ in range(4)]
    name, records, _ = make_dataset(truth)
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(m, c, [0.9] * 3)} for m, c, _ in truth])
    results = evaluator.evaluate()
    for task in ("segm", "bbox"):
        for metric in ("AP", "AP50", "recall100"):
            for group in ("", "_seen", "_unseen", "_hm"):
                assert results[task][metric + group] == pytest.approx(100.0)
        assert (results[task]["num_classes"], results[task]["num_classes_unseen"]) == (3, 1)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "change",
    [
        lambda i, entry: entry.update(id=i),  # 0 means "no match" to the backends
        lambda i, entry: entry.update(id=7),
        lambda i, entry: entry.update(id=f"object {i}"),
        lambda i, entry: entry.pop("id"),
        lambda i, entry: entry.update(area=-1),
        lambda i, entry: entry.update(area=1e12),
        lambda i, entry: entry.update(area=None, bbox=None, iscrowd=None),
        lambda i, entry: entry.update(bbox=[]),
    ],
)
def test_ids_areas_and_null_fields_do_not_spoil_a_perfect_score(make_dataset: Callable[..., Any], change: Any) -> None:
    rng = np.random.default_rng(0)
    truth = [(random_masks(rng, 3), [0, 1, 2], [0, 0, 0]) for _ in range(4)]
    name, records, path = make_dataset(truth)
    content = json.loads(path.read_text())
    for index, entry in enumerate(content["annotations"]):
        change(index, entry)
    path.write_text(json.dumps(content))
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(m, c, [0.9] * 3)} for m, c, _ in truth])
    results = evaluator.evaluate()
    assert [results[task][metric] for task in ("segm", "bbox") for metric in ("AP", "recall100")] == [100.0] * 4


@pytest.mark.usefixtures("backend")
def test_ids_in_another_order_than_the_classes_change_no_score(
    random_case: Any, register: Callable[..., str], split: ClassSplit, tmp_path: Path
) -> None:
    """Zero-shot splits list seen classes first, whatever their ids; backends sort classes by id."""
    name, records, path, outputs = random_case
    other = replace(split, dataset_ids=(9, 4, 6, 11, 12))
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["category_id"] = other.dataset_ids[split.dataset_ids.index(entry["category_id"])]
    for entry in content["categories"]:
        entry["id"] = other.dataset_ids[split.dataset_ids.index(entry["id"])]
    (tmp_path / "other.json").write_text(json.dumps(content))
    renamed = register("renamed", records, class_split=other, json_file=str(tmp_path / "other.json"))
    results = []
    for dataset in (name, renamed):
        evaluator = InstanceEvaluator(dataset, tmp_path / dataset)
        evaluator.process(records, outputs)
        results.append(evaluator.evaluate())
        results.append(json.loads((tmp_path / dataset / "segm_per_class.json").read_text())["per_class"])
    assert results[2] == results[0]
    assert [row["AP"] for row in results[3]] == [row["AP"] for row in results[1]]
    assert len({row["AP"] for row in results[1]}) > 2


@pytest.mark.usefixtures("backend")
def test_many_objects_score_100(make_dataset: Callable[..., Any]) -> None:
    """More than 255: pycocotools fails on the area of so many masks at once."""
    rng = np.random.default_rng(0)
    truth = [(random_masks(rng, 90), rng.integers(0, THINGS, 90), [0] * 90) for _ in range(4)]
    name, records, _ = make_dataset(truth)
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(m, c, [0.9] * 90)} for m, c, _ in truth])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100.0)


@pytest.mark.usefixtures("backend")
def test_image_ids_may_be_texts_and_sizes_may_lack(
    make_dataset: Callable[..., Any], tmp_path: Path, register: Callable[..., str], split: ClassSplit
) -> None:
    rng = np.random.default_rng(0)
    truth = [(random_masks(rng, 3), [0, 1, 2], [0, 0, 0]) for _ in range(2)]
    _, records, path = make_dataset(truth)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] = f"photo {image['id']}"
        del image["height"], image["width"]
        Image.new("RGB", SIZE[::-1]).save(tmp_path / image["file_name"])
    for entry in content["annotations"]:
        entry["image_id"] = f"photo {entry['image_id']}"
    path.write_text(json.dumps(content))
    records = [{**record, "image_id": f"photo {record['image_id']}"} for record in records]
    name = register("texts", records, class_split=split, json_file=str(path), image_root=str(tmp_path))
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(m, c, [0.9] * 3)} for m, c, _ in truth])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100.0)
    name = register("no_images", records, class_split=split, json_file=str(path))
    with pytest.raises(DataError, match=r"instances\.json: image 'photo 1' \(1\.jpg\) states no 'height'"):
        InstanceEvaluator(name)


def test_masks_that_cannot_be_drawn_are_named(make_dataset: Callable[..., Any]) -> None:
    name, _, path = make_dataset([(random_masks(np.random.default_rng(0), 3), [0, 1, 2], [0, 0, 0])])
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"]["counts"] = [328, 18]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"instances\.json: annotation 2 of image 1 \(1\.jpg\) has run-length code of 346"
    ):
        InstanceEvaluator(name)


@pytest.mark.usefixtures("backend")
def test_empty_predictions_score_zero(make_dataset: Callable[..., Any]) -> None:
    name, records, _ = make_dataset([(random_masks(np.random.default_rng(0), 3), [0, 1, 2], [0, 0, 0])])
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(np.zeros((0, *SIZE), bool), [], [])}])
    results = evaluator.evaluate()
    assert [results["segm"][key] for key in ("AP", "AP50", "recall100", "AP_hm")] == [0.0] * 4


def test_wrong_classes_score_zero(make_dataset: Callable[..., Any]) -> None:
    truth = (random_masks(np.random.default_rng(0), 3), [0, 1, 2], [0, 0, 0])
    name, records, _ = make_dataset([truth])
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(truth[0], [1, 2, 0], [0.5] * 3)}])
    assert evaluator.evaluate()["segm"]["AP50"] == 0.0


@pytest.mark.reference
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_equals_pycocotools_per_class(random_case: Any, tmp_path: Path, task: str) -> None:
    """Against COCOeval with its own default parameters (four areas, three limits)."""
    name, records, path, outputs = random_case
    evaluator = InstanceEvaluator(name, tmp_path)
    evaluator.process(records, outputs)
    groups = evaluator.groups
    found = [e for d in evaluator._detections for e in d.entries(groups.dataset_ids.__getitem__, groups.thing_ids)]
    boxes = [entry["bbox"] for entry in with_boxes(found)]
    detections = json.loads(json.dumps([{**e, "bbox": box} for e, box in zip(found, boxes, strict=True)]))
    evaluator.evaluate()
    report = json.loads((tmp_path / f"{task}_per_class.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        key = "segmentation" if task == "segm" else "bbox"
        official = COCOeval(
            truth,
            truth.loadRes([{k: d[k] for k in ("image_id", "category_id", "score", key)} for d in detections]),
            task,
        )
        official.evaluate()
        official.accumulate()
    precision, recall = official.eval["precision"], official.eval["recall"]
    assert len(report["per_class"]) == THINGS
    for column, line in enumerate(report["per_class"]):
        assert line["AP"] == pytest.approx(100 * precision[:, :, column, 0, -1].mean(), abs=1e-9)
        assert line["AP50"] == pytest.approx(100 * precision[0, :, column, 0, -1].mean(), abs=1e-9)
        assert line["recall100"] == pytest.approx(100 * recall[0, column, 0, -1], abs=1e-9)
        assert 0 < line["AP"] < line["AP50"] < 100


def test_absent_and_crowd_only_classes_are_left_out(make_dataset: Callable[..., Any]) -> None:
    masks = random_masks(np.random.default_rng(0), 2)
    name, records, _ = make_dataset([(masks, [0, 1], [0, 1])])  # class 1 only as crowd, class 2 (unseen) not at all
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(masks, [0, 1], [0.9, 0.8])}])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] == results["AP_seen"] == pytest.approx(100.0)
    assert (results["num_classes"], results["num_classes_unseen"]) == (1, 0)
    assert np.isnan(results["AP_hm"])


def test_stuff_detections_are_dropped(make_dataset: Callable[..., Any]) -> None:
    """A panoptic-trained model may score stuff classes; COCO's instance truth has none."""
    masks = random_masks(np.random.default_rng(0), 1)
    name, records, _ = make_dataset([(masks, [2], [0])])
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, [{"instances": instances_of(masks.repeat(3, axis=0), [3, 2, 4], [0.9, 0.5, 0.8])}])
    assert evaluator.evaluate()["segm"]["AP_unseen"] == pytest.approx(100.0)


def test_boxes_alone_are_refused(make_dataset: Callable[..., Any]) -> None:
    name, records, _ = make_dataset([(np.ones((1, *SIZE), dtype=bool), [0], [0])])
    boxes = Instances(SIZE, pred_boxes=Boxes(torch.tensor([[10.0, 5.0, 30.0, 15.0]])))
    boxes.pred_classes, boxes.scores = torch.tensor([0]), torch.tensor([0.7])
    with pytest.raises(ValueError, match=r"1\.jpg \(image 1\): instances without pred_masks"):
        InstanceEvaluator(name).process(records, [{"instances": boxes}])


def test_falls_back_to_pycocotools(random_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, records, _, outputs = random_case
    results = []
    for absent in ("nothing", "faster_coco_eval"):
        find_spec = importlib.util.find_spec
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.util, "find_spec", lambda n, absent=absent, f=find_spec: None if n == absent else f(n)
            )
            evaluator = InstanceEvaluator(name)
        assert isinstance(evaluator.truth.coco, COCO) == (absent == "faster_coco_eval" or len(BACKENDS) == 1)
        evaluator.process(records, outputs)
        results.append(evaluator.evaluate())
    for task in ("segm", "bbox"):
        assert results[0][task] == pytest.approx(results[1][task], abs=1e-9)


def test_only_the_evaluated_images_count(random_case: Any) -> None:
    name, records, _, outputs = random_case
    part, _ = InstanceEvaluator(name), None
    part.process(records[:4], outputs[:4])
    results = part.evaluate()["segm"]
    assert results["num_images"] == 4
    whole = InstanceEvaluator(name)
    whole.process(records, outputs)
    assert results["recall100"] > 0
    assert whole.evaluate()["segm"]["AP"] != results["AP"]


def test_classes_scored_a_few_at_a_time_score_the_same(random_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, records, _, outputs = random_case
    evaluator = InstanceEvaluator(name)
    evaluator.process(records, outputs)
    expected = evaluator.evaluate()
    monkeypatch.setattr(instance, "_AT_ONCE", 1)
    assert evaluator.evaluate() == expected


def test_two_ranks_equal_one(random_case: Any, two_ranks: Callable[..., None]) -> None:
    name, records, _, outputs = random_case
    whole, main, other = (InstanceEvaluator(name) for _ in range(3))
    whole.process(records, outputs)
    expected = whole.evaluate()
    main.process(records[:5], outputs[:5])
    other.process(records[5:], outputs[5:])
    two_ranks(None, (other._detections, other._image_ids))
    assert main.evaluate() == expected


@pytest.mark.usefixtures("second_rank")
def test_other_ranks_return_none(random_case: Any) -> None:
    assert InstanceEvaluator(random_case[0]).evaluate() is None


def test_errors_name_image_and_cure(random_case: Any, register: Callable[..., str], split: ClassSplit) -> None:
    name, records, path, outputs = random_case
    evaluator = InstanceEvaluator(name)
    with pytest.raises(ValueError, match="INSTANCE_ON"):
        evaluator.process(records[:1], [{"sem_seg": None}])
    with pytest.raises(ValueError, match=r"has no image 99 \(1\.jpg\)"):
        evaluator.process([{**records[0], "image_id": 99}], outputs[:1])
    small = Instances((3, 4), pred_masks=torch.ones(1, 3, 4), pred_classes=torch.tensor([0]), scores=torch.ones(1))
    with pytest.raises(ValueError, match=r"1\.jpg .*masks of size \(3, 4\), the ground truth says \(40, 50\)"):
        evaluator.process(records[:1], [{"instances": small}])
    with pytest.raises(ValueError, match="needs an instances JSON"):
        InstanceEvaluator(register("no_json", [], class_split=split, json_file=""))
    content = json.loads(path.read_text())
    objects = [entry for entry in content["annotations"] if entry["category_id"] != 3]
    path.write_text(json.dumps({**content, "categories": content["categories"][:2], "annotations": objects}))
    with pytest.raises(ValueError, match=r"lacks categories \[3\]"):
        InstanceEvaluator(name)
