# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Streams: pure samples, exact resume, ranks, workers, empty samples, pairs; and the loader of a test set."""

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
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
from padding.data.streams import (
    PairedStream,
    TrainStream,
    _SampleAtPosition,
    build_eval_loader,
    load_training_entries,
    seeded,
)
from padding.errors import ConfigError
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


def test_crowds_are_counted_and_named_where_nothing_else_is_left(caplog: pytest.LogCaptureFixture) -> None:
    objects = [{"iscrowd": 1}, {"iscrowd": 1}, {"iscrowd": 0}]
    entries = {
        "crowds_all": [{"file_name": "a", "annotations": objects[:2]}],
        "crowds_some": [{"file_name": "a", "annotations": objects}, {"file_name": "b", "segments_info": objects}],
        "crowds_few": [{"file_name": "a", "annotations": [objects[0], *objects[2:] * 99]}],
    }
    for name, listed in entries.items():
        DatasetCatalog.register(name, lambda listed=listed: listed)
    try:
        with pytest.raises(
            ConfigError, match=r"none of the 1 images of crowds_all .*; 2 of 2 objects .*iscrowd 1.*CVAT"
        ):
            load_training_entries(("crowds_all",), filter_empty=True)
        caplog.clear()
        load_training_entries(("crowds_some",), filter_empty=True)
        assert "crowds_some: 4 of 6 objects are left out of instance and panoptic training as crowds" in caplog.text
        caplog.clear()
        load_training_entries(("crowds_all",), filter_empty=False)
        assert "2 of 2 objects" in caplog.text
        caplog.clear()
        with caplog.at_level("INFO"):
            load_training_entries(("crowds_few",), filter_empty=True)
        assert [(r.levelname, "1 of 100 objects" in r.getMessage()) for r in caplog.records] == [("INFO", True)]
    finally:
        for name in entries:
            DatasetCatalog.remove(name)


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


# Paired streams ------------------------------------------------------------------------------------------------------

UNLABELED = [{"name": name} for name in "abcdefghijk"]


def paired(*, b: int = 2, u: int = 3, partner: bool = True, **changes: Any) -> PairedStream:
    """7 numbers and 11 letters, with a partner for each letter."""
    settings = {"rank": 0, "world_size": 1, "mapper": random_mapper, **changes}
    first = stream(batch_size=b, seed=5, **settings)
    second = stream(dataset=UNLABELED, batch_size=u, seed=6, **settings)
    third = stream(dataset=UNLABELED, batch_size=u, seed=7, differs_from=second, **settings)
    return PairedStream({"labeled": first, "unlabeled": second}, partners={"unlabeled": third} if partner else None)


def test_a_batch_holds_one_stream_after_the_other_each_as_it_is_alone() -> None:
    labeled, unlabeled = stream(batch_size=2, seed=5), stream(dataset=UNLABELED, batch_size=3, seed=6)
    source = paired(partner=False)
    for batch in take(source, 8):
        assert batch == [*next(labeled), *next(unlabeled)]
    assert source.position == 8 * 5
    assert source.epochs == {"labeled": 16 / 7, "unlabeled": 24 / 11}


def test_partners_change_nothing_else() -> None:
    for batch, plain in zip(take(paired(), 8), take(paired(partner=False), 8), strict=True):
        partners = [sample.pop("partner", None) for sample in batch]
        assert batch == plain
        assert [partner is None for partner in partners] == [True] * 2 + [False] * 3


