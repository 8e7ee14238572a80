# SPDX-License-Identifier: Apache-2.0
"""From a configuration to images with class labels and images with saliency side by side."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.catalog import register_all
from padding.data.prepare.split_lists import write_split
from padding.data.registration import register_listed_images
from padding.data.saliency.stream import (
    build_saliency_stream,
    load_joint_entries,
    load_saliency_entries,
    load_segmentation_entries,
)
from padding.data.streams import PairedStream, TrainStream
from padding.engine import add_core_config
from tests.tiny_dense import blocks, noise, save, write_camvid

pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight street scenes, three of them labeled, and five photographs with saliency of their own."""
    register_all(tmp_path)
    write_camvid(tmp_path, count=8)
    write_split(tmp_path / "lists", [f"frame{i}" for i in range(3)], [f"frame{i}" for i in range(3, 8)])
    for i in range(5):
        save(tmp_path / "ECSSD" / "images" / f"photo{i}.jpg", noise(i))
        save(tmp_path / "ECSSD" / "masks" / f"photo{i}.png", blocks((0, 255), seed=i))
    return tmp_path


def config(data: Path, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.SPLIT = ("camvid_train_sem_seg",), str(data / "lists")
    cfg.DATASETS.TRAIN_SALIENCY = ("camvid_train_saliency",)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.SEMANTIC_MASKS = "semantic_scale_crop", False
    cfg.INPUT.CROP.SIZE, cfg.INPUT.SALIENCY.SIZE, cfg.INPUT.FORMAT = [32, 32], (24, 40), "RGB"
    cfg.SOLVER.IMS_PER_BATCH_SALIENCY = 3
    cfg.merge_from_list([*opts])
    return cfg


def build(cfg: CfgNode, **changes: Any) -> Any:
    settings = {"segmentation_per_batch": 2, "saliency_per_batch": 3, "seed": 1, "rank": 0, "world_size": 1}
    return build_saliency_stream(cfg, num_workers=0, **{**settings, **changes})


def names(entries: Any) -> list[str]:
    return [Path(entry["file_name"]).stem for entry in entries]


def test_a_split_keeps_the_two_kinds_of_images_apart(data: Path) -> None:
    cfg = config(data)
    assert names(load_segmentation_entries(cfg)) == ["frame0", "frame1", "frame2"]
    assert names(load_saliency_entries(cfg)) == [f"frame{i}" for i in range(3, 8)]


def test_sets_that_the_split_does_not_know_stay_complete(data: Path) -> None:
    photos = [f"photo{i}" for i in range(5)]
    cfg = config(data, "DATASETS.TRAIN_SALIENCY", ("ecssd_test",))
    assert names(load_saliency_entries(cfg)) == photos
    cfg = config(data, "DATASETS.TRAIN_SALIENCY", ("ecssd_test", "camvid_train_saliency"))
    assert names(load_saliency_entries(cfg)) == [*[f"frame{i}" for i in range(3, 8)], *photos]


def test_unlabeled_images_that_a_known_set_lacks_are_an_error(data: Path) -> None:
    write_split(data / "more", ("frame0",), ("frame1", "frame77"))
    with pytest.raises(ValueError, match=r"1 of 2 images of the split .*more' are not in camvid_train_saliency"):
        load_saliency_entries(config(data, "DATASETS.SPLIT", str(data / "more")))


def test_without_a_split_images_may_be_in_both_streams_and_are_reported(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    build(config(data))
    assert "3 images with class labels, 5 with saliency" in caplog.text
    assert "in both streams" not in caplog.text
    build(config(data, "DATASETS.SPLIT", ""))
    assert "8 images are in both streams" in caplog.text


def test_batches_hold_class_labels_then_saliency(data: Path) -> None:
    source = build(config(data))
    assert isinstance(source, PairedStream)
    for _ in range(4):
        batch = next(source)
        assert all("sem_seg" in one and "saliency" not in one for one in batch[:2])
        assert all("saliency" in one and "sem_seg" not in one for one in batch[2:])
        assert {*names(batch[:2])} <= {f"frame{i}" for i in range(3)}
        assert {*names(batch[2:])} <= {f"frame{i}" for i in range(3, 8)}
        assert [tuple(one["image"].shape) for one in batch] == [(3, 32, 32)] * 2 + [(3, 24, 40)] * 3
    assert source.epochs == {"segmentation": 8 / 3, "saliency": 12 / 5}


def test_class_labels_are_the_same_with_and_without_saliency(data: Path) -> None:
    """The baseline differs from the method in nothing else."""
    alone, both = build(config(data), saliency_per_batch=0), build(config(data))
    assert isinstance(alone, TrainStream)
    for _ in range(3):
        for one, other in zip(next(alone), next(both)[:2], strict=True):
            assert one["file_name"] == other["file_name"]
            assert torch.equal(one["image"], other["image"])


def test_the_baseline_opens_no_saliency(data: Path) -> None:
    cfg = config(data, "DATASETS.TRAIN_SALIENCY", ("duts_train",))
    assert len(next(build(cfg, saliency_per_batch=0))) == 2


def test_saliency_alone_for_a_first_stage(data: Path) -> None:
    alone, both = build(config(data), segmentation_per_batch=0), build(config(data))
    assert isinstance(alone, TrainStream)
    for one, other in zip(next(alone), next(both)[2:], strict=True):
        assert torch.equal(one["saliency"], other["saliency"])


def test_streams_are_shuffled_apart(data: Path) -> None:
    """With one set in both and a common seed, a step would see every image twice."""
    source = build(config(data, "DATASETS.SPLIT", ""), segmentation_per_batch=1, saliency_per_batch=1)
    pairs = [names(next(source)) for _ in range(32)]
    assert sum(one == other for one, other in pairs) < 16


def test_joint_batches_carry_both_labels_of_one_image(data: Path) -> None:
    cfg = config(data, "DATASETS.SALIENCY_BATCHES", "joint")
    source = build(cfg, saliency_per_batch=2)
    assert isinstance(source, TrainStream)
    for sample in next(source):
        assert names([sample])[0] in {"frame0", "frame1", "frame2"}
        assert sample["sem_seg"].shape == sample["saliency_valid"].shape == (32, 32)
        known = sample["saliency_valid"] & (sample["sem_seg"] != 255)
        salient = torch.isin(sample["sem_seg"], torch.tensor([6, 8, 9, 10]))
        assert (salient[known] == sample["saliency"][0][known].bool()).float().mean() > 0.8
    without = build(cfg, saliency_per_batch=0)
    assert "saliency" not in next(without)[0]


def test_joint_entries_of_maps_are_found_by_the_image_file(data: Path) -> None:
    """A set of maps for some of the images; the others are left out."""
    images, maps = data / "camvid" / "images" / "train", data / "maps"
    mapped = [
        {"file_name": str(images / f"frame{i}.jpg"), "saliency_file_name": str(maps / f"{i}.png")} for i in (4, 1)
    ]
    DatasetCatalog.register("camvid_maps", lambda: mapped)
    opts = ("DATASETS.SALIENCY_BATCHES", "joint", "DATASETS.TRAIN_SALIENCY", ("camvid_maps",), "DATASETS.SPLIT", "")
    joint = load_joint_entries(config(data, *opts))
    assert names(joint) == ["frame1", "frame4"]
    assert [entry["saliency_file_name"] for entry in joint] == [str(maps / "1.png"), str(maps / "4.png")]
    assert all("sem_seg_file_name" in entry for entry in joint)


def test_joint_batches_need_images_with_both_labels(data: Path) -> None:
    joint = ("DATASETS.SALIENCY_BATCHES", "joint")
    cfg = config(data, *joint, "DATASETS.TRAIN_SALIENCY", ("ecssd_test",))
    with pytest.raises(ValueError, match=r"none of the 3 images of camvid_train_sem_seg has saliency .*ecssd_test"):
        build(cfg, saliency_per_batch=2)
    with pytest.raises(ValueError, match=r"3 images with saliency and 2 with classes are asked for; set SOLVER\.IMS"):
        build(config(data, *joint))
    with pytest.raises(ValueError, match=r"NAME is 'coco_panoptic_lsj', but joint batches have semantic labels"):
        build(config(data, *joint, "INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj"), saliency_per_batch=2)


def test_joint_saliency_is_not_derived_from_other_labels(data: Path) -> None:
    """Scribbles would make everything between them background."""
    images = data / "camvid" / "images" / "train"
    split = MetadataCatalog.get("camvid_train_sem_seg").class_split
    register_listed_images("sketched", class_split=split, image_root=images, label_root=data / "scribbles")
    opts = ("DATASETS.TRAIN", ("sketched",), "DATASETS.SALIENCY_BATCHES", "joint")
    with pytest.raises(ValueError, match=r"saliency is derived from .*labels/train/frame0\.png, .*use 'paired' ones"):
        load_joint_entries(config(data, *opts))


def test_settings_without_images(data: Path) -> None:
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH_SALIENCY is 3, but no image has saliency: name sets in"):
        build(config(data, "DATASETS.TRAIN_SALIENCY", ()))
    with pytest.raises(ValueError, match=r"names 'duts', which is not registered"):
        build(config(data, "DATASETS.TRAIN_SALIENCY", ("duts",)))
    with pytest.raises(ValueError, match=r"names 'camvid_val_sem_seg', but 8 of its 8 images have none"):
        build(config(data, "DATASETS.TRAIN_SALIENCY", ("camvid_val_sem_seg",)))
    with pytest.raises(ValueError, match=r"SALIENCY_BATCHES is 'mixed'; choose one of paired, joint"):
        build(config(data, "DATASETS.SALIENCY_BATCHES", "mixed"))


def test_two_ranks_and_a_resume_give_the_batches_of_one_process(data: Path) -> None:
    cfg = config(data, "INPUT.RANDOM_FLIP", "horizontal")
    one = build(cfg, segmentation_per_batch=2, saliency_per_batch=4)
    sizes = {"segmentation_per_batch": 1, "saliency_per_batch": 2, "world_size": 2}
    ranks = [build(cfg, rank=r, **sizes) for r in range(2)]
    for step in range(5):
        if step == 2:
            state = one.state_dict()
            ranks = [build(cfg, rank=r, **sizes) for r in range(2)]
            for rank in ranks:
                rank.load_state_dict(state)
        expected, (left, right) = next(one), [next(rank) for rank in ranks]
        merged = [left[0], right[0], left[1], right[1], left[2], right[2]]
        for ours, other in zip(merged, expected, strict=True):
            assert ours["file_name"] == other["file_name"]
            assert torch.equal(ours["image"], other["image"])
