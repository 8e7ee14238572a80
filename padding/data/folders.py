# SPDX-License-Identifier: Apache-2.0
"""A user's own data without code: folders and a list of class names become ``own_train`` and ``own_val``.

With a list of unseen class names they are a zero-shot problem: pixels of these classes are void in ``own_train``, and
``own_val_unseen`` counts them alone. The keys are DATASETS.FOLDERS.*; index images and scribbles are registered here,
COCO's annotations in ``own_annotations``, saliency in ``own_saliency``. ``python -m padding.data.label_audit`` looks
for the usual mistakes in labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padding.data.class_split import ClassSplit
from padding.data.loaders.listed_images import load_listed_images
from padding.data.own_annotations import register_own_annotations
from padding.data.own_data import KEY, OWN_DENSE, OWN_NAMES, OWN_UNSEEN, OwnData, folder_classes
from padding.data.own_saliency import register_own_saliency
from padding.data.registration import register_data_set, register_listed_images
from padding.data.sample import IGNORE_LABEL, SCRIBBLE_PADDING, DatasetDict
from padding.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_CURE = f"The folders are those of {KEY}"


def register_own_data(cfg: CfgNode) -> None:
    """Register what DATASETS.FOLDERS names; nothing if no key of it is set.

    Raises:
        MissingFileError, ConfigError, DataError: see ``register_folders``.
    """
    own = OwnData.from_config(cfg)
    if own.given:
        register_folders(own)


def register_folders(own: OwnData) -> None:
    """Register ``own_train`` and, with validation data, ``own_val`` and (with unseen classes) ``own_val_unseen``.

    With saliency also ``own_train_saliency`` and ``own_val_saliency``, and with scribbles on images that have dense
    labels ``own_train_dense``.

    Args:
        own: the keys.

    Raises:
        MissingFileError, ConfigError: a key is missing, contradicts another, or names a file that is not there.
        DataError: an annotation file does not hold what it should.
    """
    own.check()
    if own.annotations:
        register_own_annotations(own)
    elif own.has_classes:
        _register_label_images(own)
    if own.saliency:
        register_own_saliency(own)


def _register_label_images(own: OwnData) -> None:
    """Register index images, or scribbles."""
    split = folder_classes(own.classes, own.unseen)
    label_map = own_label_map(split.num_classes, own.void_values, own.label_values)
    register = partial(
        register_listed_images, label_name=f"{{id}}{own.label_suffix}", subfolders=own.subfolders, cure=_CURE
    )
    train, val = OWN_NAMES
    narrow = _narrow(label_map, split) if own.unseen else label_map
    dense = OWN_DENSE if own.scribbles else train
    if own.labels:
        register(
            dense,
            class_split=split.seen_only(),
            label_map=narrow,
            image_root=own.images,
            label_root=own.labels,
            excluded_ids=own.val_list or None,
        )
    if own.scribbles:
        _register_scribbles(own, split.seen_only(), narrow)
    if not (own.val_list or own.val_images):
        return
    folders: dict[str, Any] = {
        "image_root": own.val_images or own.images,
        "label_root": own.val_labels or own.labels,
        "image_ids": own.val_list or None,
    }
    register(val, class_split=split, label_map=label_map, **folders)
    if own.unseen:
        register(OWN_UNSEEN, class_split=split, label_map=label_map, evaluate_unseen_only=True, **folders)


def _register_scribbles(own: OwnData, split: ClassSplit, label_map: Mapping[int, int] | None) -> None:
    """Register ``own_train``: the images that have a scribble, with it as their label."""
    from detectron2.data import MetadataCatalog

    values = {i: i for i in range(split.num_classes)} if label_map is None else dict(label_map)
    values = {SCRIBBLE_PADDING: IGNORE_LABEL, **values, IGNORE_LABEL: values.get(IGNORE_LABEL, IGNORE_LABEL)}
    files = {"image_root": own.images, "label_root": own.scribbles}
    loader = partial(
        load_scribbled_images,
        **files,
        excluded_ids=own.val_list or None,
        label_name=f"{{id}}{own.label_suffix}",
        subfolders=own.subfolders,
        cure=_CURE,
    )
    name = OWN_NAMES[0]
    register_data_set(name, loader, split, "sem_seg", unseen_only=False, label_map=values, files=files)
    if own.labels:
        MetadataCatalog.get(name).set(dense_set=OWN_DENSE)


def load_scribbled_images(**options: Any) -> list[DatasetDict]:
    """Images that have scribbles: entries of ``load_listed_images`` whose label file exists.

    Args:
        options: of ``load_listed_images``.

    Raises:
        MissingFileError: see ``load_listed_images``; or no image has scribbles.
        ValueError: likewise.
    """
    entries = load_listed_images(**options)
    kept = [entry for entry in entries if Path(entry["sem_seg_file_name"]).is_file()]
    if not kept:
        raise MissingFileError(
            f"{options['label_root']}: holds scribbles of none of the {len(entries)} images, such as "
            f"{Path(entries[0]['sem_seg_file_name']).name}; {KEY}.SCRIBBLES is the folder and LABEL_SUFFIX the end of "
            "their names"
        )
    return kept


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
        raise ConfigError(f"{KEY}.VOID_VALUES is {tuple(void_values)}; expected values of label images, 0 to 65535")
    if label_values and len(label_values) != num_classes:
        raise ConfigError(
            f"{KEY}.LABEL_VALUES has {len(label_values)} entries for {num_classes} classes; give the value of each, "
            "or a list of its values"
        )
    label_map = dict.fromkeys((*void_values, IGNORE_LABEL), IGNORE_LABEL)
    for label, entry in enumerate(label_values or range(num_classes)):
        for value in entry if isinstance(entry, Sequence) else (entry,):
            if not isinstance(value, int) or not 0 <= value <= 65535:
                raise ConfigError(f"{KEY}.LABEL_VALUES has {value!r} for class {label}; expected 0 to 65535")
            listed = value in void_values or label_map.get(value, IGNORE_LABEL) != IGNORE_LABEL
            if listed and label_values:
                raise ConfigError(f"{KEY}: the value {value} means two things; give it to one class, or to VOID_VALUES")
            if not listed:
                label_map[value] = label
    if set(label_map.values()) == {IGNORE_LABEL}:
        raise ConfigError(f"{KEY}.VOID_VALUES is {tuple(void_values)}; leave at least one of the {num_classes} classes")
    return label_map


def _narrow(label_map: Mapping[int, int] | None, split: ClassSplit) -> dict[int, int]:
    """The label map (None: values are classes) with the label space of the seen classes behind it."""
    narrow = split.narrow_labels(IGNORE_LABEL)
    return narrow if label_map is None else {value: narrow[label] for value, label in label_map.items()}
