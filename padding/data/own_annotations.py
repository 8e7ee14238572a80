# SPDX-License-Identifier: Apache-2.0
"""A user's own COCO annotations, as CVAT, Label Studio, Roboflow, Supervisely and labelme export them.

Objects, or with a folder of PNGs panoptic segments, become ``own_train``, ``own_val`` and, with unseen class names,
``own_val_unseen``. Classes are joined by name: ids may start at 0, and differ between the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.loaders.instances_json import load_instances
from padding.data.loaders.listed_images import read_id_list
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.own_data import KEY, OWN_NAMES, OWN_UNSEEN, OwnData, check_unseen
from padding.data.placeholder import placeholder_of, without_placeholder
from padding.data.registration import register_data_set
from padding.data.sample import DatasetDict
from padding.data.sets.voc import voc_palette
from padding.data.typed_json import read_typed_json
from padding.errors import ConfigError, DataError, MissingFileError

_CURE = f"The files are those of {KEY}"


class LabelCategory(msgspec.Struct, gc=False):
    """A class of an annotation file, with what says whether it is countable."""

    id: int
    name: str
    isthing: bool | int | None = None
    supercategory: Any = None


class LabelledObject(msgspec.Struct, gc=False):
    """Class of an object; None where it is said for each segment of an image."""

    category_id: int | None = None


class ObjectFile(msgspec.Struct):
    """The classes of the objects of an annotation file."""

    annotations: list[LabelledObject]


class CategoryFile(msgspec.Struct):
    """The classes of an annotation file; everything else is skipped."""

    categories: list[LabelCategory]


def register_own_annotations(own: OwnData) -> None:
    """Register the sets of an annotation file.

    Args:
        own: checked keys, ANNOTATIONS among them.

    Raises:
        MissingFileError: an annotation file does not exist.
        DataError: it has no classes, or says not which of them are things.
        ConfigError: a class is unknown, or none is seen.
    """
    train = read_categories(own.annotations)
    val = read_categories(own.val_annotations) if own.val_annotations else train
    split = own_split(own, train, val)
    name, val_name = OWN_NAMES
    narrow = _with_ids(split.seen_only(), train, own.annotations)
    _register(
        name,
        narrow,
        own.annotations,
        own.images,
        own.panoptic,
        unseen_objects=own.unseen,
        excluded_ids=own.val_list or None,
    )
    if not (own.val_annotations or own.val_list):
        return
    places = (
        own.val_annotations or own.annotations,
        own.val_images or own.images,
        own.val_panoptic or own.panoptic,
    )
    wide = _with_ids(split, val, places[0])
    _register(val_name, wide, *places, image_ids=own.val_list or None)
    if own.unseen:
        _register(OWN_UNSEEN, wide, *places, image_ids=own.val_list or None, unseen_only=True)


def own_split(own: OwnData, train: Sequence[LabelCategory], val: Sequence[LabelCategory]) -> ClassSplit:
    """Label space of annotation files: the classes of CLASSES, else those of the file, in its order.

    Args:
        own: reads ``classes``, ``unseen`` and ``panoptic``.
        train: classes of the training file; their ids are those of the result.
        val: of the file to evaluate on, which may have unseen classes that the other lacks.

    Raises:
        ConfigError, DataError: see ``register_own_annotations``.
    """
    known = {category.name: category for category in (*val, *train)}
    if own.classes:
        names, place = read_name_list(own.classes), own.classes
        if missing := [name for name in names if name not in known]:
            raise ConfigError(
                f"{KEY}.CLASSES: {own.classes} lists {missing[:5]}, which {own.annotations} does not have; its classes "
                f"are {', '.join(known)}"
            )
    else:
        extra = [c.name for c in val if c.name in own.unseen and c.name not in {t.name for t in train}]
        names, place = (*(category.name for category in train), *extra), own.annotations
    check_unseen(names, own.unseen, place=place)
    is_thing = [known[name].isthing for name in names]
    if own.panoptic and None in is_thing:
        raise DataError(
            f"{own.annotations}: class '{names[is_thing.index(None)]}' has no 'isthing'; write 1 for things that are "
            "counted and 0 for stuff such as sky"
        )
    return ClassSplit(
        names=names,
        unseen_names=frozenset(own.unseen),
        is_thing=tuple(not own.panoptic or bool(thing) for thing in is_thing),
        dataset_ids=tuple(range(len(names))),
        colors=voc_palette(len(names) + 1)[1:],
    )


def read_categories(path: str) -> list[LabelCategory]:
    """Classes of an annotation file, in its order, without Roboflow's placeholder.

    Raises:
        MissingFileError: there is no such file.
        DataError: it has another shape, or an id or a name stands twice.
    """
    categories = read_typed_json(path, CategoryFile, cure=_CURE).categories
    if not categories:
        raise DataError(f"{path}: 'categories' is empty; export the classes too")
    if placeholder_of(categories) is not None:
        objects = read_typed_json(path, ObjectFile, cure=_CURE).annotations
        categories = without_placeholder(categories, {labelled.category_id for labelled in objects})
    for what in ("name", "id"):
        value, count = Counter(getattr(category, what) for category in categories).most_common(1)[0]
        if count > 1:
            raise DataError(f"{path}: category {what} {value!r} stands {count} times; give each its own")
    return categories


def _with_ids(split: ClassSplit, categories: Sequence[LabelCategory], path: str) -> ClassSplit:
    """The same classes with the ids of a file.

    Raises:
        DataError: the file lacks a class.
    """
    ids = {category.name: category.id for category in categories}
    if missing := [name for name in split.names if name not in ids]:
        raise DataError(
            f"{path}: lacks the class {missing[0]!r}, nor has it {len(missing) - 1} others of the {split.num_classes}; "
            "add them to its 'categories' (they need no objects)"
        )
    return ClassSplit(
        names=split.names,
        is_thing=split.is_thing,
        dataset_ids=tuple(ids[name] for name in split.names),
        unseen_names=split.unseen_names,
        colors=split.colors,
    )


def _register(  # noqa: PLR0913  (one argument per file or folder)
    name: str,
    split: ClassSplit,
    annotations: str,
    images: str,
    panoptic: str,
    *,
    image_ids: str | None = None,
    excluded_ids: str | None = None,
    unseen_objects: Sequence[str] = (),
    unseen_only: bool = False,
) -> None:
    from detectron2.data import MetadataCatalog

    load: Callable[[], list[DatasetDict]]
    if panoptic:
        files = {"image_root": images, "panoptic_root": panoptic, "panoptic_json": annotations}
        load = partial(load_panoptic, **files, class_split=split, unseen_policy="ignore_pixels", cure=_CURE)  # type: ignore[arg-type]
        evaluator, metadata = "coco_panoptic_seg", {**files, "sem_seg_root": "", "json_file": ""}
    else:
        files = {"image_root": images, "json_file": annotations}
        # An object of an unseen class would teach that such objects are background: its image is left out.
        load = partial(
            load_instances,
            **files,
            class_split=split,
            unlisted="drop_object",
            dropped_with=tuple(unseen_objects),
            cure=_CURE,
        )
        evaluator, metadata = "coco_instance", files
    loader = partial(load_chosen_images, load, images, image_ids=image_ids, excluded_ids=excluded_ids)
    register_data_set(name, loader, split, evaluator, unseen_only=unseen_only, files=metadata)
    if panoptic:
        MetadataCatalog.get(name).outside_is_void = True


def load_chosen_images(
    load: Callable[[], list[DatasetDict]],
    image_root: str | Path,
    *,
    image_ids: str | Path | None = None,
    excluded_ids: str | Path | None = None,
) -> list[DatasetDict]:
    """Some of the images of an annotation file.

    Args:
        load: lists all images.
        image_root: folder of the images.
        image_ids: text file of the file names that are kept, without ending, in their order; None: all.
        excluded_ids: likewise, those that are left out.

    Raises:
        MissingFileError: a list is missing, or names an image that the annotations have not.
    """
    entries = load()
    path = image_ids if image_ids is not None else excluded_ids
    if path is None:
        return entries
    by_id: Mapping[str, Any] = {
        Path(entry["file_name"]).relative_to(image_root).with_suffix("").as_posix(): entry for entry in entries
    }
    chosen = read_id_list(path)
    if image_ids is None:
        left_out = set(chosen)
        return [entry for key, entry in by_id.items() if key not in left_out]
    if missing := [key for key in chosen if key not in by_id]:
        raise MissingFileError(
            f"{path}: lists {missing[0]} and {len(missing) - 1} others of {len(chosen)} that the annotations do not "
            "have; ids are file names below the folder of the images, without ending"
        )
    return [by_id[key] for key in chosen]
