# SPDX-License-Identifier: Apache-2.0
"""Saved predictions score what the evaluators gave before: by panopticapi, by pycocotools, and read back by ours."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from padding.data.folders import register_folders
from padding.data.own_data import OwnData
from padding.data.readers import read_label_map, read_panoptic_ids
from padding.engine.label_map import UNLABELED
from padding.engine.saved_predictions import PredictionSaver, PredictionWriter, file_names
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from padding.evaluation.saliency import SaliencyEvaluator
from padding.evaluation.semantic import SemSegEvaluator
from tests.tiny_data import tiny_split
from tests.tiny_own import nothing_left, write_own_data

Outputs = list[dict[str, Any]]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    with nothing_left():
        yield write_own_data(tmp_path, num_images=4)


def registered(own: Path, **keys: Any) -> list[dict[str, Any]]:
    """Entries of ``own_val``, where there are classes: all images."""
    paths = {key: str(own / value) for key, value in keys.items()}
    register_folders(OwnData(images=str(own / "images"), **paths))
    return DatasetCatalog.get("own_val") if "own_val" in DatasetCatalog else []


def shifted_truth(own: Path, entries: list[dict[str, Any]]) -> Outputs:
    """Predictions that are right in part: the truth moved by some pixels, some segments of another class."""
    rng, outputs = np.random.default_rng(3), []
    for entry in entries:
        labels = np.asarray(Image.open(own / "labels" / f"{Path(entry['file_name']).stem}.png"))
        moved = np.roll(labels, rng.integers(-3, 4, 2), (0, 1))
        present = [int(label) for label in np.unique(moved) if label < 6]
        ids = np.zeros(moved.shape, np.int32)
        for number, label in enumerate(present, start=1):
            ids[moved == label] = number
        classes = [label if rng.random() < 0.8 else int(rng.integers(6)) for label in present]
        info = [{"id": n, "category_id": label, "isthing": label < 3} for n, label in enumerate(classes, start=1)]
        scores = torch.from_numpy(rng.random((6, *moved.shape))).float()
        scores += 0.5 * torch.from_numpy(np.stack([moved == label for label in range(6)]))
        things = [number for number, label in enumerate(present) if label < 3]
        instances = Instances(moved.shape)
        instances.pred_masks = torch.from_numpy(np.stack([moved == present[number] for number in things]))
        instances.pred_classes = torch.tensor([classes[number] % 3 for number in things])
        instances.scores = torch.from_numpy(rng.random(len(things))).float()
        saliency = torch.from_numpy(rng.random(moved.shape)).float()
        outputs.append(
            {
                "panoptic_seg": (torch.from_numpy(ids), info),
                "sem_seg": scores,
                "instances": instances,
                "saliency": saliency,
            }
        )
    return outputs


def saved(entries: list[dict[str, Any]], outputs: Outputs, folder: Path, name: str = "own_val") -> Path:
    saver = PredictionSaver(name, folder)
    saver.reset()
    for entry, output in zip(entries, outputs, strict=True):
        height, width = output["saliency"].shape
        saver.process([{**entry, "height": height, "width": width}], [output])
    assert saver.evaluate() is None
    return folder


def scores(evaluator: Any, entries: list[dict[str, Any]], outputs: Outputs) -> dict[str, Any]:
    evaluator.process(entries, outputs)
    return evaluator.evaluate()


def test_panoptic_files_score_the_same_by_panopticapi_and_by_ours(own: Path, tmp_path: Path) -> None:
    entries = registered(own, annotations="panoptic.json", panoptic="panoptic", val_annotations="panoptic.json")
    outputs = shifted_truth(own, entries)
    folder = saved(entries, outputs, tmp_path / "saved")
    expected = scores(PanopticEvaluator("own_val"), entries, outputs)
    assert 20 < expected["panoptic_seg"]["PQ"] < 90
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(
            str(own / "panoptic.json"), str(folder / "panoptic.json"), str(own / "panoptic"), str(folder / "panoptic")
        )
    assert 100 * theirs["All"]["pq"] == pytest.approx(expected["panoptic_seg"]["PQ"])
    content = json.loads((folder / "panoptic.json").read_text())
    contiguous = tiny_split().contiguous_id
    again = []
    for entry in content["annotations"]:
        ids = read_panoptic_ids(folder / "panoptic" / entry["file_name"]).astype(np.int32)
        info = [{"id": s["id"], "category_id": contiguous[s["category_id"]]} for s in entry["segments_info"]]
        assert all((ids == s["id"]).sum() == s["area"] for s in entry["segments_info"])
        again.append({"panoptic_seg": (torch.from_numpy(ids), info)})
    assert scores(PanopticEvaluator("own_val"), entries, again) == expected


def test_objects_score_the_same_by_pycocotools(own: Path, tmp_path: Path) -> None:
    entries = registered(own, annotations="instances.json", val_annotations="instances.json")
    outputs = [{key: o[key] for key in ("instances", "saliency")} for o in shifted_truth(own, entries)]
    folder = saved(entries, outputs, tmp_path / "saved")
    expected = scores(InstanceEvaluator("own_val"), entries, outputs)["segm"]
    assert 0 < expected["AP"] < 100
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(own / "instances.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "instances.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 100 * evaluation.stats[:2] == pytest.approx([expected["AP"], expected["AP50"]])


def test_index_images_and_saliency_are_read_back(own: Path, tmp_path: Path) -> None:
    keys = {"labels": "labels", "classes": "classes.txt", "saliency": "saliency"}
    keys |= {"val_images": "images", "val_labels": "labels", "val_saliency": "saliency"}
    entries = registered(own, **keys)
    outputs = shifted_truth(own, entries)
    folder = saved(entries, outputs, tmp_path / "saved")
    stems = [Path(entry["file_name"]).stem for entry in entries]
    labels = [read_label_map(folder / "sem_seg" / f"{stem}.png") for stem in stems]
    again = [{"sem_seg": torch.from_numpy(one.astype(np.int64))} for one in labels]
    expected = scores(SemSegEvaluator("own_val"), entries, outputs)
    assert scores(SemSegEvaluator("own_val"), entries, again) == expected
    assert (folder / "classes.txt").read_text().splitlines()[-1] == f"{UNLABELED} unlabeled"
    # Saliency has a step of 1/255, and an error of half of it.
    grey = [np.asarray(Image.open(folder / "saliency" / f"{stem}.png")) for stem in stems]
    again = [{"saliency": torch.from_numpy(one / np.float32(255))} for one in grey]
    salient = DatasetCatalog.get("own_val_saliency")
    expected = scores(SaliencyEvaluator("own_val_saliency"), salient, outputs)["saliency"]
    found = scores(SaliencyEvaluator("own_val_saliency"), salient, again)["saliency"]
    assert found["MAE"] == pytest.approx(expected["MAE"], abs=0.5 / 255)
    assert found["max_F"] == pytest.approx(expected["max_F"], abs=0.5)


def test_of_a_saliency_set_saliency_alone_is_saved(own: Path, tmp_path: Path) -> None:
    """The model predicts classes too, but they are not those of the set."""
    registered(own, saliency="saliency", val_images="images", val_saliency="saliency")
    entries = DatasetCatalog.get("own_val_saliency")
    outputs = shifted_truth(own, entries)
    folder = saved(entries, outputs, tmp_path / "saved", name="own_val_saliency")
    assert sorted(path.name for path in folder.iterdir()) == ["parts", "saliency"]


def test_an_evaluation_replaces_what_an_earlier_one_saved(own: Path, tmp_path: Path) -> None:
    entries = registered(own, annotations="panoptic.json", panoptic="panoptic", val_annotations="panoptic.json")
    outputs = shifted_truth(own, entries)
    saved(entries, outputs, tmp_path / "saved")
    saved(entries[:2], outputs[:2], tmp_path / "saved")
    assert len(json.loads((tmp_path / "saved" / "panoptic.json").read_text())["images"]) == 2


def test_images_of_one_name_are_kept_apart_by_their_ids() -> None:
    names = [{"file_name": "day/a.jpg", "image_id": "day/a"}, {"file_name": "night/a.jpg", "image_id": "night/a"}]
    assert file_names(names) == ["day/a", "night/a"]
    assert file_names(names[:1]) == ["a"]


def test_no_object_is_an_empty_list(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, tiny_split())
    nothing = Instances((4, 6))
    nothing.pred_masks, nothing.scores = torch.zeros(0, 4, 6, dtype=torch.bool), torch.zeros(0)
    nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
    writer.write("a", 1, (4, 6), {"instances": nothing})
    assert not writer.join(["a", "b"])
    assert writer.join(["a"])
    assert json.loads((tmp_path / "instances.json").read_text()) == []
