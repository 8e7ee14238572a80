# SPDX-License-Identifier: Apache-2.0
"""Small sets of COCO photographs with panoptic labels, for zero-shot training on a CPU.

``coco128_...`` are 100 training and 100 validation photographs in the data root, ``coco_samples_...`` the few that ship
in ``datasets/samples``; both have the layout of lightly's coco128. Pixels of unseen classes are void in training (the
policy "ignore_pixels"): so few photographs without any unseen class would not be worth training on.
"""

from functools import partial
from pathlib import Path
from typing import Any

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.registration import register_panoptic
from padding.data.roots import splits_dir
from padding.data.sets.coco import coco_panoptic_split, coco_zsp_split

COUNTS = {"coco128": {"train": 100, "val": 100}, "coco_samples": {"train": 7, "val": 7}}
_CURE = {
    "coco128": "datasets/README.md says where coco128_panoptic comes from; prepare_coco128.py --check verifies it.",
    "coco_samples": "These files are part of the repository; check them out again.",
}


def samples_dir() -> Path:
    """Folder of the photographs that ship with the project."""
    return splits_dir().parent / "samples"


def coco_frequent_split() -> ClassSplit:
    """32 classes that at least five training and five validation photographs of coco128 show, six of them unseen."""
    seen, unseen = (splits_dir() / f"coco128_26_6_{part}.txt" for part in ("seen", "unseen"))
    return coco_panoptic_split(unseen).restricted_to((*read_name_list(seen), *read_name_list(unseen)))


def photograph_files(folder: Path, part: str) -> dict[str, Any]:
    """Paths of images, PNGs and JSON of one part, "train" or "val", as ``register_panoptic`` names them."""
    annotations = folder / "panoptic_segmentation" / "annotations"
    return {
        "image_root": folder / "images" / f"{part}2017",
        "panoptic_root": annotations / f"panoptic_{part}2017",
        "panoptic_json": annotations / f"panoptic_{part}2017.json",
    }


def register_coco_photographs(root: Path) -> None:
    """Register both sets for the panoptic and the semantic task, with the published and with the frequent classes.

    Names: ``coco128_{train,val}_panoptic_zsp``, ``coco128_{train,val}_sem_seg_zss``; ``..._26_6`` for the 32 frequent
    classes; the same with ``coco_samples``, published classes only.
    """
    for suffix, split in (("", coco_zsp_split()), ("_26_6", coco_frequent_split())):
        _register(root / "coco128_panoptic", "coco128", suffix, split)
    _register(samples_dir(), "coco_samples", "", coco_zsp_split())


def _register(folder: Path, prefix: str, suffix: str, split: ClassSplit) -> None:
    for task, evaluator_type in (("panoptic_zsp", "coco_panoptic_seg"), ("sem_seg_zss", "sem_seg")):
        register = partial(
            register_panoptic, unseen_policy="ignore_pixels", evaluator_type=evaluator_type, cure=_CURE[prefix]
        )
        register(f"{prefix}_train_{task}{suffix}", class_split=split.seen_only(), **photograph_files(folder, "train"))
        for end in ("", "_unseen"):
            register(
                f"{prefix}_val_{task}{suffix}{end}",
                class_split=split,
                evaluate_unseen_only=bool(end),
                **photograph_files(folder, "val"),
            )