@pytest.mark.parametrize("u", [1, 3, 11])
def test_a_partner_never_shows_the_same_image(u: int) -> None:
    """With one image a process there is nothing to exchange within a batch."""
    samples = [sample for batch in take(paired(u=u), 330 // u) for sample in batch[2:]]
    pairs = {(sample["name"], sample["partner"]["name"]) for sample in samples}
    assert all(name != other for name, other in pairs)
    assert len(pairs) > 80, "330 draws reach most of the 110 pairs"


def test_partners_cover_the_set_about_evenly() -> None:
    counts = Counter(sample["partner"]["name"] for batch in take(paired(u=11), 60) for sample in batch[2:])
    # Each epoch of 11 draws shows every image once, but for the one in eleven that is replaced.
    assert min(counts.values()) > 40
    assert max(counts.values()) < 80


def test_the_only_image_is_its_own_partner() -> None:
    alone = [{"name": "only"}]
    second = stream(dataset=alone, batch_size=1)
    source = PairedStream({"s": second}, partners={"s": stream(dataset=alone, batch_size=1, differs_from=second)})
    assert next(source)[0]["partner"]["name"] == "only"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_paired_streams_resume_exactly_at_any_step(num_workers: int) -> None:
    reference = take(paired(), 9)
    for step in (1, 4) if num_workers else range(9):
        first, second = paired(num_workers=num_workers), paired(num_workers=num_workers)
        assert take(first, step) == reference[:step]
        second.load_state_dict(first.state_dict())
        assert take(second, 9 - step) == reference[step:]


def test_the_seed_of_one_stream_leaves_the_other_alone() -> None:
    def batches(seed: int) -> list[Any]:
        pair = {"l": stream(batch_size=2, seed=5), "u": stream(dataset=UNLABELED, batch_size=2, seed=seed)}
        return take(PairedStream(pair), 6)

    one, other = batches(6), batches(8)
    assert [batch[:2] for batch in one] == [batch[:2] for batch in other]
    assert [batch[2:] for batch in one] != [batch[2:] for batch in other]


def test_two_ranks_share_the_batches_of_one_process() -> None:
    ranks = [paired(b=1, u=2, rank=rank, world_size=2) for rank in range(2)]
    for expected in take(paired(b=2, u=4), 12):
        one, two = (next(rank) for rank in ranks)
        assert [one[0], two[0], one[1], two[1], one[2], two[2]] == expected
    assert ranks[0].state_dict() == ranks[1].state_dict()
    assert ranks[0].position == 12 * 6


def test_workers_change_no_batch() -> None:
    assert take(paired(num_workers=2), 6) == take(paired(), 6)


def test_states_of_other_streams_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions of streams \[\], this training has \['unlabeled'\]; resume with"):
        paired().load_state_dict(paired(partner=False).state_dict())
    with pytest.raises(ValueError, match=r"this training has \['labeled', 'unlabeled'\]"):
        paired().load_state_dict(stream().state_dict())


def test_partners_of_nobody_and_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="partners of 'v', but the streams are u"):
        PairedStream({"u": stream()}, partners={"v": stream()})
    with pytest.raises(ValueError, match="a stream of 11 images cannot differ from one of 7"):
        stream(dataset=UNLABELED, differs_from=stream())


def test_fingerprint_follows_what_is_learnt_from_and_not_the_folder() -> None:
    def fingerprint(folder: str = "/a", **changes: Any) -> str:
        first = {
            "file_name": f"{folder}/1.jpg",
            "image_id": 1,
            "height": 4,
            "width": 5,
            "annotations": [BOX],
            **changes,
        }
        entries = [
            first,
            {"file_name": f"{folder}/2.jpg", "image_id": 2, "segments_info": [{"id": 3, "category_id": 0}]},
        ]
        return TrainStream(entries, random_mapper, batch_size=1, seed=0).fingerprint()

    BOX = {"id": 1, "category_id": 2, "bbox": [0, 0, 2, 2]}
    same = fingerprint()
    assert same == fingerprint("/elsewhere")
    assert same.startswith("2 images (")
    others = [{"image_id": 9}, {"height": 5}, {"file_name": "/a/3.jpg"}, {"annotations": []}]
    others += [{"annotations": [{**BOX, "category_id": 1}]}, {"annotations": [{**BOX, "bbox": [0, 0, 2, 3]}]}]
    assert len({same, *(fingerprint(**change) for change in others)}) == 7
    streams = {name: TrainStream(ENTRIES, random_mapper, batch_size=1, seed=0) for name in ("a", "b")}
    assert PairedStream(streams).fingerprint().startswith("a: 7 images (")


def test_signals_wait_while_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TrainStream(ENTRIES, worker_process, batch_size=1, seed=0, num_workers=1)
    build, built = stream._build_loader, []

    def interrupted() -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        built.append(build())
        return built[0]

    monkeypatch.setattr(stream, "_build_loader", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert built
    monkeypatch.undo()
    assert next(stream)[0]["interrupt"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


def worker_process(entry: dict[str, Any]) -> dict[str, Any]:
    return {"process": os.getpid(), "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}


def test_workers_leave_signals_to_the_trainer() -> None:
    stream = TrainStream(ENTRIES, worker_process, batch_size=1, seed=0, num_workers=1)
    (sample,) = next(stream)
    assert sample["interrupt"]
    worker = sample["process"]
    for number in (signal.SIGINT, signal.SIGTERM):  # from a process that is not the worker's parent
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker}, {int(number)})"], check=True)
    for _ in range(20):  # more than were read ahead
        assert next(stream)[0]["process"] == worker
    os.kill(worker, signal.SIGTERM)
    (child,) = [process for process in multiprocessing.active_children() if process.pid == worker]
    child.join(30)
    assert child.exitcode == 0
    assert not next(TrainStream(ENTRIES, worker_process, batch_size=1, seed=0))[0]["interrupt"]
