# SPDX-License-Identifier: Apache-2.0
"""Cityscapes for semantic segmentation, 19 classes (Cordts et al., 2016), from ``..._gtFine_labelTrainIds.png``.

``<root>/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>``, as downloaded; train ids by
``datasets/prepare_cityscapes.py`` or by cityscapesscripts. Detectron2's own sets read JSON files for sizes and, in
current versions, import a package that is not public.
"""

from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.registration import register_listed_images
from padding.data.roots import splits_dir

_NUM_LABEL_IDS = 34
TRAIN_ID_NAME = "{city}/{id}_gtFine_labelTrainIds.png"
_CURE = "datasets/README.md lists the official downloads; python datasets/prepare_cityscapes.py writes the train ids."


def cityscapes_split() -> ClassSplit:
    """The 19 evaluated classes in the order of their train ids."""
    from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

    classes = sorted((c for c in CITYSCAPES_CATEGORIES if 0 <= c["trainId"] < 255), key=lambda c: c["trainId"])
    return ClassSplit.from_categories(classes)


def cityscapes_label_map(ignore_label: int = 255) -> dict[int, int]:
    """Cityscapes' 34 ``labelIds`` (and 255, its license plate) -> 19 train ids, the rest ``ignore_label``."""
    from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

    label_map = dict.fromkeys((*range(_NUM_LABEL_IDS), 255), ignore_label)
    label_map.update({category["id"]: category["trainId"] for category in CITYSCAPES_CATEGORIES})
    return label_map


def register_cityscapes(folder: Path) -> None:
    """Register ``cityscapes_train_sem_seg`` (2975 images) and ``cityscapes_val_sem_seg`` (500)."""
    for part in ("train", "val"):
        register_listed_images(
            f"cityscapes_{part}_sem_seg",
            class_split=cityscapes_split(),
            image_root=folder / "leftImg8bit" / part,
            label_root=folder / "gtFine" / part,
            image_ids=splits_dir() / "cityscapes" / f"{part}.txt",
            image_name="{city}/{id}_leftImg8bit.png",
            label_name=TRAIN_ID_NAME,
            cure=_CURE,
        )
