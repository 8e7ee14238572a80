# SPDX-License-Identifier: Apache-2.0
"""CamVid, VOC, Cityscapes and shapes with coarse labels: entries, label values, evaluation of their own labels."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from padding.data.sets.camvid import camvid_split, register_camvid
from padding.data.sets.cityscapes import cityscapes_split
from padding.data.sets.voc import VOC_NAMES, voc_palette, voc_split
from padding.data.shapes.classes import shapes_coarse_split
from padding.evaluation.semantic import SemSegEvaluator
from tests.tiny_dense import blocks, write_camvid, write_cityscapes, write_voc
from tests.tiny_segmentor import write_dozen_shapes


@pytest.fixture(autouse=True)
def _take_back() -> Any:
    yield
    register_all()


def mapped(name: str) -> Any:
    """Mapper that changes no geometry, so that samples can be compared with files."""
    cfg: CfgNode = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.SEMANTIC_MASKS = "semantic_scale_crop", False
    cfg.INPUT.SCALE_FACTORS, cfg.INPUT.CROP.SIZE = (1.0,), [48, 64]
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "RGB", "none"
    return build_mapper(cfg, is_train=True)


def evaluate(name: str, wrong_pixels: int = 0, every: int = 1) -> dict[str, float]:
    """Feed the labels on disk back as scores; void gets an arbitrary class, some pixels of each image a wrong one."""
    evaluator = SemSegEvaluator(name)
    label_map = MetadataCatalog.get(name).get("sem_seg_label_map")
    num_classes = class_split_of(name).num_classes
    for entry in DatasetCatalog.get(name)[::every]:
        labels = np.asarray(Image.open(entry["sem_seg_file_name"])).astype(np.int64)
        if label_map is not None:
            labels = np.vectorize(label_map.get)(labels)
        predicted = torch.from_numpy(np.where(labels == 255, 3 % num_classes, labels))
        counted = np.argwhere(labels != 255)[:wrong_pixels]
        predicted[counted[:, 0], counted[:, 1]] = (predicted[counted[:, 0], counted[:, 1]] + 1) % num_classes
        scores = torch.nn.functional.one_hot(predicted, num_classes).permute(2, 0, 1).float()
        evaluator.process([entry], [{"sem_seg": scores}])
    results = evaluator.evaluate()
    assert results is not None
    return results["sem_seg"]


# CamVid -------------------------------------------------------------------------------------------------------------


def test_camvid_classes() -> None:
    split = camvid_split()
    assert split.num_classes == 11
    assert split.names[::5] == ("sky", "tree", "bicyclist")
    assert {split.names[i] for i in split.thing_ids} == {"car", "pedestrian", "bicyclist"}


def test_camvid_void_is_ignored_and_other_values_stay(tmp_path: Path) -> None:
    register_camvid(write_camvid(tmp_path))
    entries = DatasetCatalog.get("camvid_train_sem_seg")
    assert [entry["image_id"] for entry in entries] == ["frame0", "frame1", "frame2"]
    sample = mapped("camvid_train_sem_seg")(entries[0])
    on_disk = blocks(range(12), seed=0)
    np.testing.assert_array_equal(sample["sem_seg"], np.where(on_disk == 11, 255, on_disk))
    assert (sample["sem_seg"] == 255).any()


def test_camvid_values_beyond_void_are_refused(tmp_path: Path) -> None:
    register_camvid(write_camvid(tmp_path))
    entry = DatasetCatalog.get("camvid_train_sem_seg")[0]
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(entry["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"frame0\.png: holds the values \[12\]"):
        mapped("camvid_train_sem_seg")(entry)


def test_camvid_labels_fed_back_score_full_marks(tmp_path: Path) -> None:
    register_camvid(write_camvid(tmp_path))
    results = evaluate("camvid_val_sem_seg")
    assert (results["mIoU"], results["pACC"], results["num_images"]) == (100.0, 100.0, 3)
    assert evaluate("camvid_val_sem_seg", wrong_pixels=9)["mIoU"] < 100.0


@pytest.mark.data
def test_camvid_as_published(real_data: Path) -> None:
    register_camvid(real_data / "camvid")
    assert {part: len(DatasetCatalog.get(f"camvid_{part}_sem_seg")) for part in ("train", "val")} == {
        "train": 367,
        "val": 101,
    }
    entries = DatasetCatalog.get("camvid_train_sem_seg")[:40:8]
    values = set()
    for entry in entries:
        labels = np.asarray(Image.open(entry["sem_seg_file_name"]))
        assert Image.open(entry["file_name"]).size == (480, 360) == labels.shape[::-1]
        values |= set(np.unique(labels).tolist())
    assert values <= set(range(12))
    assert len(values) > 9


@pytest.mark.data
def test_real_camvid_labels_fed_back_score_full_marks(real_data: Path) -> None:
    register_camvid(real_data / "camvid")
    results = evaluate("camvid_val_sem_seg", every=25)
    assert (results["mIoU"], results["num_images"]) == (100.0, 5)


# VOC ----------------------------------------------------------------------------------------------------------------


def test_voc_classes_and_palette() -> None:
    assert voc_split().num_classes == len(VOC_NAMES) == 21
    palette = voc_palette()
    # The development kit's colours of background, aeroplane, person, tvmonitor and void.
    assert [palette[i] for i in (0, 1, 15, 20, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
        (224, 224, 192),
    ]
    assert len(set(palette)) == 256


def test_voc_palette_images_are_read_as_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's own mapper would turn 1, 15, 20 into the grey values 38, 147, 52 of their colours."""
    write_voc(tmp_path, monkeypatch)
    entry = DatasetCatalog.get("voc_2012_train_aug_sem_seg")[0]
    on_disk = Image.open(entry["sem_seg_file_name"])
    assert on_disk.mode == "P"
    assert set(np.unique(np.asarray(on_disk.convert("L")))) & {38, 147, 52, 220}
    sample = mapped("voc_2012_train_aug_sem_seg")(entry)
    np.testing.assert_array_equal(sample["sem_seg"], blocks((0, 1, 15, 20, 255), seed=0))
    assert sample["sem_seg"].unique().tolist() == [0, 1, 15, 20, 255]


