# SPDX-License-Identifier: Apache-2.0
"""Clothing Co-Parsing (Yang, Luo and Lin, CVPR 2014): 2098 fashion photographs, 1004 of them with labels of 59 tags.

The 15 tags that hold at least 0.5 % of the pixels are classes of their own, all others are the class "other", so that
every class has pixels enough to be scored. The photographs without labels are a true unlabeled pool: nobody left their
labels out. Layout: ``<root>/ccp/{images,labels}``, labels with the tags' numbers as values.
"""

from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.registration import register_listed_images
from padding.data.roots import splits_dir
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import voc_palette

NUM_TAGS = 59
"""Values of the label images: 0 is null, the background."""
# Number of the tag -> name; with the data authors' names, "null" aside.
_CLASSES = {
    0: "background",
    41: "skin",
    14: "dress",
    13: "coat",
    31: "pants",
    19: "hair",
    25: "jeans",
    2: "bag",
    5: "blouse",
    42: "skirt",
    39: "shoes",
    46: "suit",
    38: "shirt",
    4: "blazer",
    48: "sweater",
}
OTHER = len(_CLASSES)
"""Contiguous id of the class of all other tags."""
_CURE = "datasets/README.md says where CCP comes from; python datasets/prepare_ccp.py --check verifies it."


def ccp_split() -> ClassSplit:
    """The 16 classes, most pixels first, "other" last; all of them stuff."""
    names = (*_CLASSES.values(), "other")
    colors = voc_palette(len(names))
    return ClassSplit.from_categories(
        [{"id": i, "name": name, "isthing": False, "color": colors[i]} for i, name in enumerate(names)]
    )


def ccp_label_map() -> dict[int, int]:
    """Value in the PNGs -> class; 255 is ignored."""
    contiguous = {tag: i for i, tag in enumerate(_CLASSES)}
    return {**{tag: contiguous.get(tag, OTHER) for tag in range(NUM_TAGS)}, IGNORE_LABEL: IGNORE_LABEL}


def register_ccp(folder: Path) -> None:
    """Register the sets of CCP.

    ``ccp_train_sem_seg`` has 1898 images, 804 with labels and the 1094 without, for DATASETS.SPLIT;
    ``ccp_train_labeled_sem_seg`` the 804 alone, ``ccp_val_sem_seg`` the 200 that are kept for evaluation.
    """
    lists = splits_dir() / "ccp"
    for name, image_ids, excluded_ids in (
        ("ccp_train_sem_seg", None, lists / "val.txt"),
        ("ccp_train_labeled_sem_seg", lists / "all" / "labeled.txt", None),
        ("ccp_val_sem_seg", lists / "val.txt", None),
    ):
        register_listed_images(
            name,
            class_split=ccp_split(),
            image_root=folder / "images",
            label_root=folder / "labels",
            label_map=ccp_label_map(),
            image_ids=image_ids,
            excluded_ids=excluded_ids,
            cure=_CURE,
        )
