# SPDX-License-Identifier: Apache-2.0
"""Writes CamVid, PASCAL VOC and Cityscapes of a few small images each, in the layout of their downloads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import padding.data.sets.cityscapes
import padding.data.sets.voc
from padding.data.sets.cityscapes import register_cityscapes
from padding.data.sets.voc import VOC_FOLDER, register_voc, voc_palette

SIZE = (48, 64)


def blocks(values: Sequence[int], *, seed: int, size: tuple[int, int] = SIZE, block: int = 8) -> np.ndarray:
    """(h, w) uint8: blocks of 8 x 8 pixels, each with one of the values; all of them occur."""
    rng = np.random.default_rng(seed)
    rows, columns = size[0] // block, size[1] // block
    drawn = rng.permutation(np.resize(np.asarray(values), rows * columns)).reshape(rows, columns)
    return np.kron(drawn, np.ones((block, block), int)).astype(np.uint8)


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, 3) uint8 image without the grey value of padding, 128."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    image[image == 128] = 129
    return image


def save(path: Path, array: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([value for color in voc_palette() for value in color])
    image.save(path)


def write_camvid(root: Path, *, count: int = 3) -> Path:
    """Images ``frame0`` and on for each part, labels 0 to 11; returns the folder of the data set."""
    for offset, part in enumerate(("train", "val")):
        for index in range(count):
            seed = 10 * offset + index
            save(root / "camvid" / "images" / part / f"frame{index}.jpg", noise(seed))
            save(root / "camvid" / "labels" / part / f"frame{index}.png", blocks(range(12), seed=seed))
    return root / "camvid"


def lists(folder: Path, monkeypatch: pytest.MonkeyPatch, module: object, ids: dict[str, Sequence[str]]) -> None:
    """Put short lists of images in the place of the shipped ones."""
    monkeypatch.setattr(module, "splits_dir", lambda: folder)
    for name, entries in ids.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{entry}\n" for entry in entries))


def write_voc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training and two test images with palette labels 0, 1, 15, 20 and 255; the sets are registered."""
    ids = {"train": ("2007_000001", "2007_000002"), "val": ("2007_000003", "2007_000004")}
    for seed, name in enumerate((*ids["train"], *ids["val"])):
        labels = blocks((0, 1, 15, 20, 255), seed=seed)
        save(root / VOC_FOLDER / "JPEGImages" / f"{name}.jpg", noise(seed))
        save(root / VOC_FOLDER / "SegmentationClass" / f"{name}.png", labels, palette=True)
        save(root / VOC_FOLDER / "SegmentationClassAug" / f"{name}.png", labels, palette=True)
    listed = {f"voc/{part}": names for part, names in ids.items()} | {"voc/train_aug": ids["train"]}
    lists(root / "splits", monkeypatch, padding.data.sets.voc, listed)
    register_voc(root)


def write_cityscapes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image each of two cities for training, one for testing, with train ids; the sets are registered."""
    ids = {"train": ("aachen_000000_000019", "zurich_000001_000019"), "val": ("lindau_000000_000019",)}
    for seed, (part, name) in enumerate((part, name) for part, names in ids.items() for name in names):
        city = name.split("_")[0]
        save(root / "cityscapes" / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", noise(seed))
        labels = blocks((*range(19), 255), seed=seed)
        save(root / "cityscapes" / "gtFine" / part / city / f"{name}_gtFine_labelTrainIds.png", labels)
    listed = {f"cityscapes/{part}": names for part, names in ids.items()}
    lists(root / "splits", monkeypatch, padding.data.sets.cityscapes, listed)
    register_cityscapes(root / "cityscapes")
