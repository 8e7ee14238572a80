# SPDX-License-Identifier: Apache-2.0
"""Class frequencies and weights: against counting by hand, published shares, and what makes a cache stale."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from PIL import Image

from padding.data import class_frequency
from padding.data.class_frequency import ClassCounts, class_counts, class_weights, inverse_log_weights
from padding.data.prepare.split_lists import write_split
from padding.data.sets.camvid import register_camvid
from padding.engine import add_core_config
from tests.tiny_dense import write_camvid

NAME = "camvid_train_sem_seg"


pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    register_camvid(write_camvid(tmp_path, count=4))
    return tmp_path


def counted(data: Path, *stems: str) -> list[int]:
    """Pixels of the values 0 to 11 in CamVid's own files, one value and one file at a time."""
    files = [data / "camvid" / "labels" / "train" / f"{stem}.png" for stem in stems]
    return [sum(int((np.asarray(Image.open(file)) == value).sum()) for file in files) for value in range(12)]


def test_counts_are_those_of_the_files(data: Path) -> None:
    counts = class_counts(NAME, cache=None)
    expected = counted(data, *(f"frame{i}" for i in range(4)))
    assert (list(counts.pixels), counts.void, counts.images) == (expected[:11], expected[11], 4)
    assert expected[11] > 0
    np.testing.assert_allclose(counts.shares(), np.array(expected[:11]) / sum(expected[:11]))
    np.testing.assert_allclose(counts.shares("all"), np.array(expected[:11]) / sum(expected))


def test_weights_follow_the_formula(data: Path) -> None:
    weights = class_weights(NAME, cache=None)
    assert (weights.dtype, weights.shape) == (torch.float32, (11,))
    shares = class_counts(NAME, cache=None).shares()
    expected = [1 / np.log(1.02 + share) for share in shares]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert (class_weights(NAME, cache=None, over="all") > weights).all(), "smaller shares, larger weights"


def test_published_shares_of_cityscapes() -> None:
    """ERFNet's public weights are 1 / ln(1.10 + p); road, 2.8149, thus has a share of 0.3265 and our weight 3.361."""
    share = np.exp(1 / 2.8149201869965) - 1.10
    np.testing.assert_allclose(inverse_log_weights(np.array([share])), 3.3609, atol=1e-4)
    np.testing.assert_allclose(inverse_log_weights(np.array([0.0, 1.0])), [50.498, 1.4222], atol=1e-3)


def test_of_a_configuration_only_the_labeled_images_count(data: Path) -> None:
    write_split(data / "lists", ("frame1", "frame3"), ("frame0", "frame2"))
    (data / "camvid" / "labels" / "train" / "frame0.png").unlink()
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.SPLIT = (NAME,), str(data / "lists")
    counts = class_counts(cfg, cache=None)
    assert [*counts.pixels, counts.void] == counted(data, "frame1", "frame3")


def test_cache_is_read_instead_of_the_labels(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = data / "output" / "class_frequency.json"
    first = class_counts(NAME, cache=cache)
    assert json.loads(cache.read_text())["pixels"]["sky"] == first.pixels[0]
    assert [path.name for path in cache.parent.iterdir()] == ["class_frequency.json"]

    def refuse(*_: object) -> None:
        raise AssertionError("labels were read again")

    monkeypatch.setattr(class_frequency, "read_label_map", refuse)
    assert class_counts(NAME, cache=cache) == first
    assert class_weights(NAME, cache=cache, over="all").shape == (11,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("touch", "belongs to other labels"),
        ("rename", "belongs to other labels"),
        ("set", "belongs to other data, labels"),
        ("label_map", "belongs to other labels"),
        ("text", "cannot be read"),
        ("incomplete", "cannot be read"),
    ],
)
def test_stale_cache_is_replaced_with_a_message(
    data: Path, caplog: pytest.LogCaptureFixture, change: str, message: str
) -> None:
    cache, name = data / "cache.json", NAME
    class_counts(NAME, cache=cache)
    label = data / "camvid" / "labels" / "train" / "frame0.png"
    if change == "touch":
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(label)
        os.utime(label, ns=(1, 1))
    elif change == "rename":
        label.rename(label.with_name("other.png"))
        image = data / "camvid" / "images" / "train" / "frame0.jpg"
        image.rename(image.with_name("other.jpg"))
    elif change == "set":
        name = "camvid_val_sem_seg"
    elif change == "label_map":
        metadata = MetadataCatalog.get(NAME)
        del metadata.sem_seg_label_map
        metadata.set(sem_seg_label_map={**{i: i for i in range(10)}, 10: 255, 11: 255})
    else:
        cache.write_text("no JSON" if change == "text" else '{"data": []}')
    caplog.set_level(logging.WARNING)
    counts = class_counts(name, cache=cache)
    assert message in caplog.text
    assert counts == class_counts(name, cache=None)
    caplog.clear()
    assert class_counts(name, cache=cache) == counts
    assert not caplog.text


def test_an_interrupted_count_leaves_the_old_cache(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = data / "cache.json"
    cache.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(class_frequency, "read_label_map", interrupt)
    with pytest.raises(KeyboardInterrupt):
        class_counts(NAME, cache=cache)
    assert cache.read_text() == "old"


def test_labels_that_cannot_be_counted(data: Path) -> None:
    label = data / "camvid" / "labels" / "train" / "frame0.png"
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(label)
    with pytest.raises(ValueError, match=r"frame0\.png: holds the values \[12\]"):
        class_counts(NAME, cache=None)
    label.unlink()
    with pytest.raises(FileNotFoundError, match=r"frame0\.png: no such label file"):
        class_counts(NAME, cache=None)
    with pytest.raises(ValueError, match=r"'nowhere' is not registered"):
        class_counts("nowhere", cache=None)


def test_shares_need_labeled_pixels() -> None:
    empty = ClassCounts(("a", "b"), (0, 0), 7, 1)
    assert empty.shares("all").tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"none of 1 images has a labeled pixel"):
        empty.shares()
    with pytest.raises(ValueError, match=r"class shares over 'some'; choose one of labeled, all"):
        empty.shares("some")  # type: ignore[arg-type]
