# SPDX-License-Identifier: Apache-2.0
"""CamVid, 11 classes of road scenes (Brostow et al., 2009), in the layout of the SegNet copy.

``<root>/camvid/{images,labels}/{train,val}``; label 11 is void.
"""

from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.registration import register_listed_images
from padding.data.sample import IGNORE_LABEL

VOID = 11
_CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
_THINGS = ("car", "pedestrian", "bicyclist")
_CURE = "datasets/README.md says where CamVid comes from; python datasets/prepare_camvid.py --check verifies it."


def camvid_split() -> ClassSplit:
    """The 11 classes in the order of the label values."""
    classes = enumerate(_CLASSES)
    return ClassSplit.from_categories(
        [{"id": i, "name": name, "isthing": name in _THINGS, "color": color} for i, (name, color) in classes]
    )


def camvid_label_map() -> dict[int, int]:
    """Value in the PNGs -> class, void 255."""
    return {**{i: i for i in range(len(_CLASSES))}, VOID: IGNORE_LABEL, IGNORE_LABEL: IGNORE_LABEL}


def register_camvid(folder: Path) -> None:
    """Register ``camvid_train_sem_seg`` (367 images) and ``camvid_val_sem_seg`` (101)."""
    split = camvid_split()
    for part in ("train", "val"):
        register_listed_images(
            f"camvid_{part}_sem_seg",
            class_split=split,
            image_root=folder / "images" / part,
            label_root=folder / "labels" / part,
            label_map=camvid_label_map(),
            cure=_CURE,
        )
