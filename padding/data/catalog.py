# SPDX-License-Identifier: Apache-2.0
"""The table of registered data sets: one call, nothing at import.

``register_all`` fills Detectron2's catalogs with our own names only. Every set carries its label space in its metadata,
as ``class_split``; a zero-shot training set is *narrow*, labelled with the seen classes alone (PADing, Sec. 4). Names
end in the task: ``zsp`` panoptic, ``zss`` semantic, ``zsi`` instances; a test set ``..._unseen`` counts unseen classes
alone, for MODEL.PADING.TEST.MODE "zsl".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.registration import (
    register_instances,
    register_listed_images,
    register_panoptic,
    register_sem_seg,
)
from padding.data.roots import data_root
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.camvid import register_camvid
from padding.data.sets.ccp import register_ccp
from padding.data.sets.cityscapes import register_cityscapes
from padding.data.sets.coco import INSTANCE_SPLITS, coco_zsi_split, coco_zsp_split, coco_zss_split
from padding.data.sets.coco_photographs import register_coco_photographs
from padding.data.sets.pascal_context import register_pascal_context
from padding.data.sets.saliency import register_saliency_sets
from padding.data.sets.scribbles import register_scribble_sets, register_scribbles
from padding.data.sets.voc import register_voc
from padding.data.shapes.classes import shapes_coarse_split, shapes_split

__all__ = [
    "coco_zsp_split",
    "register_all",
    "register_instances",
    "register_listed_images",
    "register_panoptic",
    "register_scribbles",
    "register_sem_seg",
    "shapes_zsi_split",
]

_COCO_CURE = (
    "datasets/README.md lists the official COCO downloads; python datasets/prepare_coco_zsp.py writes the rest."
)
_STUFF_CURE = "datasets/README.md lists the official downloads; python datasets/prepare_coco_zss.py writes the rest."
_INSTANCE_CURE = "datasets/README.md lists the official downloads; python datasets/prepare_coco_zsi.py writes the rest."
_SHAPES_CURE = "Generate the data with: python datasets/prepare_shapes.py"


def shapes_zsi_split() -> ClassSplit:
    """The 30 things of the embedded data set, 5 of them unseen."""
    split = shapes_split()
    return split.restricted_to([split.names[i] for i in sorted(split.thing_ids)])


def register_all(root: str | Path | None = None) -> None:
    """Register every data set of the project; a second call, with the same root or another, replaces the first.

    Args:
        root: data root; default ``$DETECTRON2_DATASETS``, else ``datasets``.
    """
    folder = data_root(root)
    _register_shapes_panoptic(folder / "shapes")
    _register_shapes_sem_seg(folder / "shapes")
    _register_shapes_instances(folder / "shapes")
    _register_shapes_coarse(folder / "shapes")
    _register_coco_zsp(folder / "coco")
    _register_coco_zss(folder / "coco")
    for name in INSTANCE_SPLITS:
        _register_coco_zsi(folder / "coco", name)
    register_coco_photographs(folder)
    register_camvid(folder / "camvid")
    register_ccp(folder / "ccp")
    register_cityscapes(folder / "cityscapes")
    register_voc(folder)
    register_pascal_context(folder)
    register_scribble_sets(folder)
    register_saliency_sets(folder)


def _register_shapes_panoptic(folder: Path) -> None:
    split = shapes_split()
    for name, part, part_split in (
        ("shapes_train_panoptic_zsp", "train", split.seen_only()),
        ("shapes_val_panoptic_zsp", "val", split),
        ("shapes_val_panoptic_zsp_unseen", "val", split),
    ):
        register_panoptic(
            name,
            class_split=part_split,
            image_root=folder / "images" / part,
            panoptic_root=folder / "panoptic" / part,
            panoptic_json=folder / "annotations" / f"panoptic_{part}.json",
            # The semantic PNGs are numbered in the wide space; the narrow set takes its labels from the panoptic PNGs.
            sem_seg_root=folder / "sem_seg" / part if part == "val" else "",
            json_file=folder / "annotations" / f"instances_{part}.json",
            evaluate_unseen_only=name.endswith("_unseen"),
            cure=_SHAPES_CURE,
        )


def _register_shapes_sem_seg(folder: Path) -> None:
    split = shapes_split()
    # PNGs in the wide space, training in the narrow one: seen classes are renumbered, unseen ones void.
    to_narrow = split.narrow_labels(IGNORE_LABEL)
    for name, part, part_split, label_map in (
        ("shapes_train_sem_seg_zss", "train", split.seen_only(), to_narrow),
        ("shapes_val_sem_seg_zss", "val", split, None),
        ("shapes_val_sem_seg_zss_unseen", "val", split, None),
    ):
        register_sem_seg(
            name,
            class_split=part_split,
            image_root=folder / "images" / part,
            sem_seg_root=folder / "sem_seg" / part,
            image_list=folder / "annotations" / f"panoptic_{part}.json",
            label_map=label_map,
            evaluate_unseen_only=name.endswith("_unseen"),
            cure=_SHAPES_CURE,
        )


def _register_shapes_instances(folder: Path) -> None:
    split = shapes_zsi_split()
    for name, part, part_split in (
        ("shapes_train_instances_zsi", "train", split.seen_only()),
        ("shapes_val_instances_zsi", "val", split),
        ("shapes_val_instances_zsi_unseen", "val", split),
    ):
        register_instances(
            name,
            class_split=part_split,
            image_root=folder / "images" / part,
            json_file=folder / "annotations" / f"instances_{part}.json",
            evaluate_unseen_only=name.endswith("_unseen"),
            cure=_SHAPES_CURE,
        )


def _register_shapes_coarse(folder: Path) -> None:
    """Looks and backgrounds, 17 classes, everything seen: the labels of the dense semantic methods."""
    for part in ("train", "val"):
        register_listed_images(
            f"shapes_{part}_sem_seg_coarse",
            class_split=shapes_coarse_split(),
            image_root=folder / "images" / part,
            label_root=folder / "sem_seg_coarse" / part,
            cure=_SHAPES_CURE,
        )


def _register_coco_zsp(folder: Path) -> None:
    split = coco_zsp_split()
    annotations = folder / "annotations"
    seen_json, all_json = annotations / "zsp" / "panoptic_train2017_seen.json", annotations / "panoptic_train2017.json"
    register_train = partial(
        register_panoptic,
        image_root=folder / "train2017",
        panoptic_root=folder / "panoptic_train2017",
        json_file=annotations / "instances_train2017.json",
        cure=_COCO_CURE,
    )
    register_train("coco_2017_train_panoptic_zsp", class_split=split.seen_only(), panoptic_json=seen_json)
    register_train(
        "coco_2017_train_panoptic_zsp_ignore_pixels",
        class_split=split.seen_only(),
        panoptic_json=all_json,
        unseen_policy="ignore_pixels",
    )
    # The released checkpoints were trained with 133 rows, the unseen ones as negatives only.
    register_train("coco_2017_train_panoptic_zsp_wide", class_split=split, seen_only=True, panoptic_json=seen_json)
    for name in ("coco_2017_val_panoptic_zsp", "coco_2017_val_panoptic_zsp_unseen"):
        register_panoptic(
            name,
            class_split=split,
            image_root=folder / "val2017",
            panoptic_root=folder / "panoptic_val2017",
            panoptic_json=annotations / "panoptic_val2017.json",
            sem_seg_root=folder / "panoptic_semseg_zsp_val2017",
            json_file=annotations / "instances_val2017.json",
            evaluate_unseen_only=name.endswith("_unseen"),
            cure=_COCO_CURE,
        )


def _register_coco_zss(folder: Path) -> None:
    """COCO-Stuff 156/15: the PNGs hold ids of the wide space, in which the seen classes come first."""
    split = coco_zss_split()
    register = partial(register_sem_seg, cure=_STUFF_CURE)
    register_train = partial(
        register,
        class_split=split.seen_only(),
        image_root=folder / "train2017",
        sem_seg_root=folder / "stuff_zss" / "train2017",
        image_list=folder / "annotations" / "zss" / "stuff_train2017.json",
    )
    register_train("coco_2017_train_stuff_zss", unseen_policy="ignore_pixels")
    register_train("coco_2017_train_stuff_zss_drop_image", unseen_policy="drop_image")
    for name in ("coco_2017_val_stuff_zss", "coco_2017_val_stuff_zss_unseen"):
        register(
            name,
            class_split=split,
            image_root=folder / "val2017",
            sem_seg_root=folder / "stuff_zss" / "val2017",
            image_list=folder / "annotations" / "zss" / "stuff_val2017.json",
            evaluate_unseen_only=name.endswith("_unseen"),
        )


def _register_coco_zsi(folder: Path, name: str) -> None:
    split, annotations = coco_zsi_split(name), folder / "annotations" / "zsi"
    register = partial(register_instances, cure=_INSTANCE_CURE)
    register(
        f"coco_2014_train_instances_zsi_{name}",
        class_split=split.seen_only(),
        image_root=folder / "train2014",
        json_file=annotations / f"instances_train2014_seen_{name}.json",
    )
    for suffix, kind in (("", "gzsi"), ("_unseen", "unseen")):
        register(
            f"coco_2014_val_instances_zsi_{name}{suffix}",
            class_split=split,
            image_root=folder / "val2014",
            json_file=annotations / f"instances_val2014_{kind}_{name}.json",
            evaluate_unseen_only=kind == "unseen",
        )
