# SPDX-License-Identifier: Apache-2.0
"""PASCAL-Context for semantic segmentation, 59 classes with or without background (Mottaghi et al., 2014).

``<root>/VOCdevkit/VOC2010/JPEGImages`` and, written by ``datasets/prepare_pascal_context.py`` from the 459-class
``trainval/*.mat``, ``<root>/VOCdevkit/VOC2010/SegmentationContext60``. Two orders of the classes are in use: FCN's and
ScribbleSup's, which is ours, and the alphabetical one of the Detail API and mmsegmentation. Numbers are therefore
always found through names. The folder has a name of its own, so that PNGs of the other order are not taken for ours.

The sets ``..._60`` score the background, the sets ``..._59`` ignore it; published tables hold both. They read the same
PNGs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.class_split import ClassSplit
from padding.data.loaders.listed_images import read_id_list
from padding.data.readers import read_mat_labels, read_text
from padding.data.registration import register_listed_images
from padding.data.roots import splits_dir
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import voc_palette
from padding.errors import DataError, MissingFileError

CONTEXT_FOLDER = Path("VOCdevkit") / "VOC2010"
CONTEXT_LABELS = "SegmentationContext60"

_NUM_RAW = 459
_NUM_THINGS = 20  # the classes of VOC, which come first
_COUNTS = {"train": 4998, "val": 5105}
_CURE = "datasets/README.md lists the official downloads; python datasets/prepare_pascal_context.py writes the labels."


@dataclass(frozen=True)
class ContextClass:
    """One row of ``datasets/splits/pascal_context/classes.tsv``."""

    name: str  # our name, FCN's
    tag: str  # in ScribbleSup's XML files
    alphabetical_index: int  # in the order of the Detail API and mmsegmentation
    raw_name: str  # in the data set's ``labels.txt``
    raw_id: int  # value in ``LabelMap``; 0 for the background, which stands for all other values


@cache
def context_classes() -> tuple[ContextClass, ...]:
    """Background and the 59 classes, in our order."""
    path = splits_dir() / "pascal_context" / "classes.tsv"
    lines = [line.split("\t") for line in read_text(path).splitlines() if not line.startswith("#")]
    for position, columns in enumerate(lines):
        if len(columns) != 6 or columns[0] != str(position):
            raise DataError(f"{path}: row {position} is {columns}; expected six columns, the first one counting up")
    return tuple(ContextClass(name, tag, int(other), raw, int(raw_id)) for _, name, tag, other, raw, raw_id in lines)


def context_split(num_classes: int = 60) -> ClassSplit:
    """The classes in our order; 59: without the background.

    Raises:
        ValueError: another number.
    """
    _check_number(num_classes)
    names = tuple(entry.name for entry in context_classes())
    split = ClassSplit(
        names=names,
        is_thing=tuple(1 <= i <= _NUM_THINGS for i in range(len(names))),
        dataset_ids=tuple(range(len(names))),
        colors=voc_palette(len(names)),
    )
    return split.restricted_to(names[len(names) - num_classes :])


def context_label_map(num_classes: int) -> dict[int, int]:
    """Value in our PNGs -> class id; of 59 classes the background is ignored."""
    _check_number(num_classes)
    first = 60 - num_classes
    return {i: i - first if i >= first else IGNORE_LABEL for i in range(60)} | {IGNORE_LABEL: IGNORE_LABEL}


def _check_number(num_classes: int) -> None:
    if num_classes not in (59, 60):
        raise ValueError(f"PASCAL-Context has 60 classes, or 59 without background; got {num_classes}")


def context_tags() -> dict[str, str]:
    """Class name -> tag in ScribbleSup's files."""
    return {entry.name: entry.tag for entry in context_classes()}


def context_ids(part: str) -> tuple[str, ...]:
    """Image ids of "train" (4998) or "val" (5105).

    Raises:
        DataError: the list does not have the official number of images.
    """
    path = splits_dir() / "pascal_context" / f"{part}.txt"
    ids = read_id_list(path)
    if len(ids) != _COUNTS[part]:
        raise DataError(f"{path}: {len(ids)} images, the official {part} set has {_COUNTS[part]}; restore the file")
    return ids


def read_label_names(path: str | Path) -> dict[int, str]:
    """Value in ``LabelMap`` -> name, from the data set's ``labels.txt`` with lines such as "2: aeroplane".

    Raises:
        MissingFileError: there is no such file.
        DataError: a line has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; it is part of the PASCAL-Context download, beside trainval/")
    names: dict[int, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        value, colon, name = line.partition(":")
        if line.strip() and not (colon and value.strip().isdigit() and name.strip()):
            raise DataError(f"{path}:{number}: expected a number, a colon and a name, got '{line}'")
        if line.strip():
            names[int(value)] = name.strip()
    return names


def context_lookup(names: Mapping[int, str] | None = None) -> npt.NDArray[np.uint8]:
    """Value in ``LabelMap`` -> our index, (460,) uint8; classes beyond the 59 are background, as in FCN.

    Args:
        names: of ``labels.txt``, which decide then; None: the numbers of our table.

    Raises:
        DataError: a class is not among the names.
    """
    lookup = np.zeros(_NUM_RAW + 1, np.uint8)
    values = {name: value for value, name in (names or {}).items()}
    for index, entry in enumerate(context_classes()):
        if index == 0:
            continue
        value = values.get(entry.raw_name) if names is not None else entry.raw_id
        if value is None or not 0 < value <= _NUM_RAW:
            raise DataError(
                f"labels.txt has no class '{entry.raw_name}' among its {len(values)} names; use the labels.txt of the "
                "459-class PASCAL-Context download, not 59_labels.txt"
            )
        lookup[value] = index
    return lookup


def read_context_mat(path: str | Path, lookup: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Labels of one ``.mat`` file in our order, (h, w) uint8, 0 to 59.

    Args:
        path: file with a ``LabelMap`` of values 0 to 459.
        lookup: see ``context_lookup``.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be read, has no ``LabelMap``, or other values.
    """
    raw = read_mat_labels(path, "LabelMap", cure="unpack trainval.tar.gz of PASCAL-Context again, 10 103 files")
    if raw.min() < 0 or raw.max() > _NUM_RAW:
        raise DataError(f"{path}: LabelMap has values from {raw.min()} to {raw.max()}; expected 0 to {_NUM_RAW}")
    return lookup[raw.astype(np.int64)]


def register_pascal_context(root: Path) -> None:
    """Register ``pascal_context_{train,val}_{60,59}``."""
    folder = root / CONTEXT_FOLDER
    for part in _COUNTS:
        for num_classes in (60, 59):
            register_listed_images(
                f"pascal_context_{part}_{num_classes}",
                class_split=context_split(num_classes),
                image_root=folder / "JPEGImages",
                label_root=folder / CONTEXT_LABELS,
                image_ids=splits_dir() / "pascal_context" / f"{part}.txt",
                label_map=context_label_map(num_classes),
                background_id=0 if num_classes == 60 else None,
                cure=_CURE,
            )
