# SPDX-License-Identifier: Apache-2.0
"""Registration of the data sets: one call, one table, nothing at import.

``register_all`` fills Detectron2's catalogs with our own names only. Every set carries its label space in its metadata,
as ``class_split``; a zero-shot training set is *narrow*, labelled with the seen classes alone (PADing, Sec. 4).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from padding.data.class_split import ClassSplit, read_name_list, splits_dir
from padding.data.panoptic_json import UnseenPolicy, load_panoptic
from padding.data.sample import IGNORE_LABEL, LABEL_DIVISOR
from padding.data.shapes_classes import shapes_split

__all__ = ["class_split_of", "coco_zsp_split", "data_root", "register_all", "register_panoptic"]

_COCO_CURE = (
    "datasets/README.md lists the official COCO downloads; python datasets/prepare_coco_zsp.py writes the rest."
)
_SHAPES_CURE = "Generate the data with: python datasets/prepare_shapes.py"
_registered: set[str] = set()


def data_root(root: str | Path | None = None) -> Path:
    """The given folder, else ``$DETECTRON2_DATASETS``, else ``datasets`` (Detectron2's convention)."""
    return Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def coco_zsp_split() -> ClassSplit:
    """The 133 classes of COCO panoptic with the published 14 unseen ones."""
    return ClassSplit.from_categories(COCO_CATEGORIES, read_name_list(splits_dir() / "coco_zsp_119_14.txt"))


def class_split_of(dataset_name: str) -> ClassSplit:
    """Label space of a registered data set.

    Sets registered elsewhere (Detectron2's own, a user's) are described by their ``stuff_classes`` or
    ``thing_classes``, everything seen.

    Raises:
        ValueError: the set is unknown or names no classes.
    """
    known = dataset_name in DatasetCatalog
    metadata = MetadataCatalog.get(dataset_name) if known else None
    split = getattr(metadata, "class_split", None)
    if split is not None:
        return split
    things = tuple(getattr(metadata, "thing_classes", ()))
    names = tuple(getattr(metadata, "stuff_classes", ())) or things
    if not names:
        why = "has no class names in its metadata" if known else f"is not registered; ours are {sorted(_registered)}"
        raise ValueError(
            f"data set '{dataset_name}' {why}. Call padding.data.catalog.register_all() or register your own"
        )
    is_thing = tuple(name in things for name in names)
    return ClassSplit(names=names, is_thing=is_thing, dataset_ids=tuple(range(len(names))))


def register_panoptic(  # noqa: PLR0913  (one argument per file or folder)
    name: str,
    *,
    class_split: ClassSplit,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    sem_seg_root: str | Path = "",
    json_file: str | Path = "",
    seen_only: bool = False,
    unseen_policy: UnseenPolicy = "error",
    cure: str = "",
) -> None:
    """Register a data set in COCO panoptic format under ``name``; files are read when the set is first used.

    Args:
        name: new name; a set registered by this function earlier is replaced.
        class_split: the label space of the set, for training usually ``split.seen_only()``.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs with segment ids.
        panoptic_json: COCO panoptic annotations.
        sem_seg_root: folder of semantic PNGs whose values are the contiguous ids of ``class_split``; may be empty.
        json_file: COCO instance annotations for instance evaluation; may be empty.
        seen_only: no unseen class may appear though ``class_split`` holds some (training in a wide label space).
        unseen_policy: see ``padding.data.panoptic_json.load_panoptic``.
        cure: sentence for error messages: how the files are obtained.

    Raises:
        ValueError: ``name`` belongs to a data set that was registered by somebody else.
    """
    if name in DatasetCatalog:
        if name not in _registered:
            raise ValueError(f"a data set '{name}' is registered already, not by this project; choose another name")
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)  # a metadata field accepts one value only, so another root needs a new object
    files = {
        "image_root": str(image_root),
        "panoptic_root": str(panoptic_root),
        "panoptic_json": str(panoptic_json),
        "sem_seg_root": str(sem_seg_root),
    }
    options = {"class_split": class_split, "seen_only": seen_only, "unseen_policy": unseen_policy, "cure": cure}
    loader = partial(load_panoptic, **options, **files)  # type: ignore[arg-type]
    DatasetCatalog.register(name, loader)
    thing_ids = {key: i for key, i in class_split.contiguous_id.items() if i in class_split.thing_ids}
    MetadataCatalog.get(name).set(
        class_split=class_split,
        # One numbering for things and stuff: Detectron2's Visualizer then needs every name in both lists.
        thing_classes=list(class_split.names),
        stuff_classes=list(class_split.names),
        thing_colors=list(class_split.colors),
        stuff_colors=list(class_split.colors),
        thing_dataset_id_to_contiguous_id=thing_ids,
        stuff_dataset_id_to_contiguous_id=dict(class_split.contiguous_id),
        ignore_label=IGNORE_LABEL,
        label_divisor=LABEL_DIVISOR,
        evaluator_type="coco_panoptic_seg",
        json_file=str(json_file),
        **files,
    )
    _registered.add(name)


def register_all(root: str | Path | None = None) -> None:
    """Register every data set of the project; a second call, with the same root or another, replaces the first.

    Args:
        root: data root; default ``$DETECTRON2_DATASETS``, else ``datasets``.
    """
    folder = data_root(root)
    _register_shapes(folder / "shapes")
    _register_coco_zsp(folder / "coco")


def _register_shapes(folder: Path) -> None:
    split = shapes_split()
    for part, part_split in (("train", split.seen_only()), ("val", split)):
        register_panoptic(
            f"shapes_{part}_panoptic_zsp",
            class_split=part_split,
            image_root=folder / "images" / part,
            panoptic_root=folder / "panoptic" / part,
            panoptic_json=folder / "annotations" / f"panoptic_{part}.json",
            # The semantic PNGs are numbered in the wide space; the narrow set takes its labels from the panoptic PNGs.
            sem_seg_root=folder / "sem_seg" / part if part == "val" else "",
            json_file=folder / "annotations" / f"instances_{part}.json",
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
    register_panoptic(
        "coco_2017_val_panoptic_zsp",
        class_split=split,
        image_root=folder / "val2017",
        panoptic_root=folder / "panoptic_val2017",
        panoptic_json=annotations / "panoptic_val2017.json",
        sem_seg_root=folder / "panoptic_semseg_zsp_val2017",
        json_file=annotations / "instances_val2017.json",
        cure=_COCO_CURE,
    )
