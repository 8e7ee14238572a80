# SPDX-License-Identifier: Apache-2.0
"""Zero-shot instance data from the official COCO 2014 annotations: the three JSONs of a split (PADing, Tab. 5).

``train``: images without any object of an unseen class, and their seen objects. ``gzsi``: images with an object of an
unseen class, all objects of the split's classes. ``unseen``: the same images, unseen objects only. Crowds count as
objects. Objects of classes outside the split (15 classes of 48/17) are left out: they become background. Categories
stand in the order of the split, seen first; class ids follow it, not COCO's order.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.coco_json import Category, ImageEntry, InstanceEntry
from padding.data.prepare.annotation_file import finished_summary, write_annotation_file, write_summary
from padding.data.prepare.json_stream import stream_json
from padding.data.typed_json import typed_entry
from padding.errors import PreparationError

Entry = TypeVar("Entry")

Kind = Literal["train", "gzsi", "unseen"]
KINDS: tuple[Kind, ...] = ("train", "gzsi", "unseen")
# Images of instances_train2014.json, and what the split 65/15 keeps of them (its authors' training list).
FULL_TRAIN_IMAGES = 82_783
PUBLISHED_TRAIN_IMAGES = {"65_15": 62_300}

_SHOWN = 5
_BAR: dict[str, Any] = {"unit": "entries", "mininterval": 1.0, "dynamic_ncols": True}


@dataclass
class InstanceSummary:
    """What the filter did; stands beside the written JSON as ``*.summary.json``."""

    source: str  # name of the JSON that was read
    source_bytes: int  # its size
    kind: str  # one of ``KINDS``
    seen: list[str]  # class names in the order of the split
    unseen: list[str]  # likewise
    num_images: int = 0  # images in the source
    with_unseen: int = 0  # those that hold an unseen object
    without_unseen: int = 0  # the others; ``num_kept`` of the kind "train" leaves out those without any seen object
    num_kept: int = 0  # images written
    num_objects: int = 0  # objects written
    objects_outside: int = 0  # objects of classes outside the split, in kept images
    # Unseen class to number of source images that hold it.
    images_with_class: dict[str, int] = field(default_factory=dict)
    target_bytes: int = 0  # size of the written JSON

    def lines(self) -> list[str]:
        """The summary for a reader."""
        text = [
            f"{self.source} -> {self.kind}: {self.num_kept} of {self.num_images} images, {self.num_objects} objects "
            f"of {len(self.seen)} seen and {len(self.unseen)} unseen classes",
            f"  {self.with_unseen} images hold an unseen class, {self.without_unseen} do not",
        ]
        if self.objects_outside:
            text.append(f"  {self.objects_outside} objects of classes outside the split became background")
        if not self.num_kept:
            text.append("  nothing is left; is this the annotation file of these classes?")
        return text


@dataclass
class _ImageSets:
    """Ids of the images with an object of some seen, of some unseen class."""

    seen: set[Any] = field(default_factory=set)
    unseen: set[Any] = field(default_factory=set)

    def chosen(self, kind: Kind) -> set[Any]:
        # Training images hold an object of a seen class and none of an unseen one (ZSI's split).
        return self.seen - self.unseen if kind == "train" else self.unseen


def filter_instances(
    source: Path,
    target: Path,
    split: ClassSplit,
    *,
    kind: Kind,
    expected_images: int = 0,
    overwrite: bool = False,
) -> InstanceSummary:
    """Write one JSON; done already for the same input: only the summary is read.

    Args:
        source: official COCO instance JSON, any order of its keys.
        target: JSON to write, by rename when it is complete.
        split: classes in their order, seen and unseen.
        kind: one of ``KINDS``.
        expected_images: published number of training images; 0 for none. The images without unseen objects may be
            counted with or without those that hold no object at all.
        overwrite: write again although a matching result exists.

    Returns:
        The counts.

    Raises:
        PreparationError: missing or damaged source, other categories, or another number of images than expected.
    """
    if not source.is_file():
        raise PreparationError(f"No file {source}: unpack annotations_trainval2014.zip as datasets/README.md shows.")
    seen, unseen = ([split.names[i] for i in ids] for ids in (split.seen_ids, split.unseen_ids))
    summary = InstanceSummary(source.name, source.stat().st_size, kind, seen, unseen)
    if not overwrite and (earlier := finished_summary(target, summary)) is not None:
        return earlier
    # Two passes over the file: what an image holds is known at its end, and the objects do not fit into memory.
    sets = _find_images(source, split, summary)
    _assert_expected(summary, sets, expected_images, source)
    chosen = sets.chosen(kind)
    summary.target_bytes = write_annotation_file(target, lambda kept: _keep(source, split, chosen, summary, kept))
    write_summary(target, summary)
    return summary


def audit_instances(target: Path, split: ClassSplit, *, source: Path | None = None) -> list[str]:
    """Look for unseen classes in a training JSON, as it stands on disk.

    With the official JSON as ``source`` the images of ``target`` are also looked up there. One line for each problem;
    empty: nothing that will be trained on shows an unseen class.
    """
    unseen = {split.dataset_ids[i]: split.names[i] for i in split.unseen_ids}
    problems: list[str] = []
    images: set[Any] = set()
    leaked: Counter[str] = Counter()
    for key, value in _read(target, f"audit {target.name}"):
        if key == "images":
            images.add(_entry(value, ImageEntry, "an image", target).id)
        elif key == "annotations":
            category = _entry(value, InstanceEntry, "an object", target).category_id
            leaked.update([unseen[category]] if category in unseen else ())
        elif key == "categories":
            categories = _entry(value, list[Category], "'categories'", target)
            leaked.update(f"category {c.name}" for c in categories if c.id in unseen)
    if leaked:
        problems.append(f"{target}: trains on unseen classes: {dict(leaked)}; prepare again with --overwrite.")
    if source is not None:
        objects = (
            _entry(value, InstanceEntry, "an object", source)
            for key, value in _read(source, f"audit {source.name}")
            if key == "annotations"
        )
        shown = {entry.image_id for entry in objects if entry.category_id in unseen}
        if shown & images:
            problems.append(
                f"{target}: {len(shown & images)} of its images show unseen classes according to {source.name} "
                f"({sorted(shown & images, key=str)[:_SHOWN]}); prepare again with --overwrite."
            )
    return problems


def _find_images(source: Path, split: ClassSplit, summary: InstanceSummary) -> _ImageSets:
    """First pass: which images hold what; also checks the categories."""
    unseen = {split.dataset_ids[i]: split.names[i] for i in split.unseen_ids}
    sets, per_class = _ImageSets(), {name: set[Any]() for name in unseen.values()}
    images: dict[int | str, str] = {}
    has_categories = False
    for key, value in _read(source, f"read {source.name}"):
        if key == "images":
            image = _entry(value, ImageEntry, "an image", source)
            if image.id in images:
                raise PreparationError(
                    f"{source}: image id {image.id!r} stands for {images[image.id]} and for {image.file_name}; were "
                    "files merged? Give each image its own id, or fetch the file again."
                )
            images[image.id] = image.file_name
        elif key == "annotations":
            entry = _entry(value, InstanceEntry, "an object", source)
            if entry.category_id in unseen:
                sets.unseen.add(entry.image_id)
                per_class[unseen[entry.category_id]].add(entry.image_id)
            elif entry.category_id in split.contiguous_id:
                sets.seen.add(entry.image_id)
        elif key == "categories":
            _assert_categories(_entry(value, list[Category], "'categories'", source), split, source)
            has_categories = True
    strange = sorted((sets.seen | sets.unseen) - images.keys(), key=str)
    if strange or not has_categories:
        what = f"objects of images that are not listed: {strange[:_SHOWN]}" if strange else "no 'categories'"
        raise PreparationError(f"{source}: {what}. The file is damaged or no COCO instance file; fetch it again.")
    summary.num_images = len(images)
    summary.with_unseen = len(sets.unseen)
    summary.without_unseen = len(images) - len(sets.unseen)
    summary.images_with_class = {name: len(members) for name, members in per_class.items()}
    return sets


def _keep(source: Path, split: ClassSplit, chosen: set[Any], summary: InstanceSummary, kept: TextIO) -> dict[str, Any]:
    """Second pass: write the objects to keep, return everything else of the new file."""
    of_kind = {"train": split.seen_ids, "gzsi": range(split.num_classes), "unseen": split.unseen_ids}[summary.kind]
    wanted = {split.dataset_ids[i] for i in of_kind}
    head: dict[str, Any] = {}
    images = []
    for key, value in _read(source, f"write {summary.kind}"):
        if key == "images":
            if value["id"] in chosen:
                images.append(value)
        elif key != "annotations":
            head[key] = value
        elif value["image_id"] in chosen:
            if value["category_id"] in wanted:
                kept.write((", " if summary.num_objects else "") + json.dumps(value))
                summary.num_objects += 1
            summary.objects_outside += value["category_id"] not in split.contiguous_id
    # Objects of an image come in any order: written as they are met, images and categories at the end.
    by_id = {category["id"]: category for category in head["categories"]}
    in_order = split.seen_ids if summary.kind == "train" else range(split.num_classes)
    head["categories"] = [by_id[split.dataset_ids[i]] for i in in_order]
    head["images"] = images
    summary.num_kept = len(images)
    return head


def _read(path: Path, title: str) -> Iterator[tuple[str, Any]]:
    """`stream_json` with a progress bar."""
    if not path.is_file():
        raise PreparationError(f"No file {path}: prepare it first.")
    with tqdm(desc=title, **_BAR) as bar:
        for key, value in stream_json(path, ("images", "annotations")):
            bar.update(key in ("images", "annotations"))
            yield key, value


def _assert_categories(categories: list[Category], split: ClassSplit, source: Path) -> None:
    found = {category.id: category.name for category in categories}
    for name, number in zip(split.names, split.dataset_ids, strict=True):
        if found.get(number) != name:
            raise PreparationError(
                f"{source}: category {number} is {found.get(number)!r}, expected {name!r}. Use the instance "
                "annotations of COCO 2014, or the split that belongs to this file."
            )


def _assert_expected(summary: InstanceSummary, sets: _ImageSets, expected: int, source: Path) -> None:
    """The published count guards against a changed split or a partly read file."""
    if summary.kind != "train" or not expected or summary.num_images != FULL_TRAIN_IMAGES:
        return
    counts = (len(sets.seen - sets.unseen), summary.without_unseen)
    if expected not in counts:
        raise PreparationError(
            f"{source}: {counts[0]} images hold seen and no unseen objects ({counts[1]} with images without objects), "
            f"the published split has {expected}. Compare the lists in datasets/splits with the repository, fetch the "
            "JSON again; --any-count goes on without this check."
        )


def _entry(value: Any, kind: type[Entry], place: str, source: Path) -> Entry:
    return typed_entry(value, kind, path=source, place=place, error_kind=PreparationError)
