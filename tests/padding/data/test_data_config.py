# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Input keys: official YAML text loads unchanged, and every key changes what the mappers do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from padding.data.catalog import register_panoptic
from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from tests.tiny_data import write_tiny_panoptic

NAME = "tiny_for_config"
# INPUT section of the published COCO panoptic and ADE20K configurations of Mask2Former.
OFFICIAL = """
INPUT:
  IMAGE_SIZE: 1024
  MIN_SCALE: 0.1
  MAX_SCALE: 2.0
  FORMAT: "RGB"
  DATASET_MAPPER_NAME: "coco_panoptic_lsj"
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  CROP:
    ENABLED: True
    TYPE: "absolute"
    SIZE: (512, 512)
    SINGLE_CATEGORY_MAX_AREA: 1.0
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 512
"""


def config() -> CfgNode:
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "RGB", "none"
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 96, 1.0, 1.0
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    return cfg


@pytest.fixture
def entry(tmp_path: Path) -> dict[str, Any]:
    tiny = write_tiny_panoptic(tmp_path)
    register_panoptic(NAME, **tiny.registration)
    Image.fromarray(np.full((64, 96), 51, np.uint8)).save(tmp_path / "grey.png")
    return {**DatasetCatalog.get(NAME)[0], "grey_file_name": str(tmp_path / "grey.png")}


def test_official_sections_load(tmp_path: Path) -> None:
    (tmp_path / "official.yaml").write_text(OFFICIAL)
    cfg = config()
    cfg.merge_from_file(str(tmp_path / "official.yaml"))
    assert list(cfg.INPUT.CROP.SIZE) == [512, 512]
    assert cfg.INPUT.SIZE_DIVISIBILITY == 512


def signature(sample: dict[str, Any]) -> list[Any]:
    """What can differ between two samples, in comparable form."""
    image = sample["image"]
    return [sorted(sample), tuple(image.shape), image.long().sum().item(), sample.get("label")]


def mapped(entry: dict[str, Any], mapper: str, overrides: list[Any]) -> list[Any]:
    cfg = config()
    cfg.merge_from_list(["INPUT.DATASET_MAPPER_NAME", mapper, *overrides])
    signatures = []
    for seed in range(4):
        np.random.seed(seed)
        torch.manual_seed(seed)
        sample = build_mapper(cfg, is_train=True)(entry)
        assert sample is not None
        signatures.append(signature(sample))
    return signatures


CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (32, 32)]
SMALL = ["INPUT.CROP.SIZE", (32, 32)]


@pytest.mark.parametrize(
    ("mapper", "base", "override"),
    [
        ("coco_panoptic_lsj", [], ["INPUT.IMAGE_SIZE", 64]),
        ("coco_panoptic_lsj", [], ["INPUT.MIN_SCALE", 0.3]),
        ("coco_panoptic_lsj", [], ["INPUT.MAX_SCALE", 3.0]),
        ("coco_panoptic_lsj", [], ["INPUT.IMAGE_PAD_VALUE", 0]),
        ("coco_panoptic_lsj", [], ["INPUT.RANDOM_FLIP", "horizontal", "INPUT.MIN_SCALE", 0.9]),
        ("coco_panoptic_lsj", [], ["INPUT.EXTRA_MAPS", ["grey"]]),
        ("mask_former_semantic", [], CROP),
        ("mask_former_semantic", CROP, ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.5]),
        ("mask_former_semantic", [], ["INPUT.MIN_SIZE_TRAIN", (32, 48)]),
        ("mask_former_semantic", [], ["INPUT.MAX_SIZE_TRAIN", 48]),
        ("mask_former_semantic", [], ["INPUT.COLOR_AUG_SSD", True]),
        ("mask_former_semantic", [], ["INPUT.SIZE_DIVISIBILITY", 100]),
        ("mask_former_semantic", [], ["INPUT.SEMANTIC_MASKS", False]),
        ("mask_former_semantic", [], ["INPUT.ROTATION", 10.0]),
        ("mask_former_semantic", [*CROP, "INPUT.ROTATION", 45.0], ["INPUT.CROP.MIN_LABELED", 10_000]),
        ("mask_former_semantic", [], ["INPUT.VALID_MASK", True]),
        ("mask_former_semantic", [], ["INPUT.STRONG_VIEW", True]),
        ("semantic_scale_crop", SMALL, ["INPUT.CROP.SIZE", (24, 32)]),
        ("semantic_scale_crop", SMALL, ["INPUT.SCALE_FACTORS", (2.0,)]),
        ("semantic_scale_crop", SMALL, ["INPUT.SCALE_SAMPLING", "range"]),
        ("mask_former_semantic", [], ["INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj"]),
    ],
)
def test_every_key_has_an_effect(entry: dict[str, Any], mapper: str, base: list[Any], override: list[Any]) -> None:
    assert mapped(entry, mapper, base) != mapped(entry, mapper, [*base, *override])
    assert mapped(entry, mapper, base) == mapped(entry, mapper, base)
