# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC 2012 for semantic segmentation, 20 classes and background, with SBD's labels (Hariharan et al., 2011).

``<root>/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,SegmentationClassAug}``; the lists of images are ours
(``datasets/splits/voc``), so that a copy of another origin cannot change a protocol.
"""

from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.registration import register_listed_images
from padding.data.roots import splits_dir

VOC_FOLDER = Path("VOCdevkit") / "VOC2012"
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_CURE = "datasets/README.md lists the official downloads; python datasets/prepare_voc.py writes SegmentationClassAug."


def voc_palette(num_colors: int = 256) -> tuple[tuple[int, int, int], ...]:
    """Colours of VOC's palette PNGs: the bits of an index, lowest first, are dealt to R, G and B from the top down.

    >>> voc_palette(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_colors))


def voc_split() -> ClassSplit:
    """Background and the 20 classes, in the order of the label values."""
    return ClassSplit(
        names=VOC_NAMES,
        is_thing=tuple(name != "background" for name in VOC_NAMES),
        dataset_ids=tuple(range(len(VOC_NAMES))),
        colors=voc_palette(len(VOC_NAMES)),
    )


def register_voc(root: Path) -> None:
    """Register ``voc_2012_train_aug_sem_seg`` (10 582), ``voc_2012_train_sem_seg`` (1464), ``..._val_...`` (1449)."""
    folder = root / VOC_FOLDER
    for part, labels in (
        ("train_aug", "SegmentationClassAug"),
        ("train", "SegmentationClass"),
        ("val", "SegmentationClass"),
    ):
        register_listed_images(
            f"voc_2012_{part}_sem_seg",
            class_split=voc_split(),
            image_root=folder / "JPEGImages",
            label_root=folder / labels,
            image_ids=splits_dir() / "voc" / f"{part}.txt",
            image_name="{id}.jpg",
            cure=_CURE,
        )
