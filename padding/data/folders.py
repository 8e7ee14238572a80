# SPDX-License-Identifier: Apache-2.0
"""A user's own data without code: two folders and a list of class names become ``own_train`` and ``own_val``.

With a list of unseen class names they are a zero-shot problem: pixels of these classes are void in ``own_train``, and
``own_val_unseen`` counts them alone. The keys are DATASETS.FOLDERS.*; ``python -m padding.data.label_audit`` looks for
the usual mistakes in the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.registration import register_listed_images
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import voc_palette
from padding.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

OWN_NAMES = ("own_train", "own_val")
OWN_UNSEEN = "own_val_unseen"
_KEY = "DATASETS.FOLDERS"


def folder_classes(path: str | Path, unseen: Sequence[str] = ()) -> ClassSplit:
    """Label space of a text file: the name in line n, from 0 on, is the class of label value n.

    Args:
        path: of the text file.
        unseen: names of the classes that training does not know.

    Raises:
        MissingFileError, DataError: see ``read_name_list``.
        ConfigError: an unseen name is not in the file, or no class is seen.
    """
    names = read_name_list(path)
    if unknown := sorted(set(unseen) - set(names)):
        raise ConfigError(f"{_KEY}.UNSEEN names {unknown}, which {path} does not list; it has {', '.join(names)}")
    if set(unseen) == set(names):
        raise ConfigError(f"{_KEY}.UNSEEN names all {len(names)} classes; leave some of them to learn from")
    return ClassSplit(
        names=names,
        unseen_names=frozenset(unseen),
        is_thing=(False,) * len(names),
        dataset_ids=tuple(range(len(names))),
        colors=voc_palette(len(names)),
    )


def own_label_map(
    num_classes: int, void_values: Sequence[int], label_values: Sequence[int | Sequence[int]] = ()
) -> dict[int, int] | None:
    """Label map from values of label images to classes; None where the values are classes and 255.

    Args:
        num_classes: K.
        void_values: values that mean nothing; 255 does too, unless it is the value of a class.
        label_values: for each class its value, or several; (): class n has the value n.

    Raises:
        ConfigError: a value lies outside 0 to 65535 or means two things, their number is not K, or no class is left.
    """
    if not void_values and not label_values:
        return None
    if any(not 0 <= value <= 65535 for value in void_values):
        raise ConfigError(f"{_KEY}.VOID_VALUES is {tuple(void_values)}; expected values of label images, 0 to 65535")
    if label_values and len(label_values) != num_classes:
        raise ConfigError(
            f"{_KEY}.LABEL_VALUES has {len(label_values)} entries for {num_classes} classes; give the value of each, "
            "or a list of its values"
        )
    label_map = dict.fromkeys((*void_values, IGNORE_LABEL), IGNORE_LABEL)
    for label, entry in enumerate(label_values or range(num_classes)):
        for value in entry if isinstance(entry, Sequence) else (entry,):
            if not isinstance(value, int) or not 0 <= value <= 65535:
                raise ConfigError(f"{_KEY}.LABEL_VALUES has {value!r} for class {label}; expected 0 to 65535")
            listed = value in void_values or label_map.get(value, IGNORE_LABEL) != IGNORE_LABEL
            if listed and label_values:
                raise ConfigError(
                    f"{_KEY}: the value {value} means two things; give it to one class, or to VOID_VALUES"
                )
            if not listed:
                label_map[value] = label
    if set(label_map.values()) == {IGNORE_LABEL}:
        raise ConfigError(
            f"{_KEY}.VOID_VALUES is {tuple(void_values)}; leave at least one of the {num_classes} classes"
        )
    return label_map


def _check_given(images: str, needed: Mapping[str, str], evaluated: tuple[str, str, str]) -> None:
    """Keys that belong together are there, and the list of classes exists."""
    for key, value in needed.items():
        if not value:
            raise ConfigError(f"{_KEY}.IMAGES is '{images}', but {_KEY}.{key} is empty; own data need all three")
    val_images, val_labels, val_list = evaluated
    if bool(val_images) != bool(val_labels) or (val_images and val_list):
        raise ConfigError(
            f"{_KEY}: set VAL_IMAGES and VAL_LABELS, or VAL_LIST, or none of them; got '{val_images}', '{val_labels}' "
            f"and '{val_list}'"
        )
    if not Path(classes := needed["CLASSES"]).is_file():
        raise MissingFileError(f"{_KEY}.CLASSES: {classes} does not exist; write one class name a line, label 0 first")


def register_folders(  # noqa: PLR0913  (one argument per key)
    *,
    images: str,
    labels: str,
    classes: str,
    val_images: str = "",
    val_labels: str = "",
    val_list: str = "",
    void_values: Sequence[int] = (),
    label_values: Sequence[int | Sequence[int]] = (),
    label_suffix: str = ".png",
    subfolders: bool = False,
    unseen: Sequence[str] = (),
) -> None:
    """Register ``own_train`` and, with validation data, ``own_val`` and (with unseen classes) ``own_val_unseen``.

    Args:
        images: folder of the images.
        labels: folder of index PNGs with the images' names; unlabeled images need none.
        classes: text file of class names, see ``folder_classes``.
        val_images: folder of the images to evaluate on.
        val_labels: their labels.
        val_list: instead of these two, a text file with the ids of images in ``images`` that are kept for evaluation.
        void_values: label values that mean nothing, see ``own_label_map``.
        label_values: likewise.
        label_suffix: what stands in the name of a label image in place of the image's ending, such as "_mask.tif".
        subfolders: look for images in folders below as well; their labels lie in folders of the same names.
        unseen: names of classes whose pixels are void in ``own_train``, whose label space has the others alone.

    Raises:
        MissingFileError, ConfigError: a key is missing, contradicts another, or names a file that is not there.
    """
    _check_given(images, {"LABELS": labels, "CLASSES": classes}, (val_images, val_labels, val_list))
    split = folder_classes(classes, unseen)
    label_map = own_label_map(split.num_classes, void_values, label_values)
    register = partial(
        register_listed_images,
        label_name=f"{{id}}{label_suffix}",
        subfolders=subfolders,
        cure=f"The folders are those of {_KEY}",
    )
    train, val = OWN_NAMES
    register(
        train,
        class_split=split.seen_only(),
        label_map=_narrow(label_map, split) if unseen else label_map,
        image_root=images,
        label_root=labels,
        excluded_ids=val_list or None,
    )
    if not (val_list or val_images):
        return
    folders: dict[str, Any] = {
        "image_root": val_images or images,
        "label_root": val_labels or labels,
        "image_ids": val_list or None,
    }
    register(val, class_split=split, label_map=label_map, **folders)
    if unseen:
        register(OWN_UNSEEN, class_split=split, label_map=label_map, evaluate_unseen_only=True, **folders)


def _narrow(label_map: Mapping[int, int] | None, split: ClassSplit) -> dict[int, int]:
    """The label map (None: values are classes) with the label space of the seen classes behind it."""
    narrow = split.narrow_labels(IGNORE_LABEL)
    return narrow if label_map is None else {value: narrow[label] for value, label in label_map.items()}


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
        "label_values": keys.LABEL_VALUES,
        "unseen": keys.UNSEEN,
    }
    layout = {"label_suffix": keys.LABEL_SUFFIX, "subfolders": keys.SUBFOLDERS}
    if settings["images"]:
        register_folders(**settings, **layout)
    elif any(settings.values()):
        given = [name.upper() for name, value in settings.items() if value]
        raise ConfigError(f"{_KEY}.{given[0]} is set, but {_KEY}.IMAGES is empty; name the folder of the images")
