# SPDX-License-Identifier: Apache-2.0
"""The label space of a data set: names, thing or stuff, seen or unseen (PADing, Sec. 4: the zero-shot protocols).

Indices are derived from names, never written down: a list of unseen names in ``datasets/splits`` and a table of
categories are enough. Three kinds of id are kept apart: the *data-set id* of the annotation files, the *contiguous id*
(index in ``names``, one numbering for things and stuff), and the *narrow* contiguous id of ``seen_only()``, in which a
zero-shot training set is labelled.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from padding.data.readers import read_text
from padding.data.roots import splits_dir
from padding.errors import DataError, MissingFileError

_GREY = (128, 128, 128)
_LABELME_VOID = "__ignore__"
_ROBOFLOW_HEADER = re.compile(r"pixel value\s*,\s*class", re.IGNORECASE)


@dataclass(frozen=True)
class ClassSplit:
    """Classes of one label space; the contiguous id of a class is its index in ``names``.

    Attributes:
        names: class names, unique.
        is_thing: per class, True for a countable class.
        dataset_ids: per class, its id in the annotation files, unique.
        unseen_names: classes that have no training example; a subset of ``names``.
        colors: per class, RGB in [0, 255] for drawings.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    dataset_ids: tuple[int, ...]
    unseen_names: frozenset[str] = frozenset()
    colors: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.colors:
            object.__setattr__(self, "colors", (_GREY,) * len(self.names))
        lengths = {"is_thing": self.is_thing, "dataset_ids": self.dataset_ids, "colors": self.colors}
        for field_name, values in lengths.items():
            if len(values) != len(self.names):
                raise ValueError(
                    f"{field_name} has {len(values)} entries for {len(self.names)} class names; give one per class"
                )
        for field_name, entries in (("class names", self.names), ("data-set ids", self.dataset_ids)):
            repeated = [entry for entry, count in Counter(entries).items() if count > 1]
            if repeated:
                raise DataError(f"{field_name} appear more than once: {repeated[:5]}; every class needs its own")
        self.ids_of(sorted(self.unseen_names))

    @property
    def num_classes(self) -> int:
        """Number of classes, the no-object class of a model not counted."""
        return len(self.names)

    @cached_property
    def unseen_ids(self) -> tuple[int, ...]:
        """Contiguous ids of the unseen classes, ascending."""
        return tuple(i for i, name in enumerate(self.names) if name in self.unseen_names)

    @cached_property
    def seen_ids(self) -> tuple[int, ...]:
        """Contiguous ids of the seen classes, ascending."""
        return tuple(i for i, name in enumerate(self.names) if name not in self.unseen_names)

    @cached_property
    def thing_ids(self) -> frozenset[int]:
        """Contiguous ids of the countable classes."""
        return frozenset(i for i, thing in enumerate(self.is_thing) if thing)

    @cached_property
    def contiguous_id(self) -> dict[int, int]:
        """Data-set id to contiguous id."""
        return {dataset_id: i for i, dataset_id in enumerate(self.dataset_ids)}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def ids_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Contiguous ids of some classes, in the order of their names.

        Raises:
            DataError: a name is not a class of this split; the message gives the nearest spelling.
        """
        names = tuple(names)
        unknown = [name for name in names if name not in self._index]
        if unknown:
            raise DataError(f"not among the {self.num_classes} classes: " + "; ".join(map(self._suggest, unknown[:5])))
        return tuple(self._index[name] for name in names)

    def _suggest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.0)
        return f"'{name}' (nearest: '{near[0]}')" if near else f"'{name}'"

    def seen_only(self) -> ClassSplit:
        """The narrow split: seen classes alone, renumbered from 0 in the same order, nothing unseen."""
        return self.restricted_to([self.names[i] for i in self.seen_ids])

    def narrow_labels(self, ignore_label: int) -> dict[int, int]:
        """Contiguous id, or the ignore label -> label in ``seen_only()``; unseen classes become the ignore label."""
        narrow = {wide: i for i, wide in enumerate(self.seen_ids)}
        return {i: narrow.get(i, ignore_label) for i in (*range(self.num_classes), ignore_label)}

    def restricted_to(self, names: Iterable[str]) -> ClassSplit:
        """Split with only some classes, in the order of their names; they stay seen or unseen as they were."""
        ids = self.ids_of(names)
        kept = tuple(self.names[i] for i in ids)
        return ClassSplit(
            names=kept,
            is_thing=tuple(self.is_thing[i] for i in ids),
            dataset_ids=tuple(self.dataset_ids[i] for i in ids),
            unseen_names=self.unseen_names & frozenset(kept),
            colors=tuple(self.colors[i] for i in ids),
        )

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]], unseen_names: Iterable[str] = ()) -> ClassSplit:
        """Split from COCO-style category entries, in their order.

        Args:
            categories: dicts with ``id`` and ``name``; ``isthing`` (default 1) and ``color`` (default grey) may lack.
            unseen_names: names of the unseen classes.

        Raises:
            DataError: an entry lacks ``id`` or ``name``, an id or a name repeats, a colour is none, or an unseen name
                is unknown.
        """
        if not isinstance(categories, Sequence):
            raise DataError(f"{type(categories).__name__} in place of a list of categories, each with 'id' and 'name'")
        for category in categories:
            if not isinstance(category, Mapping) or not {"id", "name"} <= category.keys():
                raise DataError(f"category {category} needs the fields 'id' and 'name'")
            if isinstance(category["id"], bool) or not isinstance(category["id"], int):
                raise DataError(f"category {dict(category)}: its 'id' is no integer; write a number, without quotes")
            if not isinstance(category["name"], str):
                raise DataError(f"category {dict(category)}: its 'name' is no text; put it in quotes")
        return cls(
            names=tuple(str(category["name"]) for category in categories),
            is_thing=tuple(bool(category.get("isthing", 1)) for category in categories),
            dataset_ids=tuple(int(category["id"]) for category in categories),
            unseen_names=frozenset(unseen_names),
            colors=tuple(_as_color(category.get("color", _GREY)) for category in categories),
        )


def _as_color(value: Any) -> tuple[int, int, int]:
    """RGB of three numbers, of "#rrggbb" as annotation tools write it, or grey for null."""
    if value is None:
        return _GREY
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value.removeprefix("#"))
        return red, green, blue
    if isinstance(value, Sequence) and len(value) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in value):
        return int(value[0]), int(value[1]), int(value[2])
    raise DataError(f"{value!r} is no colour; write three integers from 0 to 255, or a text like '#1f77b4'")


def class_split_of(dataset_name: str) -> ClassSplit:
    """Label space of a registered data set.

    Sets registered elsewhere (Detectron2's own, a user's) are described by their ``stuff_classes`` or
    ``thing_classes``, everything seen.

    Raises:
        DataError: the set is unknown or names no classes.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    known = dataset_name in DatasetCatalog or dataset_name in MetadataCatalog.list()
    metadata = MetadataCatalog.get(dataset_name) if known else None
    split = getattr(metadata, "class_split", None)
    if split is not None:
        return split
    things = tuple(getattr(metadata, "thing_classes", ()))
    names = tuple(getattr(metadata, "stuff_classes", ())) or things
    if not names:
        why = "has no class names in its metadata" if known else "is not registered"
        raise DataError(
            f"data set '{dataset_name}' {why}. Call padding.data.catalog.register_all(), or register your own "
            "(register_panoptic, register_sem_seg)"
        )
    is_thing = tuple(name in things for name in names)
    return ClassSplit(names=names, is_thing=is_thing, dataset_ids=tuple(range(len(names))))


