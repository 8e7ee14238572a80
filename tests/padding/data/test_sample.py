# SPDX-License-Identifier: Apache-2.0
"""The types of sample.py describe what loader and mappers really produce."""

from pathlib import Path
from typing import get_type_hints

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from padding.data.catalog import register_panoptic
from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from padding.data.saliency.mapper import SaliencyMapper
from padding.data.sample import IGNORE_LABEL, LABEL_DIVISOR, DatasetDict, SegmentInfo, TrainSample
from padding.data.sets.camvid import register_camvid
from padding.data.sets.saliency import load_derived_saliency, load_saliency
from tests.tiny_data import tiny_split, write_tiny_panoptic
from tests.tiny_dense import blocks, save, write_camvid

NAME = "tiny_for_sample"
SALIENCY = {"saliency_file_name", "salient_classes", "sem_seg_label_map"}  # only entries of saliency sets have them


@pytest.mark.parametrize("mapper", ["SemanticMapper", "PanopticMapper"])
def test_keys_are_the_documented_ones(tmp_path: Path, mapper: str) -> None:
    tiny = write_tiny_panoptic(tmp_path)
    split = tiny.class_split.seen_only()
    arguments = {**tiny.registration, "class_split": split, "sem_seg_root": tiny.sem_seg_root}
    register_panoptic(NAME, **arguments, unseen_policy="ignore_pixels")
    entry = DatasetCatalog.get(NAME)[1]
    assert set(entry) == set(get_type_hints(DatasetDict)) - {"annotations", *SALIENCY}
    assert set(entry["segments_info"][0]) == set(get_type_hints(SegmentInfo))
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    sample = build_mapper(cfg, is_train=True)(entry)
    assert sample is not None
    added = set(sample) - set(entry)
    assert added
    assert added <= set(TrainSample.__annotations__)


def test_keys_of_saliency_are_the_documented_ones(tmp_path: Path) -> None:
    write_camvid(tmp_path, count=1)
    save(tmp_path / "maps" / "frame0.png", blocks((0, 255), seed=0))
    register_camvid(tmp_path / "camvid")
    (derived,) = load_derived_saliency("camvid_train_sem_seg", (8,))
    (own,) = load_saliency(tmp_path, images=("camvid/images/train",), masks=("maps",))
    assert set(derived) | set(own) == {"file_name", "image_id", "sem_seg_file_name", *SALIENCY}
    cfg = get_cfg()
    add_input_config(cfg)
    for entry in (derived, own):
        sample = SaliencyMapper(cfg, is_train=True)(entry)
        assert sample is not None
        assert set(sample) - set(entry) <= set(TrainSample.__annotations__)


def test_constants_do_not_collide_with_classes_or_instances() -> None:
    assert tiny_split().num_classes <= IGNORE_LABEL < LABEL_DIVISOR
