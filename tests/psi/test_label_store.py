# SPDX-License-Identifier: Apache-2.0
"""Tests of the labels stored between rounds, and of the mapper that reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image
from torch import Tensor

from padding.data.augmentation import AugmentationPlan, scale_and_crop
from padding.data.catalog import register_panoptic
from padding.data.config import add_input_config
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.mappers import build_mapper
from padding.errors import DataError, MissingFileError
from psi.label_store import LABEL_KEY, WEIGHT_KEY, LabelStore, StoredLabelMapper, decoded_weights, encoded_weights
from psi.supervision import PixelSupervision
from tests.tiny_data import write_tiny_panoptic

VOID = 255
K = 5
IDS = (7, "2007_000032", "aachen/aachen_000000")


def random_pixels(seed: int, size: tuple[int, int] = (12, 17)) -> PixelSupervision:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (1, *size), generator=generator)
    kind = torch.rand(1, *size, generator=generator)
    drawn, diffused = kind < 0.1, (kind >= 0.1) & (kind < 0.6)
    weights = torch.where(drawn, 1.0, torch.rand(1, *size, generator=generator) * diffused)
    return PixelSupervision(labels.masked_fill(~(drawn | diffused), VOID), weights, drawn)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "labels", num_classes=K)


def write_round(store: LabelStore, number: int, offset: int = 0) -> None:
    store.start_round(number)
    for index, image_id in enumerate(IDS):
        store.write(number, image_id, random_pixels(index + offset))
    store.finish_round(number, IDS, {"iteration": 100 * number})


def test_weights_survive_as_bytes() -> None:
    weights = np.array([0.0, 1e-6, 0.25, 0.999999, 1.0, 1.0], dtype=np.float32)
    scribbles = np.array([False, False, False, False, False, True])
    stored = encoded_weights(weights, scribbles)
    assert stored.tolist() == [0, 1, 64, 254, 254, 255]  # never "unlabeled" or "scribble" by rounding
    again, drawn = decoded_weights(stored)
    assert drawn.tolist() == scribbles.tolist()
    np.testing.assert_allclose(again, weights, atol=1 / 255)


def test_stored_labels_are_read_as_written(store: LabelStore) -> None:
    write_round(store, 1)
    assert store.rounds() == [1]
    for index, image_id in enumerate(IDS):
        written, read = random_pixels(index), store.read(1, image_id)
        assert torch.equal(read.labels, written.labels)
        assert torch.equal(read.scribbles, written.scribbles)
        assert torch.equal(read.weights > 0, written.weights > 0)
        torch.testing.assert_close(read.weights, written.weights, atol=1 / 255, rtol=0)
    files = sorted(path.name for path in (store.folder / "round_1").iterdir())
    assert len(files) == 2 * len(IDS) + 1  # no temporary file is left
    manifest = store.manifest(1)
    assert (manifest["images"], manifest["details"]) == (3, {"iteration": 100})


def test_unfinished_rounds_are_invisible_and_start_afresh(store: LabelStore) -> None:
    store.start_round(2)
    store.write(2, 7, random_pixels(0))
    assert store.rounds() == []
    with pytest.raises(FileNotFoundError, match="complete rounds"):
        store.entries([{"image_id": 7}], 2)
    store.start_round(2)  # after a crash: labels of other weights do not stay
    store.write(2, "2007_000032", random_pixels(1))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images, such as 7"):
        store.finish_round(2, [7, "2007_000032"])
    assert store.rounds() == []


def test_a_round_replaces_an_older_one_of_its_number(store: LabelStore) -> None:
    write_round(store, 1)
    write_round(store, 1, offset=10)
    assert torch.equal(store.read(1, 7).labels, random_pixels(10).labels)
    assert [path.name for path in store.folder.iterdir()] == ["round_1"]


def test_earlier_rounds_are_forgotten_when_asked_for(store: LabelStore) -> None:
    for number in (1, 2, 10):
        write_round(store, number)
    store.start_round(11)
    assert store.rounds() == [1, 2, 10]
    store.forget_before(10)
    assert store.rounds() == [10]
    assert sorted(path.name for path in store.folder.iterdir()) == ["round_10", "round_11.partial"]


def test_entries_name_the_files_and_leave_the_data_set_alone(store: LabelStore) -> None:
    write_round(store, 3)
    given = [{"image_id": image_id, "file_name": f"{index}.jpg"} for index, image_id in enumerate(IDS)]
    entries = store.entries(given, 3)
    assert all(LABEL_KEY not in entry for entry in given)
    for entry, image_id in zip(entries, IDS, strict=True):
        expected = store.read(3, image_id)
        np.testing.assert_array_equal(np.asarray(Image.open(entry[LABEL_KEY])), expected.labels[0].numpy())
        np.testing.assert_array_equal(np.asarray(Image.open(entry[WEIGHT_KEY])) == 255, expected.scribbles[0].numpy())
    with pytest.raises(FileNotFoundError, match="another training set"):
        store.entries([*given, {"image_id": 8, "file_name": "x.jpg"}], 3)


def test_wrong_use_is_named(store: LabelStore) -> None:
    with pytest.raises(FileNotFoundError, match="start_round"):
        store.write(1, 7, random_pixels(0))
    store.start_round(1)
    pixels = random_pixels(0)
    two = PixelSupervision(*(torch.cat([part, part]) for part in (pixels.labels, pixels.weights, pixels.scribbles)))
    with pytest.raises(ValueError, match="2 images given"):
        store.write(1, 7, two)
    strange = pixels.labels.clone()
    strange[0, 0, 0] = K
    with pytest.raises(ValueError, match=r"\[5\].*0 to 4"):
        store.write(1, 7, PixelSupervision(strange, pixels.weights, pixels.scribbles))
    with pytest.raises(ValueError, match="8-bit"):
        LabelStore(store.folder, num_classes=300)


def test_manifests_of_other_trainings_are_refused(store: LabelStore) -> None:
    write_round(store, 1)
    with pytest.raises(ValueError, match=r"ROUNDS\.FOLDER"):
        LabelStore(store.folder, num_classes=K + 1).manifest(1)
    (store.folder / "round_1" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        store.manifest(1)


def test_damaged_or_exchanged_files_are_noticed(tmp_path: Path, store: LabelStore) -> None:
    entry, _ = scribbled_image(tmp_path, store)
    listed = store.entries([entry], 1)[0]
    mapper = stored_mapper(AugmentationPlan(()))
    for key in (LABEL_KEY, WEIGHT_KEY):
        path = Path(listed[key])
        whole = path.read_bytes()
        other = np.zeros((40, 56), np.uint8)
        Image.fromarray(other).save(tmp_path / "other.png")
        middle = len(whole) // 2
        zeroed = whole[:middle] + bytes(8) + whole[middle + 8 :]
        for content in (zeroed, whole[:-20], b"", (tmp_path / "other.png").read_bytes()):
            path.write_bytes(content)
            with pytest.raises(DataError, match=rf"{path.name}: damaged, or of another round"):
                mapper(dict(listed))
            with pytest.raises(DataError, match=rf"{path.name}: damaged, or of another round"):
                store.read(1, 7)
        path.unlink()
        with pytest.raises(MissingFileError, match=rf"{path.name}: no such file"):
            mapper(dict(listed))
        path.write_bytes(whole)
    assert mapper(dict(listed)) is not None


@pytest.mark.parametrize("checksums", [None, [], {"7": [1]}, {"7": [1, "2"]}])
def test_manifest_without_its_checksums_is_damaged(store: LabelStore, checksums: Any) -> None:
    write_round(store, 1)
    path = store.folder / "round_1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checksums": checksums}))
    with pytest.raises(DataError, match=r"manifest\.json: its checksums are damaged"):
        LabelStore(store.folder, num_classes=K).entries([{"image_id": 7}], 1)


def scribbled_image(tmp_path: Path, store: LabelStore) -> tuple[dict[str, Any], Tensor]:
    """An image whose stored labels are its scribbles, with a weight for each class: 20, 40, 60 ... of 255."""
    pixels = random_pixels(0, (40, 56))
    labels = pixels.labels
    Image.fromarray(labels[0].numpy().astype(np.uint8)).save(tmp_path / "scribbles.png")
    Image.fromarray(np.full((40, 56, 3), 90, np.uint8)).save(tmp_path / "image.png")
    weights = torch.where(labels == VOID, 0.0, (labels + 1) * 20 / 255)
    store.start_round(1)
    store.write(1, 7, PixelSupervision(labels, weights, torch.zeros_like(pixels.scribbles)))
    store.finish_round(1, [7])
    entry = {"image_id": 7, "file_name": str(tmp_path / "image.png")}
    entry |= {"sem_seg_file_name": str(tmp_path / "scribbles.png"), "height": 40, "width": 56}
    return entry, labels


def stored_mapper(plan: AugmentationPlan) -> StoredLabelMapper:
    return StoredLabelMapper(num_classes=K, ignore_label=VOID, with_masks=False, is_train=True, plan=plan)


def test_stored_labels_follow_the_scribbles_through_the_augmentation(tmp_path: Path, store: LabelStore) -> None:
    entry, _ = scribbled_image(tmp_path, store)
    mapper = stored_mapper(scale_and_crop(factors=(0.5, 2.0), sampling="range", crop_size=(48, 48)))
    seen = set()
    for _ in range(8):
        sample = mapper(store.entries([entry], 1)[0])
        assert sample is not None
        assert torch.equal(sample["diffused"], sample["sem_seg"])
        labeled = sample["sem_seg"] != VOID
        expected = torch.where(labeled, (sample["sem_seg"] + 1) * 20 / 255, 0.0)
        torch.testing.assert_close(sample["diffused_weight"], expected)
        assert sample["diffused_weight"].dtype == torch.float32
        assert sample["sem_seg"].shape == (48, 48)
        seen.add(int(labeled.sum()))
    assert len(seen) > 4  # the geometry did change


def test_before_the_first_round_there_are_scribbles_alone(tmp_path: Path, store: LabelStore) -> None:
    entry, labels = scribbled_image(tmp_path, store)
    sample = stored_mapper(AugmentationPlan(()))(entry)
    assert sample is not None
    assert "diffused" not in sample
    assert torch.equal(sample["sem_seg"], labels[0])


def test_stored_labels_of_another_size_are_refused(tmp_path: Path, store: LabelStore) -> None:
    entry, _ = scribbled_image(tmp_path, store)
    write_round(store, 2)  # of 12 x 17 images
    with pytest.raises(ValueError, match=r"7_labels\.png: the file is 12 x 17"):
        stored_mapper(AugmentationPlan(()))(store.entries([entry], 2)[0])


def test_mapper_is_built_by_its_name(tmp_path: Path, store: LabelStore) -> None:
    tiny = write_tiny_panoptic(tmp_path / "tiny")
    register_panoptic("tiny_for_rounds", **tiny.registration)
    entry = load_panoptic(**tiny.registration)[0]
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny_for_rounds",)
    cfg.INPUT.DATASET_MAPPER_NAME = "StoredLabelMapper"
    cfg.INPUT.CROP.SIZE = [64, 64]
    store.start_round(1)
    size = (entry["height"], entry["width"])
    void = torch.full((1, *size), VOID)
    store.write(1, entry["image_id"], PixelSupervision(void, torch.zeros(1, *size), torch.zeros(1, *size).bool()))
    store.finish_round(1, [entry["image_id"]])
    sample = build_mapper(cfg, is_train=True)(store.entries([entry], 1)[0])
    assert sample is not None
    assert sample["diffused"].shape == sample["sem_seg"].shape == (64, 64)
    assert (sample["diffused"] == VOID).all()
    assert not sample["diffused_weight"].any()
    assert json.loads((store.folder / "round_1" / "manifest.json").read_text())["images"] == 1
