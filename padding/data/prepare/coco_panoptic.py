# SPDX-License-Identifier: Apache-2.0
"""Zero-shot panoptic data from COCO panoptic files: filter the training JSON, list the labels to write (PADing, 4).

The source JSON is walked once, entry by entry. Two policies keep unseen classes out of training:
``drop_image`` (the published protocol) keeps an image iff no segment of any area, crowd included, has an unseen class;
``ignore_pixels`` keeps the image and makes its unseen segments void, in the JSON and in a copy of the panoptic PNG.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.coco_json import Category, ImageEntry, PanopticEntry, fill_sizes, segment_id_problem
from padding.data.prepare.annotation_file import finished_summary, write_annotation_file, write_summary
from padding.data.prepare.json_stream import stream_json
from padding.data.prepare.panoptic_png import LabelSegment, LabelTask
from padding.data.roots import splits_dir
from padding.data.typed_json import typed_entry
from padding.errors import PreparationError

Entry = TypeVar("Entry")

POLICIES = ("drop_image", "ignore_pixels")
# COCO train2017, and what the 119/14 protocol keeps of it (PADing, section 4.1).
FULL_TRAIN_IMAGES = 118_287
FULL_TRAIN_KEPT = 45_617
FULL_TRAIN_SPLIT = "coco_zsp_119_14.txt"

_SHOWN = 5
_BAR: dict[str, Any] = {"unit": "img", "mininterval": 1.0, "dynamic_ncols": True}


@dataclass(frozen=True)
class PanopticFiles:
    """One panoptic data set on disk; ``image_dir`` None: images are not looked at."""

    json_file: Path
    panoptic_dir: Path
    image_dir: Path | None = None


@dataclass
class FilterSummary:
    """What the filter did; stands beside the written JSON as ``*.summary.json``."""

    source: str  # name of the JSON that was read
    source_bytes: int  # its size
    policy: str  # one of `POLICIES`
    unseen: list[str]  # names of the unseen classes
    num_images: int = 0  # images in the source
    num_kept: int = 0  # images written
    num_segments: int = 0  # segments written
    num_ignored_segments: int = 0  # unseen segments turned into void (``ignore_pixels``)
    # Unseen class to number of source images that hold it.
    images_with_class: dict[str, int] = field(default_factory=dict)
    # Annotations without any segment in the source, by file name; kept: they hold nothing unseen.
    empty_images: list[str] = field(default_factory=list)
    unannotated_images: int = 0  # images of the source without an annotation; not kept
    target_bytes: int = 0  # size of the written JSON

    def lines(self) -> list[str]:
        """The summary for a reader."""
        text = [f"{self.source}: {self.num_kept} of {self.num_images} images kept (policy {self.policy})"]
        if self.num_kept == 0:
            held = ", ".join(self.images_with_class) or "none of the images is annotated"
            text.append(f"  nothing is left to train on; unseen classes found: {held}")
            if self.policy == "drop_image":
                text.append("  --policy ignore_pixels keeps the images and makes their unseen pixels void")
        if self.num_ignored_segments:
            text.append(f"  {self.num_ignored_segments} unseen segments became void, {self.num_segments} remain")
        if self.empty_images:
            text.append(f"  {len(self.empty_images)} images without segments, kept: {self.empty_images[:_SHOWN]}")
        if self.unannotated_images:
            text.append(f"  {self.unannotated_images} images without annotation, not kept")
        return text


def filter_panoptic_json(
    source: Path, target: Path, split: ClassSplit, *, policy: str = "drop_image", overwrite: bool = False
) -> FilterSummary:
    """Write the training JSON without unseen classes; done already for the same input: only the summary is read.

    Args:
        source: COCO panoptic JSON, any order of its keys.
        target: JSON to write, by rename when it is complete.
        split: all classes of the source.
        policy: ``drop_image`` or ``ignore_pixels``.
        overwrite: write again although a matching result exists.

    Returns:
        The counts.

    Raises:
        PreparationError: missing or damaged source, unknown category, or a full train2017 that does not give the
            published number of images.
    """
    if policy not in POLICIES:
        raise PreparationError(f"unknown policy {policy!r}; choose one of {POLICIES}")
    _require_file(source)
    summary = FilterSummary(source.name, source.stat().st_size, policy, sorted(split.unseen_names))
    if not overwrite and (earlier := finished_summary(target, summary)) is not None:
        return earlier
    summary.target_bytes = write_annotation_file(target, lambda kept: _filter_annotations(source, split, summary, kept))
    write_summary(target, summary)
    return summary


def label_tasks(
    files: PanopticFiles, split: ClassSplit, semantic_dir: Path, masked_dir: Path | None = None
) -> Iterator[LabelTask]:
    """Walk a panoptic JSON and say for each image which labels to write.

    Args:
        files: JSON, panoptic PNGs, images.
        split: all classes of the JSON.
        semantic_dir: where the semantic PNGs go.
        masked_dir: where the panoptic PNGs without ignored segments go; None: none is written.

    Raises:
        PreparationError: damaged JSON, unknown category, annotation without image, doubled ids.
    """
    json_file = str(files.json_file)
    for image, annotation in _annotated_images(files.json_file, split):
        fill_sizes([image], files.json_file, files.image_dir)
        name = f"{Path(annotation.file_name).stem}.png"
        yield LabelTask(
            json_file=json_file,
            height=image.size[0],
            width=image.size[1],
            panoptic_file=files.panoptic_dir / name,
            semantic_file=semantic_dir / name,
            segments=_segments(annotation, split, json_file),
            ignored_ids=tuple(annotation.ignored_segment_ids),
            masked_file=None if masked_dir is None else masked_dir / name,
            image_file=None if files.image_dir is None else files.image_dir / image.file_name,
        )


def _filter_annotations(source: Path, split: ClassSplit, summary: FilterSummary, kept: Any) -> dict[str, Any]:
    """Write the kept annotations to ``kept`` and return the rest of the JSON, with the kept images only."""
    head: dict[str, Any] = {}
    # As text until it is known which images are kept: dicts take several times the memory.
    images: dict[Any, str] = {}
    annotated: set[Any] = set()
    kept_ids: set[Any] = set()
    per_class: Counter[int] = Counter()
    with tqdm(desc=f"read {source.name}", **_BAR) as bar:
        for key, value in _read(source, split):
            if key == "images":
                image = _entry(value, ImageEntry, "an image", source)
                if image.id in images:
                    _refuse_repeated(image, json.loads(images[image.id])["file_name"], source)
                images[image.id] = json.dumps(value)
                bar.total = len(images)
            elif key == "annotations":
                image_id = _entry(value, PanopticEntry, "an annotation", source).image_id
                if image_id in annotated:
                    raise PreparationError(f"{source}: image {image_id} is annotated twice; fetch the file again.")
                annotated.add(image_id)
                line = _kept_annotation(value, split, summary, per_class, source)
                if line is not None:
                    kept.write((", " if kept_ids else "") + line)
                    kept_ids.add(image_id)
                bar.update()
            else:
                head[key] = value
    _assert_images_known(annotated, images.keys(), source)
    summary.num_images = len(images)
    summary.num_kept = len(kept_ids)
    summary.unannotated_images = len(images) - len(annotated)
    summary.images_with_class = {split.names[i]: per_class[i] for i in sorted(per_class)}
    head["images"] = [json.loads(text) for image_id, text in images.items() if image_id in kept_ids]
    _assert_published_count(summary, source)
    return head


def _kept_annotation(
    annotation: Mapping[str, Any], split: ClassSplit, summary: FilterSummary, per_class: Counter[int], source: Path
) -> str | None:
    """JSON text of an annotation under the policy; None: the image is not kept."""
    segments = _segments(_entry(annotation, PanopticEntry, "an annotation", source), split, source)
    unseen = set(split.unseen_ids)
    found = {segment.class_id for segment in segments} & unseen
    per_class.update(found)
    if not segments:
        summary.empty_images.append(str(annotation["file_name"]))
    if not found:
        summary.num_segments += len(segments)
        return json.dumps(annotation)
    # ``drop_image`` drops what shows an unseen class; what shows nothing else is of no use under any policy.
    if summary.policy == "drop_image" or {segment.class_id for segment in segments} <= unseen:
        return None
    # Ids of ignored segments stay in the JSON: the PNG still holds them, and readers make them void.
    ignored = [segment.segment_id for segment in segments if segment.class_id in unseen]
    remaining = [entry for entry in annotation["segments_info"] if entry["id"] not in set(ignored)]
    summary.num_ignored_segments += len(ignored)
    summary.num_segments += len(remaining)
    return json.dumps({**annotation, "segments_info": remaining, "ignored_segment_ids": ignored})


def _annotated_images(json_file: Path, split: ClassSplit) -> Iterator[tuple[ImageEntry, PanopticEntry]]:
    """Pairs of image and annotation entry; annotations that come before their image wait."""
    images: dict[int | str, ImageEntry] = {}
    waiting: list[PanopticEntry] = []
    for key, value in _read(json_file, split):
        if key == "images":
            image = _entry(value, ImageEntry, "an image", json_file)
            if image.id in images:
                _refuse_repeated(image, images[image.id].file_name, json_file)
            images[image.id] = image
        elif key == "annotations":
            annotation = _entry(value, PanopticEntry, "an annotation", json_file)
            if annotation.image_id not in images:
                waiting.append(annotation)
            else:
                yield images[annotation.image_id], annotation
    _assert_images_known({annotation.image_id for annotation in waiting}, images.keys(), json_file)
    for annotation in waiting:
        yield images[annotation.image_id], annotation


def _read(json_file: Path, split: ClassSplit) -> Iterator[tuple[str, Any]]:
    """`stream_json`; the category table is compared with the split on the way."""
    _require_file(json_file)
    seen_keys: set[str] = set()
    for key, value in stream_json(json_file, ("images", "annotations")):
        seen_keys.add(key)
        if key == "categories":
            _assert_categories(_entry(value, list[Category], "'categories'", json_file), split, json_file)
        yield key, value
    if "categories" not in seen_keys:
        raise PreparationError(
            f"{json_file}: no 'categories' (found {sorted(seen_keys)}); is it a panoptic annotation file?"
        )


def _segments(annotation: PanopticEntry, split: ClassSplit, json_file: Path | str) -> tuple[LabelSegment, ...]:
    """The segments of one annotation with contiguous classes."""
    segments = []
    for entry in annotation.segments_info:
        if entry.category_id not in split.contiguous_id:
            raise PreparationError(
                f"{json_file}: {annotation.file_name} has a segment of the unknown category {entry.category_id}. The "
                f"file does not belong to these {split.num_classes} classes; use the panoptic annotations of COCO 2017."
            )
        area = -1.0 if entry.area is None else entry.area
        segments.append(LabelSegment(entry.id, split.contiguous_id[entry.category_id], area))
    if problem := segment_id_problem([segment.segment_id for segment in segments]):
        raise PreparationError(f"{json_file}: {annotation.file_name} {problem}; or fetch the file again.")
    return tuple(segments)


def _assert_categories(categories: Iterable[Category], split: ClassSplit, json_file: Path) -> None:
    for category in categories:
        index = split.contiguous_id.get(category.id)
        expected = None if index is None else split.names[index]
        if category.name != expected:
            raise PreparationError(
                f"{json_file}: category {category.id} is {category.name!r}, expected "
                f"{expected or 'no such category'!r}. Use the panoptic annotations of COCO 2017, or the split that "
                "belongs to this file."
            )


def _refuse_repeated(image: ImageEntry, earlier: object, json_file: Path) -> NoReturn:
    raise PreparationError(
        f"{json_file}: image id {image.id!r} stands for {earlier} and for {image.file_name}; were files merged? Give "
        "each image its own id, or fetch the file again."
    )


def _assert_images_known(annotated: set[Any], images: Iterable[Any], json_file: Path) -> None:
    unknown = sorted(annotated - set(images), key=str)
    if unknown:
        raise PreparationError(
            f"{json_file}: {len(unknown)} annotations name images that are not listed ({unknown[:_SHOWN]}). "
            "The file is damaged; fetch it again."
        )


def _assert_published_count(summary: FilterSummary, source: Path) -> None:
    """The count of the paper guards against a changed split or a partly read file."""
    if summary.num_images != FULL_TRAIN_IMAGES or summary.policy != "drop_image" or summary.num_kept == FULL_TRAIN_KEPT:
        return
    if summary.unseen == sorted(read_name_list(splits_dir() / FULL_TRAIN_SPLIT)):
        raise PreparationError(
            f"{source}: {summary.num_kept} of {summary.num_images} images kept, the published split keeps "
            f"{FULL_TRAIN_KEPT}. Compare datasets/splits/{FULL_TRAIN_SPLIT} with the repository, fetch the JSON again."
        )


def _entry(value: Any, kind: type[Entry], place: str, json_file: Path) -> Entry:
    return typed_entry(value, kind, path=json_file, place=place, error_kind=PreparationError)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise PreparationError(
            f"No file {path}: unpack panoptic_annotations_trainval2017.zip, or name the JSON directly."
        )
