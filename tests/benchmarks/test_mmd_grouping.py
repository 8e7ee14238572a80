# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the MMD's groupings: its mixture is what it claims, its measures know right from wrong."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import mmd_grouping
from padding.data.catalog import register_all
from padding.data.class_split import ClassSplit, class_split_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mmd_grouping, "CHANNELS", 32)
    monkeypatch.setattr(mmd_grouping, "EMBEDDING_WIDTH", 8)
    register_all()
    yield
    register_all()


@pytest.fixture
def split() -> ClassSplit:
    return class_split_of("coco_2017_val_panoptic_zsp")


@pytest.fixture
def mixture(split: ClassSplit) -> mmd_grouping.Mixture:
    return mmd_grouping.make_mixture(split, torch.Generator().manual_seed(0))


def test_images_show_seen_classes_by_their_frequency(mixture: mmd_grouping.Mixture, split: ClassSplit) -> None:
    batch = next(mixture.batches(2000, torch.Generator().manual_seed(1)))
    assert len(batch.labels) == 2000 * (mmd_grouping.SEGMENTS + mmd_grouping.NO_OBJECT)
    counts = torch.bincount(batch.labels, minlength=split.num_classes + 1)
    assert counts[list(split.unseen_ids)].sum() == 0
    assert counts[-1] == 2000 * mmd_grouping.NO_OBJECT
    # Zipf's law: the sum of 1 / rank over 119 ranks is 5.36, so that the first class has 19 % of the segments.
    assert counts[:-1].max() / counts[:-1].sum() == pytest.approx(1 / 5.36, rel=0.05)
    torch.testing.assert_close(batch.embeddings.mean(1), torch.zeros(len(batch.labels)), atol=1e-4, rtol=0)


def judged(
    mixture: mmd_grouping.Mixture, split: ClassSplit, synthesise: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    rows = torch.arange(split.num_classes).repeat_interleave(mmd_grouping.TEST_ROWS)
    always_right = torch.nn.functional.one_hot(rows, split.num_classes + 1).float() * 9
    model = SimpleNamespace(
        eval=lambda: None, label_space=split, synthesise=synthesise, classify=lambda features: always_right
    )
    return mmd_grouping.judge(model, mixture, 0)


def test_true_features_have_the_true_spread(mixture: mmd_grouping.Mixture, split: ClassSplit) -> None:
    data = torch.Generator().manual_seed(7)
    found = judged(mixture, split, lambda labels: mixture.draw(labels, data))
    for group in ("seen", "unseen"):
        assert found[f"spread_{group}"] == pytest.approx(1.0, abs=0.1)
        # Two means of 50 rows each.
        assert found[f"distance_{group}"] == pytest.approx((2 / mmd_grouping.TEST_ROWS) ** 0.5, rel=0.2)
    assert found["seen"] == found["unseen"] == found["harmonic"] == 100.0


def test_points_have_none(mixture: mmd_grouping.Mixture, split: ClassSplit) -> None:
    found = judged(mixture, split, lambda labels: mixture.means[labels] * 0 + labels[:, None])
    assert found["spread_seen"] == found["spread_unseen"] == 0.0
    assert found["distance_seen"] > 1.0


@pytest.mark.parametrize("grouping", ["moments", pytest.param("batch", marks=pytest.mark.slow)])
def test_second_stage_is_trained_and_judged(grouping: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--features", "64", "--seeds", "1", "--images", "4", "--groupings", grouping]
    mmd_grouping.main(words)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    row = found[f"{grouping}_4"]
    assert (found["features"], found["seeds"]) == (64, 1)
    assert set(row) >= {"spread_seen", "distance_unseen", "seen", "unseen", "harmonic"}
    assert all(spread == 0.0 for _, spread in row.values())  # of a single seed
    # The head of seen features that it starts from knows the seen classes.
    assert row["seen"][0] > 20.0
