# SPDX-License-Identifier: Apache-2.0
"""The stored sample of training features: bounded, unbiased, safe to read, written in training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from padding.bank.feature_bank import FeatureBatch, weights_digest
from padding.bank.seen_statistics import FILE_NAME, SeenStatistics, open_bank, statistics_of_bank
from padding.errors import DataError
from padding.trainer import GeneratorClassifierTrainer

NAMES = ("cat", "dog", "zebra")
NO_OBJECT = 3


def features(labels: list[int], weights: list[float] | None = None, start: int = 0) -> FeatureBatch:
    """Row i is i everywhere, so that it can be told from the others."""
    rows = torch.arange(start, start + len(labels), dtype=torch.float32)[:, None].expand(-1, 4)
    return FeatureBatch(rows, torch.tensor(labels), torch.tensor(weights or [1.0] * len(labels)))


def test_few_features_are_all_kept_with_their_frequency_in_an_image() -> None:
    statistics = SeenStatistics(NAMES, per_class=5, no_object=5)
    statistics.add(features([1, NO_OBJECT, 1], [1.0, 6.0, 1.0]), num_images=2)
    statistics.add(features([0], start=3), num_images=2)
    batch = statistics.rows()
    assert batch.labels.tolist() == [0, 1, 1, NO_OBJECT]
    assert sorted(batch.embeddings[:, 0].tolist()) == [0.0, 1.0, 2.0, 3.0]
    # four images: one cat, two dogs, six queries without object
    torch.testing.assert_close(batch.weights, torch.tensor([0.25, 0.25, 0.25, 1.5]))


def test_size_is_bounded_for_each_class_and_frequencies_stay() -> None:
    statistics = SeenStatistics(NAMES, per_class=7, no_object=20)
    for i in range(50):
        statistics.add(features([0] * 3 + [2] + [NO_OBJECT] * 6, start=10 * i), num_images=2)
    batch = statistics.rows()
    counts = torch.bincount(batch.labels, minlength=4)
    assert counts.tolist() == [7, 0, 7, 20]
    sums = torch.zeros(4).index_add_(0, batch.labels, batch.weights)
    torch.testing.assert_close(sums, torch.tensor([1.5, 0.0, 0.5, 3.0]))


def test_every_feature_is_as_likely_as_its_weight() -> None:
    """One of three rows with weights 1, 1, 2 is kept: it should be the heavy one in half of the cases."""
    kept = []
    for seed in range(2000):
        statistics = SeenStatistics(NAMES, per_class=1, no_object=1, seed=seed)
        statistics.add(features([0, 0, 0], [1.0, 1.0, 2.0]), num_images=1)
        kept.append(int(statistics.rows().embeddings[0, 0]))
    shares = torch.bincount(torch.tensor(kept), minlength=3) / len(kept)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.04, rtol=0)


def test_early_and_late_features_are_equally_likely() -> None:
    hits = torch.zeros(200)
    for seed in range(100):
        statistics = SeenStatistics(NAMES, per_class=20, no_object=1, seed=1000 * seed)
        for i in range(20):
            statistics.add(features([0] * 10, start=10 * i), num_images=1)
        hits[statistics.rows().embeddings[:, 0].long()] += 1
    assert hits.sum() == 2000
    assert 0.4 < hits[:100].sum() / hits.sum() < 0.6


def test_saved_statistics_go_on_where_they_stopped(tmp_path: Path) -> None:
    whole = SeenStatistics(NAMES, per_class=5, no_object=8, origin="abc", seed=4)
    halted = SeenStatistics(NAMES, per_class=5, no_object=8, origin="abc", seed=4)
    for i in range(30):
        batch = features([0, 0, 2, NO_OBJECT], start=4 * i)
        whole.add(batch, num_images=1)
        halted.add(batch, num_images=1)
        if i == 11:
            halted.save(tmp_path / "seen.safetensors")
            halted = SeenStatistics.load(tmp_path / "seen.safetensors")
    assert halted.origin == "abc"
    for mine, other in zip(whole.rows(), halted.rows(), strict=True):
        torch.testing.assert_close(mine, other)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    SeenStatistics(NAMES, per_class=2, no_object=2).add(features([0, 1, 2, NO_OBJECT]), num_images=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_follow_the_names_into_another_label_space() -> None:
    statistics = SeenStatistics(NAMES, per_class=5, no_object=5)
    statistics.add(features([0, 2, NO_OBJECT]), num_images=1)
    batch = statistics.for_label_space(("zebra", "cat", "dog", "horse"))
    by_row = {int(row): int(label) for row, label in zip(batch.embeddings[:, 0], batch.labels, strict=True)}
    assert by_row == {0: 1, 1: 0, 2: 4}
    # "dog" has no feature, so that a label space without it is fine; one without "zebra" is not
    statistics.for_label_space(("zebra", "cat"))
    with pytest.raises(ValueError, match=r"features of \['zebra'\]"):
        statistics.for_label_space(("cat", "dog"))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all, but long enough to have a header"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"seen_statistics\.safetensors: not readable"):
        SeenStatistics.load(path)
    with pytest.raises(FileNotFoundError, match="no such file of seen statistics"):
        SeenStatistics.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"somewhere: no seen statistics"):
        SeenStatistics.from_state_dict({"labels": torch.zeros(1)}, "somewhere")


def test_a_changed_value_or_type_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    statistics = SeenStatistics(NAMES, per_class=5, no_object=8)
    statistics.add(features([0, 1, 2]), num_images=1)
    statistics.save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for changed in (
        content[: 8 + length] + bytes([content[8 + length] ^ 1]) + content[9 + length :],
        content.replace(b'"F16"', b'"I16"', 1),
        content.replace(b"zebra", b"tebra", 1),
    ):
        assert changed != content
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"seen_statistics\.safetensors: damaged.*delete it"):
            SeenStatistics.load(path)


def test_unusable_sizes_and_empty_statistics_are_errors() -> None:
    with pytest.raises(ValueError, match=r"STATISTICS\.PER_CLASS is 0"):
        SeenStatistics(NAMES, per_class=0, no_object=1)
    with pytest.raises(ValueError, match="no features were taken in"):
        SeenStatistics(NAMES, per_class=1, no_object=1).rows()


@pytest.mark.parametrize("bank", [False, True])
def test_training_writes_them_beside_its_checkpoint(padding_cfg: Callable[..., CfgNode], bank: bool) -> None:
    cfg = padding_cfg("MODEL.PADING.FEATURE_BANK.ENABLED", bank, "MODEL.PADING.STATISTICS.NO_OBJECT", 9)
    trainer = GeneratorClassifierTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    statistics = SeenStatistics.load(Path(cfg.OUTPUT_DIR) / FILE_NAME)
    model = trainer.segmentor
    assert statistics.names == model.label_space.names
    assert statistics.origin == weights_digest([model.backbone, model.sem_seg_head])
    # four images in the bank; six iterations of two images otherwise
    assert statistics.num_images == (4 if bank else 12)
    batch = statistics.rows()
    counts = torch.bincount(batch.labels, minlength=7)
    assert counts[-1] == 9
    assert set(batch.labels.tolist()) <= {*model.seen_ids.tolist(), 6}
    assert batch.weights.sum() == pytest.approx(8, rel=1e-3)  # queries of an image


def test_a_bank_gives_statistics_without_its_training(padding_cfg: Callable[..., CfgNode]) -> None:
    cfg = padding_cfg("MODEL.PADING.FEATURE_BANK.ENABLED", True, "MODEL.PADING.FEATURE_BANK.NO_OBJECT_PER_IMAGE", 1)
    trainer = GeneratorClassifierTrainer(cfg)
    bank = trainer.open_feature_bank()
    opened = open_bank(Path(cfg.OUTPUT_DIR) / "feature_bank")
    assert len(opened) == len(bank)
    names = trainer.segmentor.label_space.names
    statistics = statistics_of_bank(opened, SeenStatistics(names, per_class=50, no_object=50))
    stored = bank.images(range(len(bank)))
    batch = statistics.rows()
    assert len(batch.labels) == len(stored.labels)
    torch.testing.assert_close(batch.weights.sum(), stored.weights.sum() / 4)
    with pytest.raises(ValueError, match="is no feature bank"):
        open_bank(Path(cfg.OUTPUT_DIR))


def test_resumed_training_keeps_what_was_collected(padding_cfg: Callable[..., CfgNode]) -> None:
    cfg = padding_cfg()
    first = GeneratorClassifierTrainer(cfg)
    first.resume_or_load(resume=False)
    first.max_iter = 3
    first.train()
    assert SeenStatistics.load(Path(cfg.OUTPUT_DIR) / FILE_NAME).num_images == 6
    again = GeneratorClassifierTrainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert SeenStatistics.load(Path(cfg.OUTPUT_DIR) / FILE_NAME).num_images == 12