def read_name_list(path: str | Path) -> tuple[str, ...]:
    """Names from a text file, one per line; lines starting with ``#`` and empty lines are skipped.

    A line with tabs is a row of a table, such as ``coco_stuff_171.tsv``; its last column is the name. Lists of
    annotation tools are read as they are: Roboflow's ``_classes.csv``, with the header "Pixel Value, Class", and
    labelme's, whose first line ``__ignore__`` stands for void and has no label.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file names nothing, or a name twice; the values of a ``_classes.csv`` are not 0, 1, ...
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such list of class names; the lists shipped with the project lie in {splits_dir()}"
        )
    lines = (line.strip() for line in read_text(path).splitlines())
    rows = [line for line in lines if line and not line.startswith("#")]
    if rows and _ROBOFLOW_HEADER.fullmatch(rows[0]):
        names = _names_by_value(rows[1:], path)
    else:
        if rows and rows[0] == _LABELME_VOID:
            del rows[0]
        names = tuple(line.rpartition("\t")[2] for line in rows)
    if not names:
        raise DataError(f"{path}: holds no name; write one class name per line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {repeated} more than once; remove the repeated lines")
    return names


def _names_by_value(rows: Sequence[str], path: Path) -> tuple[str, ...]:
    cells = [row.partition(",") for row in rows]
    if [value.strip() for value, _, _ in cells] != [str(i) for i in range(len(rows))]:
        raise DataError(
            f"{path}: the pixel values are not 0 to {len(rows) - 1} in this order; write a file of the names "
            "alone, and their values in DATASETS.FOLDERS.LABEL_VALUES"
        )
    return tuple(name.strip() for _, _, name in cells)
