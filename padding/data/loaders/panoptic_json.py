# SPDX-License-Identifier: Apache-2.0
"""Loader of COCO panoptic JSON files into data-set entries, in the label space of the data set.

Detectron2's own loader knows one label space for all; this one serves a narrow training space as well (zero-shot:
PADing, Sec. 4) and decides what happens to segments outside it. Pixels are read later, by the mappers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from padding.data.class_split import ClassSplit
from padding.data.coco_json import Category, ImageEntry
from padding.data.panoptic_table import PanopticTable, classes_of, read_panoptic_file, segment_lists
from padding.data.sample import DatasetDict
from padding.errors import DataError, MissingFileError

logger = logging.getLogger(__name__)

UnseenPolicy = Literal["error", "ignore_pixels", "drop_image"]


def load_panoptic(
    *,
    panoptic_json: str | Path,
    image_root: str | Path,
    panoptic_root: str | Path,
    class_split: ClassSplit,
    sem_seg_root: str | Path = "",
    seen_only: bool = False,
    unseen_policy: UnseenPolicy = "error",
    cure: str = "",
) -> list[DatasetDict]:
    """List the images of a COCO panoptic file.

    An image without segments stays in the list: evaluation needs it, training drops it when
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is set.

    Args:
        panoptic_json: COCO panoptic annotations.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs with segment ids.
        class_split: label space of the result; may be narrower than the file's.
        sem_seg_root: folder of semantic PNGs in the same label space; empty: no such entry. Its files need not exist.
        seen_only: treat the unseen classes of ``class_split`` as if they were outside it: for training in a wide label
            space. A narrow space (``class_split.seen_only()``) holds none and needs no such word.
        unseen_policy: what to do with a segment of a class that the file knows and the label space does not: "error";
            "ignore_pixels": its pixels become void; "drop_image": the image is left out.
        cure: sentence for error messages: how the files are obtained.

    Returns:
        Entries in the order of the file, ``category_id`` contiguous in ``class_split``.

    Raises:
        MissingFileError: the JSON, a folder, an image or a PNG is missing.
        ValueError: the file contradicts itself or ``class_split``, or the policy "error" met such a segment.
    """
    if unseen_policy not in get_args(UnseenPolicy):
        raise ValueError(f"unseen_policy is {unseen_policy!r}; choose one of {get_args(UnseenPolicy)}")
    content = read_panoptic_file(panoptic_json, image_root=image_root, cure=cure)
    allowed = class_split.contiguous_id
    if seen_only:
        allowed = {key: i for key, i in allowed.items() if i not in class_split.unseen_ids}
    outside = names_outside(content.categories, class_split, allowed, panoptic_json)
    reader = _SegmentReader(content, allowed, class_split.thing_ids, outside, unseen_policy, str(panoptic_json))
    entries: list[DatasetDict] = []
    for image in content.images:
        segments = reader.read(image)
        if segments is None:
            continue
        index = content.position.get(image.id)
        name = f"{Path(image.file_name).stem}.png" if index is None else content.file_names[index]
        entry = _image_entry(image, os.path.join(image_root, image.file_name))  # noqa: PTH118  (100k joins: 10x faster)
        entry["pan_seg_file_name"] = os.path.join(panoptic_root, name)  # noqa: PTH118
        if sem_seg_root:
            entry["sem_seg_file_name"] = os.path.join(sem_seg_root, name)  # noqa: PTH118
        entries.append({**entry, **segments})  # type: ignore[typeddict-item]
    require_files(image_root, [entry["file_name"] for entry in entries], cure)
    require_files(panoptic_root, [entry["pan_seg_file_name"] for entry in entries], cure)
    reader.log_summary(kept=len(entries), total=len(content.images))
    return entries


def _image_entry(image: ImageEntry, file_name: str) -> DatasetDict:
    size: dict[str, Any] = {"height": image.size[0], "width": image.size[1]}
    return {"file_name": file_name, "image_id": image.id, **size}  # type: ignore[typeddict-item]


class _SegmentReader:
    """Gives the segments of one image after another and counts what the policy took away."""

    def __init__(
        self,
        table: PanopticTable,
        allowed: Mapping[int, int],
        thing_ids: frozenset[int],
        outside: Mapping[int, str],
        policy: UnseenPolicy,
        json_name: str,
    ) -> None:
        self.table = table
        self.allowed = allowed
        self.outside = outside
        self.policy = policy
        self.json_name = json_name
        self.num_voided = 0
        self._kept, self._others = segment_lists(table, classes_of(table.category_ids, allowed), thing_ids)

    def read(self, image: ImageEntry) -> dict[str, Any] | None:
        """Entries ``segments_info`` and, where needed, ``void_segment_ids`` of an image; None: leave the image out."""
        index = self.table.position.get(image.id)
        if index is None:
            return {"segments_info": []}
        void_ids = self._others[index]
        if void_ids and not self._is_void(image):
            return None
        self.num_voided += len(void_ids)
        return {"segments_info": self._kept[index], **({"void_segment_ids": void_ids} if void_ids else {})}

    def _is_void(self, image: ImageEntry) -> bool:
        if self.policy == "error":
            segments = self.table.entry(image.id).segments_info
            category_id = next(s.category_id for s in segments if s.category_id not in self.allowed)
            raise DataError(
                f"{self.json_name}: image {image.file_name} holds '{self.outside[category_id]}' (category "
                f"{category_id}), which is not one of the {len(self.allowed)} classes this set may show. Prepare a "
                "JSON without such images, or register the set with unseen_policy='ignore_pixels' or 'drop_image'"
            )
        return self.policy == "ignore_pixels"

    def log_summary(self, *, kept: int, total: int) -> None:
        if self.policy == "drop_image":
            logger.info("%s: kept %d of %d images, the others hold unseen classes", self.json_name, kept, total)
        else:
            logger.info("%s: %d images", self.json_name, kept)
        if self.num_voided:
            logger.info("%s: %d segments of unseen classes count as void", self.json_name, self.num_voided)


def names_outside(
    categories: Iterable[Category],
    class_split: ClassSplit,
    allowed: Mapping[int, int],
    json_name: str | Path,
) -> dict[int, str]:
    """Categories of the file that are not allowed, by data-set id; a renamed category is an error."""
    outside: dict[int, str] = {}
    for category in categories:
        if category.id not in allowed:
            outside[category.id] = category.name
        contiguous = class_split.contiguous_id.get(category.id)
        if contiguous is not None and class_split.names[contiguous] != category.name:
            raise DataError(
                f"{json_name}: category id {category.id} is '{category.name}' in the file and "
                f"'{class_split.names[contiguous]}' in the registered classes; register the file's own classes"
            )
    return outside


def require_files(root: str | Path, paths: list[str], cure: str) -> None:
    """Raise a FileNotFoundError naming the first of the paths that does not exist.

    One listing of the folder instead of one system call per file: a network drive answers in time.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such folder. {cure}".rstrip())
    present: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208
        if name not in present[folder]:
            missing.append(path)
    if missing:
        raise MissingFileError(
            f"{missing[0]}: no such file, nor are {len(missing) - 1} others of the {len(paths)} listed. {cure}".rstrip()
        )
