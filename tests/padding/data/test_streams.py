# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""TrainStream: pure samples, exact resume, ranks, workers, empty samples; and the loader of a test set."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from padding.data.catalog import register_panoptic
from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from padding.data.streams import TrainStream, _SampleAtPosition, build_eval_loader, load_training_entries, seeded
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic

ENTRIES = [{"name": index} for index in range(7)]


def random_mapper(entry: dict[str, Any]) -> dict[str, Any]:
    """Spoils its entry and draws from all three generators."""
    name = entry.pop("name")
    return {"name": name, "draws": (random.random(), float(np.random.rand()), float(torch.rand(())))}


def none_for_even(entry: dict[str, Any]) -> dict[str, Any] | None:
    return None if entry["name"] % 2 == 0 else random_mapper(entry)


def always_none(entry: dict[str, Any]) -> None:
    return None


def stream(**changes: Any) -> TrainStream:
    settings = {"batch_size": 3, "seed": 5, "rank": 0, "world_size": 1, **changes}
    return TrainStream(settings.pop("dataset", ENTRIES), settings.pop("mapper", random_mapper), **settings)


def take(source: TrainStream, count: int) -> list[list[dict[str, Any]]]:
    return [next(source) for _ in range(count)]


def test_every_epoch_is_another_permutation() -> None:
    samples = [sample for batch in take(stream(batch_size=7), 3) for sample in batch]
    epochs = [[sample["name"] for sample in samples[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({sample["draws"] for sample in samples}) == 21


def test_samples_depend_on_seed_and_position_alone() -> None:
    reference = take(stream(), 6)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert take(stream(), 6) == reference
    assert take(stream(num_workers=2), 6) == reference
    assert take(stream(seed=6), 6) != reference
    flat = [sample for batch in reference for sample in batch]
    assert next(stream(batch_size=1, start=10)) == [flat[10]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_states_are_untouched(num_workers: int) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(stream(num_workers=num_workers), 3)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    torch.testing.assert_close(torch.get_rng_state(), before[2])


def test_seeded_restores_after_an_error() -> None:
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), seeded(1, 2):
        random.random() / 0
    assert random.getstate() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_continues_exactly(num_workers: int) -> None:
    """With workers, prefetched batches must be neither lost nor repeated."""
    reference = take(stream(), 9)
    first = stream(num_workers=num_workers)
    assert take(first, 4) == reference[:4]
    state = first.state_dict()
    assert state == {"position": 12}
    second = stream(num_workers=num_workers)
    second.load_state_dict(state)
    assert take(second, 5) == reference[4:]
    first.load_state_dict({"position": 3})
    assert take(first, 2) == reference[1:3]


def test_two_ranks_interleave_to_the_order_of_one_process() -> None:
    reference = take(stream(batch_size=6), 4)
    ranks = [stream(rank=rank, world_size=2) for rank in range(2)]
    for expected in reference:
        halves = [next(rank) for rank in ranks]
        merged = [sample for pair in zip(*halves, strict=True) for sample in pair]
        assert merged == expected
    assert ranks[0].state_dict() == ranks[1].state_dict() == {"position": 24}


def test_resume_with_another_number_of_processes() -> None:
    one = stream(batch_size=4)
    take(one, 2)
    ranks = [stream(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(one.state_dict())
    halves = [next(rank) for rank in ranks]
    assert [s for pair in zip(*halves, strict=True) for s in pair] == next(one)


def test_empty_samples_are_replaced_reproducibly() -> None:
    samples = take(stream(mapper=none_for_even, batch_size=14), 1)[0]
    assert {sample["name"] for sample in samples} <= {1, 3, 5}
    usual = take(stream(batch_size=14), 1)[0]
    for ours, plain in zip(samples, usual, strict=True):
        assert (ours == plain) == (plain["name"] % 2 == 1)
    assert take(stream(mapper=none_for_even, batch_size=14, num_workers=1), 1)[0] == samples


def test_only_empty_samples_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="stream position 0 gave no sample"):
        next(stream(mapper=always_none))


def test_epoch_counts_passes() -> None:
    source = stream(batch_size=7)
    take(source, 2)
    assert source.epoch == 2.0
    assert source.position == 14


def test_map_style_data_sets_are_taken_as_they_are() -> None:
    class Squares(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"name": index}

    assert take(stream(dataset=Squares()), 3) == take(stream(), 3)


def test_spawned_workers_can_receive_the_data_set() -> None:
    samples = _SampleAtPosition(ENTRIES, dict, seed=1)
    assert [pickle.loads(pickle.dumps(samples))[p] for p in range(9)] == [samples[p] for p in range(9)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": []}, "no image"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 does not exist among 2"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**changes)


NAME = "tiny_for_streams"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPanoptic:
    tiny = write_tiny_panoptic(tmp_path / "tiny")
    content = tiny.read_panoptic_json()
    content["annotations"][3]["segments_info"] = []
    for segment in content["annotations"][2]["segments_info"]:
        segment["iscrowd"] = 1
    tiny.write_panoptic_json(content)
    register_panoptic(NAME, **tiny.registration)
    return tiny


def test_images_without_a_target_are_left_out_of_training(tiny: TinyPanoptic, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert [entry["image_id"] for entry in load_training_entries((NAME,), filter_empty=True)] == [1, 2]
    assert "kept 2 of 4 images" in caplog.text
    assert len(load_training_entries((NAME, NAME), filter_empty=False)) == 8


def test_training_on_nothing_is_an_error(tiny: TinyPanoptic) -> None:
    DatasetCatalog.register("tiny_empty", lambda: [{"file_name": "a", "annotations": []}])
    try:
        with pytest.raises(ValueError, match="none of the 1 images of tiny_empty holds a segment"):
            load_training_entries(("tiny_empty",), filter_empty=True)
    finally:
        DatasetCatalog.remove("tiny_empty")


def test_label_spaces_must_agree(tiny: TinyPanoptic) -> None:
    narrow = {**tiny.registration, "class_split": tiny.class_split.seen_only()}
    register_panoptic("tiny_for_streams_narrow", **narrow, unseen_policy="ignore_pixels")
    with pytest.raises(ValueError, match=r"mixes label spaces: .*'tiny_for_streams_narrow': 4"):
        load_training_entries((NAME, "tiny_for_streams_narrow"), filter_empty=True)


def test_unlabelled_entries_are_kept() -> None:
    DatasetCatalog.register("tiny_unlabelled", lambda: [{"file_name": "a"}])
    try:
        assert load_training_entries(("tiny_unlabelled",), filter_empty=True) == [{"file_name": "a"}]
    finally:
        DatasetCatalog.remove("tiny_unlabelled")


def test_stream_and_test_loader_of_a_registered_set(tiny: TinyPanoptic) -> None:
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.INPUT.IMAGE_SIZE = 48
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.DATALOADER.NUM_WORKERS = 0
    entries = load_training_entries((NAME,), filter_empty=True)
    source = TrainStream(entries, build_mapper(cfg, is_train=True), batch_size=2, seed=0, num_workers=1)
    again = TrainStream(entries, build_mapper(cfg, is_train=True), batch_size=2, seed=0)
    for ours, other in zip(next(source), next(again), strict=True):
        torch.testing.assert_close(ours["image"], other["image"])
        torch.testing.assert_close(ours["instances"].gt_masks, other["instances"].gt_masks)
    batches = list(build_eval_loader(cfg, NAME))
    assert [batch[0]["image_id"] for batch in batches] == [1, 2, 3, 4]
    assert batches[0][0]["image"].shape == (3, 32, 48)
