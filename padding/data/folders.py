# SPDX-License-Identifier: Apache-2.0
"""A user's own data without code: two folders and a list of class names become ``own_train`` and ``own_val``.

The keys are DATASETS.FOLDERS.*; ``python -m padding.data.label_audit`` looks for the usual mistakes in the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.registration import register_listed_images
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import voc_palette
from padding.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

OWN_NAMES = ("own_train", "own_val")
_KEY = "DATASETS.FOLDERS"


def folder_classes(path: str | Path) -> ClassSplit:
    """Label space of a text file: the name in line n, from 0 on, is the class of label value n.

    Raises:
        MissingFileError, DataError: see ``read_name_list``.
    """
    names = read_name_list(path)
    return ClassSplit(
        names=names,
        is_thing=(False,) * len(names),
        dataset_ids=tuple(range(len(names))),
        colors=voc_palette(len(names)),
    )


def own_label_map(num_classes: int, void_values: Sequence[int]) -> dict[int, int] | None:
    """Label map that makes some values void; None without such values.

    Raises:
        ConfigError: a value lies outside 0 to 65535, or no class is left.
    """
    if not void_values:
        return None
    if min(void_values) < 0 or max(void_values) > 65535 or not set(range(num_classes)) - set(void_values):
        raise ConfigError(
            f"{_KEY}.VOID_VALUES is {tuple(void_values)}; expected values of label PNGs, 0 to 65535, that leave at "
            f"least one of the {num_classes} classes"
        )
    return {**{i: i for i in range(num_classes)}, **dict.fromkeys((*void_values, IGNORE_LABEL), IGNORE_LABEL)}


def register_folders(
    *,
    images: str,
    labels: str,
    classes: str,
    val_images: str = "",
    val_labels: str = "",
    val_list: str = "",
    void_values: Sequence[int] = (),
) -> None:
    """Register ``own_train`` and, with validation data, ``own_val``.

    Args:
        images: folder of the images.
        labels: folder of index PNGs with the images' names; unlabeled images need none.
        classes: text file of class names, see ``folder_classes``.
        val_images: folder of the images to evaluate on.
        val_labels: their labels.
        val_list: instead of these two, a text file with the ids of images in ``images`` that are kept for evaluation.
        void_values: label values that mean nothing; 255 always does.

    Raises:
        MissingFileError, ConfigError: a key is missing, contradicts another, or names a file that is not there.
    """
    for key, value in (("LABELS", labels), ("CLASSES", classes)):
        if not value:
            raise ConfigError(f"{_KEY}.IMAGES is '{images}', but {_KEY}.{key} is empty; own data need all three")
    if bool(val_images) != bool(val_labels) or (val_images and val_list):
        raise ConfigError(
            f"{_KEY}: set VAL_IMAGES and VAL_LABELS, or VAL_LIST, or none of them; got '{val_images}', '{val_labels}' "
            f"and '{val_list}'"
        )
    if not Path(classes).is_file():
        raise MissingFileError(f"{_KEY}.CLASSES: {classes} does not exist; write one class name a line, label 0 first")
    split = folder_classes(classes)
    cure = f"The folders are those of {_KEY}"
    register = partial(
        register_listed_images, class_split=split, label_map=own_label_map(split.num_classes, void_values), cure=cure
    )
    train, val = OWN_NAMES
    register(train, image_root=images, label_root=labels, excluded_ids=val_list or None)
    if val_list:
        register(val, image_root=images, label_root=labels, image_ids=val_list)
    elif val_images:
        register(val, image_root=val_images, label_root=val_labels)


def register_own_data(cfg: CfgNode) -> None:
    """Register what DATASETS.FOLDERS names; nothing if its IMAGES is empty.

    Raises:
        MissingFileError, ConfigError: see ``register_folders``.
    """
    keys = cfg.DATASETS.FOLDERS
    settings = {
        "images": keys.IMAGES,
        "labels": keys.LABELS,
        "classes": keys.CLASSES,
        "val_images": keys.VAL_IMAGES,
        "val_labels": keys.VAL_LABELS,
        "val_list": keys.VAL_LIST,
        "void_values": keys.VOID_VALUES,
    }
    if settings["images"]:
        register_folders(**settings)
    elif any(settings.values()):
        given = [name.upper() for name, value in settings.items() if value]
        raise ConfigError(f"{_KEY}.{given[0]} is set, but {_KEY}.IMAGES is empty; name the folder of the images")
