# SPDX-License-Identifier: Apache-2.0
"""Registering semantic and instance sets: metadata, label maps, sets that count unseen classes alone, samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.catalog import register_all, shapes_zsi_split
from padding.data.mappers import build_mapper
from padding.data.registration import register_instances, register_panoptic, register_sem_seg, registered_names
from padding.data.shapes.classes import ShapesConfig, shapes_split
from padding.data.shapes.write import write_shapes
from padding.engine import add_core_config
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic

UNSEEN_IDS = (2, 4)  # "gem" and "lake"


pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPanoptic:
    return write_tiny_panoptic(tmp_path / "tiny")


def semantic_files(tiny: TinyPanoptic) -> dict[str, Any]:
    return {
        "image_root": tiny.root / "images",
        "sem_seg_root": tiny.sem_seg_root,
        "image_list": tiny.root / "panoptic.json",
    }


def config(mapper: str, name: str, **keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 96
    for key, value in keys.items():
        setattr(cfg.INPUT, key, value)
    return cfg


def test_semantic_set(tiny: TinyPanoptic) -> None:
    register_sem_seg("tiny_semantic", class_split=tiny.class_split, **semantic_files(tiny))
    assert "tiny_semantic" in registered_names()
    metadata = MetadataCatalog.get("tiny_semantic")
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", 255)
    assert metadata.get("sem_seg_label_map") is None
    assert metadata.get("evaluated_ids") is None
    entries = DatasetCatalog.get("tiny_semantic")
    assert len(entries) == 4
    sample = build_mapper(config("mask_former_semantic", "tiny_semantic"), is_train=True)(entries[1])
    labels = np.asarray(Image.open(entries[1]["sem_seg_file_name"]))
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), labels)


def test_label_map_hides_unseen_classes_from_training(tiny: TinyPanoptic) -> None:
    """The wide PNGs serve the narrow space: 0 1 3 5 become 0 1 2 3, the unseen ones void."""
    label_map = {0: 0, 1: 1, 2: 255, 3: 2, 4: 255, 5: 3, 255: 255}
    narrow = tiny.class_split.seen_only()
    register_sem_seg("tiny_narrow", class_split=narrow, label_map=label_map, **semantic_files(tiny))
    mapper = build_mapper(config("mask_former_semantic", "tiny_narrow"), is_train=True)
    for entry in DatasetCatalog.get("tiny_narrow"):
        sample = mapper(entry)
        wide = np.asarray(Image.open(entry["sem_seg_file_name"]))
        expected = np.vectorize(label_map.get)(wide)
        np.testing.assert_array_equal(sample["sem_seg"].numpy(), expected)
        assert sorted(sample["instances"].gt_classes.tolist()) == sorted(set(expected.ravel()) - {255})


def test_label_map_must_be_complete_and_stay_inside(tiny: TinyPanoptic) -> None:
    with pytest.raises(ValueError, match=r"'tiny_bad': label_map leads to \[9\], but there are 6 classes"):
        register_sem_seg("tiny_bad", class_split=tiny.class_split, label_map={0: 9}, **semantic_files(tiny))
    register_sem_seg("tiny_short", class_split=tiny.class_split, label_map={0: 0, 255: 255}, **semantic_files(tiny))
    mapper = build_mapper(config("mask_former_semantic", "tiny_short"), is_train=True)
    with pytest.raises(ValueError, match=r"000000000001\.png: holds the values \[1, 3, 5\].*sem_seg_label_map"):
        mapper(DatasetCatalog.get("tiny_short")[0])


def test_instance_set(tiny: TinyPanoptic) -> None:
    split = tiny.class_split.restricted_to(["tower", "box", "gem"])
    files = {"image_root": tiny.root / "images", "json_file": tiny.json_file}
    register_instances("tiny_things", class_split=split, **files)
    metadata = MetadataCatalog.get("tiny_things")
    assert metadata.evaluator_type == "coco_instance"
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 2: 1, 6: 2}
    entries = DatasetCatalog.get("tiny_things")
    kinds = {type(a["segmentation"]) for entry in entries for a in entry["annotations"]}
    assert kinds == {list, dict}, "the file should hold polygons and run-length code"
    mapper = build_mapper(config("mask_former_instance", "tiny_things"), is_train=True)
    sample = mapper(entries[1])
    # The tower of the second image is a crowd; box and gem are left. Their areas are those of the file.
    assert sample["instances"].gt_classes.tolist() == [1, 2]
    areas = [a["area"] for a in entries[1]["annotations"] if not a["iscrowd"]]
    assert sample["instances"].gt_masks.sum((1, 2)).tolist() == pytest.approx(areas, rel=0.05)
    with pytest.raises(ValueError, match=r"'tiny_stuff': instances of stuff \['sky', 'lake', 'ground'\]"):
        register_instances("tiny_stuff", class_split=tiny.class_split, **files)


def test_unseen_only_sets_carry_the_counted_classes(tiny: TinyPanoptic) -> None:
    register_panoptic("tiny_p", **tiny.registration, evaluate_unseen_only=True)
    register_sem_seg("tiny_s", class_split=tiny.class_split, **semantic_files(tiny), evaluate_unseen_only=True)
    for name in ("tiny_p", "tiny_s"):
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluated_ids == UNSEEN_IDS
        assert metadata.sem_seg_label_map == {0: 255, 1: 255, 2: 2, 3: 255, 4: 4, 5: 255, 255: 255}
        assert metadata.class_split.num_classes == 6, "the model still predicts all classes"
    register_sem_seg(
        "tiny_m", class_split=tiny.class_split, label_map={7: 4, 8: 0, 255: 255}, **semantic_files(tiny),
        evaluate_unseen_only=True,
    )  # fmt: skip
    assert MetadataCatalog.get("tiny_m").sem_seg_label_map == {7: 4, 8: 255, 255: 255}


def test_shapes_tasks_train_on_seen_classes_only(tmp_path: Path) -> None:
    write_shapes(tmp_path, ShapesConfig(num_train=4, num_val=2, size=64, max_objects=3))
    register_all(tmp_path)
    wide = shapes_split()
    train, size = "shapes_train_sem_seg_zss", {"MIN_SIZE_TRAIN": (64,), "MAX_SIZE_TRAIN": 64}
    mapper = build_mapper(config("mask_former_semantic", train, **size), is_train=True)
    for entry in DatasetCatalog.get(train):
        labels = mapper(entry)["sem_seg"]
        original = torch.from_numpy(np.asarray(Image.open(entry["sem_seg_file_name"])).astype(np.int64))
        torch.testing.assert_close(torch.tensor(wide.seen_ids)[labels], original)
    train = "shapes_train_instances_zsi"
    split = shapes_zsi_split()
    assert (split.num_classes, len(split.unseen_ids)) == (30, 5)
    mapper = build_mapper(config("mask_former_instance", train, **size), is_train=True)
    found = {c for entry in DatasetCatalog.get(train) for c in mapper(entry)["instances"].gt_classes.tolist()}
    assert found <= set(range(25))
    names = {split.seen_only().names[c] for c in found}
    assert not names & split.unseen_names
