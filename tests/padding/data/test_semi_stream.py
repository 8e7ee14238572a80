# SPDX-License-Identifier: Apache-2.0
"""From a configuration to labeled and unlabeled images side by side."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from padding.data.catalog import register_all
from padding.data.prepare.split_lists import write_split
from padding.data.registration import register_listed_images
from padding.data.semi_stream import build_semi_supervised_stream, load_semi_supervised_entries
from padding.data.sets.camvid import register_camvid
from padding.data.shapes.classes import shapes_coarse_split
from padding.data.streams import PairedStream, TrainStream
from padding.engine import add_core_config
from tests.tiny_dense import write_camvid

NAME = "camvid_train_sem_seg"


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """CamVid of ten images, four with labels; the labels of the others do not exist."""
    register_camvid(write_camvid(tmp_path, count=10))
    names = [f"frame{i}" for i in range(10)]
    write_split(tmp_path / "lists", names[:4], names[4:])
    for name in names[4:]:
        (tmp_path / "camvid" / "labels" / "train" / f"{name}.png").unlink()
    yield tmp_path
    register_all()


def config(folder: Path, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.SPLIT = (NAME,), str(folder / "lists")
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.SEMANTIC_MASKS = "semantic_scale_crop", False
    cfg.INPUT.CROP.SIZE, cfg.INPUT.VALID_MASK, cfg.INPUT.FORMAT = [32, 32], True, "RGB"
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 3
    cfg.merge_from_list([*opts])
    return cfg


def build(cfg: CfgNode, **changes: Any) -> Any:
    settings = {"labeled_per_batch": 2, "unlabeled_per_batch": 3, "seed": 1, "rank": 0, "world_size": 1}
    return build_semi_supervised_stream(cfg, num_workers=0, **{**settings, **changes})


def names(entries: Any) -> list[str]:
    return [Path(entry["file_name"]).stem for entry in entries]


def test_entries_follow_the_lists(data: Path) -> None:
    labeled, unlabeled = load_semi_supervised_entries(config(data))
    assert names(labeled) == [f"frame{i}" for i in range(4)]
    assert names(unlabeled) == [f"frame{i}" for i in range(4, 10)]


def test_split_is_logged_with_its_digest(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load_semi_supervised_entries(config(data))
    assert "4 labeled, 6 unlabeled, lists " in caplog.text


def test_without_a_split_everything_is_labeled(data: Path) -> None:
    labeled, unlabeled = load_semi_supervised_entries(config(data, "DATASETS.SPLIT", ""))
    assert (len(labeled), unlabeled) == (10, [])


def register_more(data: Path) -> str:
    """A folder of five further images without any labels."""
    (data / "more").mkdir()
    for i in range(5):
        shutil.copy(data / "camvid" / "images" / "val" / f"frame{i}.jpg", data / "more" / f"extra{i}.jpg")
    register_listed_images(
        "more_images", class_split=shapes_coarse_split(), image_root=data / "more", label_root=data / "none"
    )
    return "more_images"


def test_unlabeled_images_of_a_set_of_their_own(data: Path) -> None:
    """Their label space does not matter."""
    opts = ("DATASETS.TRAIN_UNLABELED", (register_more(data),))
    labeled, unlabeled = load_semi_supervised_entries(config(data, *opts, "DATASETS.SPLIT", ""))
    assert (len(labeled), names(unlabeled)) == (10, [f"extra{i}" for i in range(5)])
    write_split(data / "both", ("frame1",), ("extra3", "extra0"))
    labeled, unlabeled = load_semi_supervised_entries(config(data, *opts, "DATASETS.SPLIT", str(data / "both")))
    assert (names(labeled), names(unlabeled)) == (["frame1"], ["extra3", "extra0"])


def test_lists_of_other_data_are_an_error(data: Path) -> None:
    with pytest.raises(ValueError, match=r"46 of 46 images of the split 'camvid/1_8' are not in camvid_train_sem_seg"):
        load_semi_supervised_entries(config(data, "DATASETS.SPLIT", "camvid/1_8"))


def test_batches_hold_labeled_then_unlabeled_samples(data: Path) -> None:
    source = build(config(data))
    assert isinstance(source, PairedStream)
    for _ in range(4):
        batch = next(source)
        assert all("sem_seg" in sample and sample["is_labeled"] is True for sample in batch[:2])
        assert all("sem_seg" not in sample and sample["is_labeled"] is False for sample in batch[2:])
        assert {*names(batch[:2])} <= {f"frame{i}" for i in range(4)}
        assert {*names(batch[2:])} <= {f"frame{i}" for i in range(4, 10)}
        assert all(sample["valid"].shape == (32, 32) for sample in batch)
    assert source.epochs == {"labeled": 2.0, "unlabeled": 2.0}


def test_partners_are_other_unlabeled_images(data: Path) -> None:
    source = build(config(data), unlabeled_per_batch=1, partner=True)
    pairs = set()
    for _ in range(30):
        *labeled, sample = next(source)
        assert not any("partner" in one for one in labeled)
        pairs.add((*names([sample]), *names([sample["partner"]])))
        assert "sem_seg" not in sample["partner"]
    assert all(one != other for one, other in pairs)
    assert len(pairs) > 10


def test_the_supervised_baseline_reads_no_unlabeled_image(data: Path) -> None:
    for i in range(4, 10):
        (data / "camvid" / "images" / "train" / f"frame{i}.jpg").write_text("no image")
    source = build(config(data), unlabeled_per_batch=0)
    assert isinstance(source, TrainStream)
    assert {name for _ in range(4) for name in names(next(source))} == {f"frame{i}" for i in range(4)}


def test_labeled_batches_are_the_same_with_and_without_unlabeled_images(data: Path) -> None:
    """The baseline differs from the method in nothing else."""
    alone, both = build(config(data), unlabeled_per_batch=0), build(config(data))
    for _ in range(3):
        for one, other in zip(next(alone), next(both)[:2], strict=True):
            assert one["file_name"] == other["file_name"]
            assert torch.equal(one["image"], other["image"])


def test_two_ranks_and_a_resume_give_the_batches_of_one_process(data: Path) -> None:
    cfg = config(data)
    one = build(cfg, labeled_per_batch=2, unlabeled_per_batch=2, partner=True)
    ranks = [
        build(cfg, labeled_per_batch=1, unlabeled_per_batch=1, rank=r, world_size=2, partner=True) for r in range(2)
    ]
    for step in range(6):
        if step == 3:
            state = one.state_dict()
            ranks = [
                build(cfg, labeled_per_batch=1, unlabeled_per_batch=1, rank=r, world_size=2, partner=True)
                for r in range(2)
            ]
            for rank in ranks:
                rank.load_state_dict(state)
        expected, halves = next(one), [next(rank) for rank in ranks]
        merged = [halves[0][0], halves[1][0], halves[0][1], halves[1][1]]
        for ours, other in zip(merged, expected, strict=True):
            assert torch.equal(ours["image"], other["image"])
            if "partner" in other:
                assert torch.equal(ours["partner"]["image"], other["partner"]["image"])


def test_seeds_differ_between_the_streams_and_between_runs(data: Path) -> None:
    """With one set as both pools a common seed would pair every image with itself."""
    opts = ("DATASETS.SPLIT", "", "DATASETS.TRAIN_UNLABELED", (register_more(data),))
    cfg = config(data, *opts, "DATASETS.TRAIN", ("more_images",))
    # Labels do not exist, so the unlabeled stream alone is looked at; positions decide, not pictures.
    one, other = build(cfg), build(cfg, seed=2)
    draws = [[s.streams["unlabeled"]._samples.entry_index(p, 0) for p in range(40)] for s in (one, other)]
    labeled = [one.streams["labeled"]._samples.entry_index(p, 0) for p in range(40)]
    assert draws[0] != draws[1]
    assert sum(a == b for a, b in zip(draws[0], labeled, strict=True)) < 20


def test_unlabeled_images_that_are_asked_for_but_missing(data: Path) -> None:
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH_UNLABELED is 3, but no image is unlabeled: set DATASETS"):
        build(config(data, "DATASETS.SPLIT", ""))
