# SPDX-License-Identifier: Apache-2.0
"""A panoptic annotation file as columns of numbers: some twenty bytes a segment, where objects take hundreds.

The file is read part by part, so that neither its text nor its objects are ever in memory as a whole. A file in which
anything is wrong is read again by ``coco_json``, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from padding.data.coco_json import (
    MAX_SEGMENT_ID,
    Category,
    Id,
    ImageEntry,
    PanopticEntry,
    PanopticFile,
    SegmentEntry,
    content_findings,
    fill_sizes,
    read_checked,
)
from padding.data.json_parts import NotPlainError, typed_parts
from padding.data.sample import SegmentInfo
from padding.errors import DataError

_KINDS: Mapping[str, type] = {"images": ImageEntry, "annotations": PanopticEntry, "categories": Category}

_COLUMNS: Mapping[str, Any] = {
    "counts": np.int64,
    "ids": np.int32,
    "categories": np.int64,
    "crowd": np.bool_,
    "areas": np.float64,
}


@dataclass
class PanopticTable:
    """Content of a panoptic file: A annotations with S segments in all.

    Attributes:
        images: as listed.
        categories: as listed.
        image_ids: (A) image of each annotation.
        file_names: (A) its PNG.
        starts: (A+1,) int64, the segments of annotation a are ``starts[a]:starts[a + 1]``.
        segment_ids: (S,) int32.
        category_ids: (S,) int64, those of the file.
        crowd: (S,) bool.
        areas: (S,) float64 pixels as stated, NaN where no number is.
        ignored: position of an annotation -> ids in its PNG that count as void.
    """

    images: list[ImageEntry]
    categories: list[Category]
    image_ids: list[Id]
    file_names: list[str]
    starts: npt.NDArray[np.int64]
    segment_ids: npt.NDArray[np.int32]
    category_ids: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    ignored: Mapping[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = {image_id: index for index, image_id in enumerate(self.image_ids)}

    @classmethod
    def of(cls, content: PanopticFile) -> PanopticTable:
        """The table of a file that is in memory and sound."""
        builder = _Builder()
        builder.add(content.annotations)
        return builder.table(content.images, content.categories)

    def entries(self) -> Iterator[PanopticEntry]:
        """All annotations, one after the other."""
        return map(self.entry, self.image_ids)

    def entry(self, image_id: Id) -> PanopticEntry:
        """Annotation of an image.

        Raises:
            KeyError: it has none.
        """
        index = self.position[image_id]
        part = slice(*self.starts[index : index + 2].tolist())
        columns = (self.segment_ids[part], self.category_ids[part], self.crowd[part], self.areas[part])
        segments = [
            SegmentEntry(segment_id, category_id, crowd, None if math.isnan(area) else area)
            for segment_id, category_id, crowd, area in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return PanopticEntry(image_id, self.file_names[index], segments, list(self.ignored.get(index, ())))


def read_panoptic_file(path: str | Path, *, image_root: str | Path | None = None, cure: str = "") -> PanopticTable:
    """Panoptic annotations, checked as far as no PNG is needed; arguments and errors as of ``read_image_file``."""
    table = _sound_table(path)
    if table is None:
        try:
            return PanopticTable.of(read_checked(path, PanopticFile, image_root, cure))
        except OverflowError as error:
            raise DataError(f"{path}: a category id needs more than 64 bits; give smaller ones. {cure}") from error
    if image_root is not None:
        fill_sizes(table.images, path, image_root)
        content_findings(PanopticFile(table.images, [], table.categories)).settle(path, cure)
    return table


def _sound_table(path: str | Path) -> PanopticTable | None:
    """Table of a file in which nothing is wrong; None if anything is, or if it has to be read in one piece."""
    images: list[ImageEntry] = []
    categories: list[Category] = []
    builder = _Builder()
    heads: dict[str, list[Any]] = {"images": images, "categories": categories}
    try:
        for key, entries in typed_parts(path, _KINDS):
            if key in heads:
                heads[key] += entries
            else:
                builder.add(entries)
    except (NotPlainError, OSError, OverflowError):
        return None
    if not builder.ids_are_sound or content_findings(PanopticFile(images, [], categories)).problems:
        return None
    table = builder.table(images, categories)
    listed = {image.id for image in images}
    one_each = len(table.position) == len(table.image_ids)
    known = builder.categories <= {category.id for category in categories}
    return table if one_each and known and table.position.keys() <= listed else None


class _Builder:
    """Collects columns from annotations."""

    def __init__(self) -> None:
        self.ids_are_sound = True
        self.categories: set[int] = set()
        self._image_ids: list[Id] = []
        self._file_names: list[str] = []
        self._ignored: dict[int, list[int]] = {}
        self._columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _COLUMNS}

    def add(self, annotations: Sequence[PanopticEntry]) -> None:
        """Take in some annotations, as ``coco_json`` types them."""
        first = len(self._image_ids)
        self._image_ids += [annotation.image_id for annotation in annotations]
        self._file_names += [annotation.file_name for annotation in annotations]
        self._ignored |= {
            first + index: annotation.ignored_segment_ids
            for index, annotation in enumerate(annotations)
            if annotation.ignored_segment_ids
        }
        counts = np.array([len(annotation.segments_info) for annotation in annotations], np.int64)
        segments = [segment for annotation in annotations for segment in annotation.segments_info]
        ids = np.array([segment.id for segment in segments], np.int64)
        categories = [segment.category_id for segment in segments]
        self.categories.update(categories)
        self.ids_are_sound &= _are_sound(ids, counts)
        values = {
            "counts": counts,
            "ids": ids,
            "categories": categories,
            "crowd": [bool(segment.iscrowd) for segment in segments],
            "areas": [segment.area for segment in segments],  # None becomes NaN
        }
        for name, column in values.items():
            self._columns[name].append(np.array(column, _COLUMNS[name]))

    def table(self, images: list[ImageEntry], categories: list[Category]) -> PanopticTable:
        """All that was added; the builder is empty afterwards."""
        # One after the other, so that they are never twice in memory as a whole.
        columns = {
            name: np.concatenate([np.zeros(0, kind), *self._columns.pop(name)]) for name, kind in _COLUMNS.items()
        }
        return PanopticTable(
            images=images,
            categories=categories,
            image_ids=self._image_ids,
            file_names=self._file_names,
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(columns["counts"])]),
            segment_ids=columns["ids"],
            category_ids=columns["categories"],
            crowd=columns["crowd"],
            areas=columns["areas"],
            ignored=self._ignored,
        )


def _are_sound(ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> bool:
    """Whether segment ids (S,) are such as a PNG holds, and no annotation of ``counts`` (A,) segments repeats one."""
    if not len(ids):
        return True
    if ids.min() <= 0 or ids.max() > MAX_SEGMENT_ID:
        return False
    keys = np.sort((np.repeat(np.arange(len(counts)), counts) << MAX_SEGMENT_ID.bit_length()) | ids)
    return bool((keys[1:] != keys[:-1]).all())


@dataclass(frozen=True)
class SegmentColumns:
    """Segments of a data set in its label space.

    Attributes:
        ids: (S,) int32.
        classes: (S,) int16 contiguous.
        crowd: (S,) bool.
        things: classes that are things.
    """

    ids: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int16]
    crowd: npt.NDArray[np.bool_]
    things: frozenset[int]

    def infos(self, start: int, stop: int) -> Iterator[SegmentInfo]:
        """The segments from one position to another."""
        columns = (column[start:stop].tolist() for column in (self.ids, self.classes, self.crowd))
        for segment_id, class_id, crowd in zip(*columns, strict=True):
            yield {"id": segment_id, "category_id": class_id, "iscrowd": int(crowd), "isthing": class_id in self.things}


class SegmentList(Sequence[SegmentInfo]):
    """The segments of one image: a list of dicts to whoever reads it, three columns in memory; pickled as a list."""

    __slots__ = ("_columns", "_start", "_stop")

    def __init__(self, columns: SegmentColumns, start: int, stop: int) -> None:
        self._columns, self._start, self._stop = columns, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[SegmentInfo]:
        return self._columns.infos(self._start, self._stop)

    @overload
    def __getitem__(self, index: int) -> SegmentInfo: ...

    @overload
    def __getitem__(self, index: slice) -> list[SegmentInfo]: ...

    def __getitem__(self, index: int | slice) -> SegmentInfo | list[SegmentInfo]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[SegmentInfo]]]:
        return list, (list(self),)


def classes_of(category_ids: npt.NDArray[np.int64], contiguous: Mapping[int, int]) -> npt.NDArray[np.int16]:
    """Contiguous class (S,) int16 of each category id of a file, -1 for those that have none."""
    known = np.array(sorted(contiguous), np.int64)
    classes = np.array([*(contiguous[category] for category in sorted(contiguous)), -1], np.int16)
    place = np.searchsorted(known, category_ids)
    # What is not among them, and what is behind the last.
    place[np.append(known, 0)[place] != category_ids] = len(known)
    return classes[place]


def segment_lists(
    table: PanopticTable, classes: npt.NDArray[np.int16], things: Iterable[int]
) -> tuple[list[SegmentList], list[list[int]]]:
    """The segments of each annotation that have a class, and the ids of those that have none.

    Args:
        table: A annotations, S segments.
        classes: (S,) int16, -1 for none.
        things: contiguous classes that are things.

    Returns:
        A lists each.
    """
    kept = classes >= 0
    columns = SegmentColumns(table.segment_ids[kept], classes[kept], table.crowd[kept], frozenset(things))
    before = np.concatenate([[0], np.cumsum(kept)])[table.starts].tolist()
    lists = [SegmentList(columns, start, stop) for start, stop in pairwise(before)]
    outside = np.concatenate([[0], np.cumsum(~kept)])[table.starts].tolist()
    others = table.segment_ids[~kept]
    return lists, [others[start:stop].tolist() for start, stop in pairwise(outside)]