def test_voc_sets_follow_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path, monkeypatch)
    folders = {
        part: Path(DatasetCatalog.get(f"voc_2012_{part}_sem_seg")[0]["sem_seg_file_name"]).parent.name
        for part in ("train_aug", "train", "val")
    }
    assert folders == {"train_aug": "SegmentationClassAug", "train": "SegmentationClass", "val": "SegmentationClass"}
    assert [e["image_id"] for e in DatasetCatalog.get("voc_2012_val_sem_seg")] == ["2007_000003", "2007_000004"]


def test_voc_labels_fed_back_score_full_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path, monkeypatch)
    results = evaluate("voc_2012_val_sem_seg")
    assert (results["mIoU"], results["num_images"]) == (100.0, 2)
    assert evaluate("voc_2012_val_sem_seg", wrong_pixels=9)["mIoU"] < 100.0


def test_missing_voc_names_the_cure(tmp_path: Path) -> None:
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"JPEGImages: no such folder.*prepare_voc\.py"):
        DatasetCatalog.get("voc_2012_train_aug_sem_seg")


# Cityscapes ---------------------------------------------------------------------------------------------------------


def test_cityscapes_classes() -> None:
    split = cityscapes_split()
    assert (split.num_classes, len(split.thing_ids)) == (19, 8)
    assert (split.names[0], split.names[18], split.dataset_ids[0], split.dataset_ids[18]) == ("road", "bicycle", 7, 33)


def test_cityscapes_is_read_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cityscapes(tmp_path, monkeypatch)
    entries = DatasetCatalog.get("cityscapes_train_sem_seg")
    assert [entry["image_id"] for entry in entries] == ["aachen_000000_000019", "zurich_000001_000019"]
    sample = mapped("cityscapes_train_sem_seg")(entries[1])
    np.testing.assert_array_equal(sample["sem_seg"], blocks((*range(19), 255), seed=1))
    assert evaluate("cityscapes_val_sem_seg")["mIoU"] == 100.0


# Shapes -------------------------------------------------------------------------------------------------------------


def test_coarse_shapes_labels_agree_with_the_fine_ones(tmp_path: Path) -> None:
    register_all(write_dozen_shapes(tmp_path))
    split = shapes_coarse_split()
    entries = DatasetCatalog.get("shapes_train_sem_seg_coarse")
    assert (len(entries), split.num_classes) == (12, 17)
    fine_split = class_split_of("shapes_val_sem_seg_zss")
    pairs: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        coarse = np.asarray(Image.open(entry["sem_seg_file_name"]))
        fine = np.asarray(Image.open(entry["sem_seg_file_name"].replace("sem_seg_coarse", "sem_seg")))
        assert set(np.unique(coarse).tolist()) <= {*range(17), 255}
        pairs.update(zip(fine.ravel().tolist(), coarse.ravel().tolist(), strict=True))
    # One coarse class for each fine one, and a background keeps its name.
    fine_classes = {one for one, _ in pairs}
    assert len(pairs) == len(fine_classes) > 8
    stuff = [(one, other) for one, other in pairs if not fine_split.is_thing[one]]
    assert stuff
    assert all(fine_split.names[one] == split.names[other] for one, other in stuff)
