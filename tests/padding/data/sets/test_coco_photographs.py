# SPDX-License-Identifier: Apache-2.0
"""The photographs that ship: licences, entries, labels without unseen classes, and evaluation of their own labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from padding.data.registration import register_panoptic
from padding.data.sets.coco_photographs import COUNTS, coco_frequent_split, photograph_files, samples_dir
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.semantic import SemanticGroundTruth, SemSegEvaluator

pytestmark = pytest.mark.usefixtures("restored_catalogs")
BY_ATTRIBUTION = 4


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path) -> None:
    register_all(tmp_path)


def annotations(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(photograph_files(samples_dir(), part)["panoptic_json"].read_text())
    return content


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_sample_may_be_shown_and_is_attributed(part: str) -> None:
    content, text = annotations(part), (samples_dir() / "ATTRIBUTION.md").read_text()
    assert len(content["images"]) == COUNTS["coco_samples"][part]
    for image in content["images"]:
        assert image["license"] == BY_ATTRIBUTION
        assert f"`{part}2017/{image['file_name']}`" in text
        assert image["flickr_url"] in text
    present = {path.name for path in photograph_files(samples_dir(), part)["image_root"].iterdir()}
    assert present == {image["file_name"] for image in content["images"]}


def test_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in samples_dir().rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("task", ["panoptic_zsp", "sem_seg_zss"])
def test_training_knows_no_unseen_class(task: str) -> None:
    train, test = (class_split_of(f"coco_samples_{part}_{task}") for part in ("train", "val"))
    assert (train.num_classes, len(test.unseen_ids)) == (119, 14)
    entries = DatasetCatalog.get(f"coco_samples_train_{task}")
    assert len(entries) == COUNTS["coco_samples"]["train"]
    assert any("void_segment_ids" in entry for entry in entries)
    assert all(segment["category_id"] < 119 for entry in entries for segment in entry["segments_info"])


def test_pixels_of_unseen_classes_are_void_in_samples() -> None:
    """The giraffe and its trees are unseen in the published split, so nothing is left to learn from that photograph."""
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("coco_samples_train_sem_seg_zss",)
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = "RGB", (64,), False
    mapper = build_mapper(cfg, is_train=True)
    samples = {entry["image_id"]: mapper(entry) for entry in DatasetCatalog.get("coco_samples_train_sem_seg_zss")}
    assert (samples[72]["sem_seg"] == 255).all()
    assert len(samples[72]["instances"]) == 0
    names = class_split_of("coco_samples_train_sem_seg_zss").names
    assert {names[i] for i in samples[508]["sem_seg"].unique().tolist() if i != 255} == {"mountain-merged", "snow"}


@pytest.mark.parametrize(("end", "counted"), [("", {"seen", "unseen"}), ("_unseen", {"unseen"})])
def test_evaluation_takes_labels_from_panoptic_files(end: str, counted: set[str]) -> None:
    name = f"coco_samples_val_sem_seg_zss{end}"
    evaluator, truth = SemSegEvaluator(name), SemanticGroundTruth.of_dataset(name)
    assert MetadataCatalog.get(name).evaluator_type == "sem_seg"
    for entry in DatasetCatalog.get(name):
        labels = truth.read(entry["image_id"]).astype(np.int64)
        assert labels.shape == (entry["height"], entry["width"])
        evaluator.process([entry], [{"sem_seg": torch.from_numpy(np.where(labels == 255, 0, labels))}])
    results = evaluator.evaluate()
    assert results is not None
    scored = {group for group in ("seen", "unseen") if not np.isnan(results["sem_seg"][f"mIoU_{group}"])}
    assert scored == counted
    assert all(results["sem_seg"][f"mIoU_{group}"] == 100.0 for group in counted)


def test_frequent_classes_leave_the_others_void() -> None:
    split = coco_frequent_split()
    assert (len(split.seen_ids), len(split.unseen_ids)) == (26, 6)
    for name, part_split in (("few_train", split.seen_only()), ("few_val", split)):
        files = photograph_files(samples_dir(), "val")
        register_panoptic(name, class_split=part_split, unseen_policy="ignore_pixels", **files)
    assert all(
        segment["category_id"] < 26 for entry in DatasetCatalog.get("few_train") for segment in entry["segments_info"]
    )
    panoptic, semantic = PanopticGroundTruth.of_dataset("few_val"), SemanticGroundTruth.of_dataset("few_val")
    for image_id in panoptic.image_ids:
        id_map, segments = panoptic.read(image_id)
        labels = semantic.read(image_id)
        assert {segment["category_id"] for segment in segments} == set(np.unique(labels).tolist()) - {255}
        np.testing.assert_array_equal(id_map == 0, labels == 255)


def test_a_panoptic_set_with_unknown_categories_is_refused_without_the_policy() -> None:
    register_panoptic("strict", class_split=coco_frequent_split(), **photograph_files(samples_dir(), "val"))
    truth = PanopticGroundTruth.of_dataset("strict")
    with pytest.raises(ValueError, match="is not among the 32 classes of the data set"):
        list(map(truth.read, truth.image_ids))
