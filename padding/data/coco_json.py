# SPDX-License-Identifier: Apache-2.0
"""COCO's JSON formats: instances, panoptic, and lists of images. One schema each, and what may be wrong beyond it.

Training, evaluation and preparation read these files here alone, panoptic ones through ``panoptic_table``, which keeps
them in less memory. What would give wrong numbers in silence is a
*problem* and refused; what is mended by a stated rule is a *remark* and logged:

- annotation ids may repeat or lack: nothing goes by them, scores number the objects anew;
- objects without ``segmentation``, or without a polygon of three points, are left out;
- ``area`` is never believed, pixels are counted; a ``bbox`` that is none is replaced by that of the mask;
- a class without objects that stands above all others (``placeholder``) is left out;
- backslashes in the names of images are slashes, and folders in front of a name are left out where they do not exist.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, cast

import msgspec

from padding.data.json_parts import NotPlainError, typed_parts
from padding.data.masks import MAX_PIXELS, MIN_POLYGON_NUMBERS, mask_problems, without_short_polygons
from padding.data.placeholder import without_placeholder
from padding.data.readers import displayed_size
from padding.data.typed_json import read_typed_json
from padding.errors import DataError, UserError

logger = logging.getLogger(__name__)

MAX_SEGMENT_ID = (1 << 24) - 1
"""Largest segment id that three bytes of a PNG hold; 0 is void."""

Id = int | str
FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=240)]  # file systems take 255 bytes
Side = Annotated[int, msgspec.Meta(ge=1)]
Flag = bool | Annotated[int, msgspec.Meta(ge=0, le=1)] | None
_SHOWN = 5


class RunLengths(TypedDict):
    """Run-length code of a mask, as text or as numbers."""

    size: list[int]
    counts: str | list[int]


class Category(msgspec.Struct, gc=False):
    """A class of the file."""

    id: int
    name: str
    supercategory: Any = None


class ImageEntry(msgspec.Struct, gc=False):
    """An image; a size that the file does not state is read from the image, see ``fill_sizes``."""

    id: Id
    file_name: FileName
    height: Side | None = None
    width: Side | None = None
    unseen_pixels: Annotated[int, msgspec.Meta(ge=0)] | None = (
        None  # lists of our own preparation: pixels of unseen classes
    )

    @property
    def size(self) -> tuple[int, int]:
        """(h, w), once ``fill_sizes`` has filled in what the file does not state."""
        assert self.height is not None and self.width is not None  # noqa: PT018  (not a test)
        return self.height, self.width


class SegmentEntry(msgspec.Struct, gc=False):
    """A segment of a panoptic PNG."""

    id: int
    category_id: int
    iscrowd: Flag = None
    area: float | None = None


class PanopticEntry(msgspec.Struct, gc=False):
    """The segments of an image."""

    image_id: Id
    file_name: FileName  # of the PNG
    segments_info: list[SegmentEntry]
    ignored_segment_ids: list[int] = []  # ours: ids in the PNG that count as void


class InstanceEntry(msgspec.Struct, gc=False):
    """An object."""

    image_id: Id
    category_id: int
    id: Id | None = None
    iscrowd: Flag = None
    segmentation: list[list[float]] | RunLengths | None = None
    bbox: list[float] | None = None
    area: float | None = None


class ImageFile(msgspec.Struct):
    """A list of images; any COCO annotation file is one."""

    images: list[ImageEntry]


class PanopticFile(msgspec.Struct):
    """A panoptic annotation file."""

    images: list[ImageEntry]
    annotations: list[PanopticEntry]
    categories: list[Category]


class InstanceFile(msgspec.Struct):
    """An instance annotation file."""

    images: list[ImageEntry]
    annotations: list[InstanceEntry]
    categories: list[Category]


File = TypeVar("File", ImageFile, PanopticFile, InstanceFile)


@dataclass
class Findings:
    """What is wrong with a file (refused), and what is remarkable (logged), a line each that names no file."""

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def settle(self, path: str | Path, cure: str = "") -> None:
        """Log the remarks, and raise the first problem.

        Raises:
            DataError: names the file, the first problem and the number of the others.
        """
        for remark in self.remarks:
            logger.warning("%s: %s", path, remark)
        if self.problems:
            others = f" ({len(self.problems) - 1} more problems in this file)" if len(self.problems) > 1 else ""
            raise DataError(f"{path}: {self.problems[0]}{others}. {cure}".rstrip())


def read_image_file(path: str | Path, *, image_root: str | Path | None = None, cure: str = "") -> ImageFile:
    """A list of images, checked.

    Args:
        path: JSON with ``images``.
        image_root: folder of the images, whose headers say the sizes that the file does not state; None: such sizes
            stay unknown (an instance file needs them).
        cure: sentence for error messages: how the files are obtained.

    Raises:
        MissingFileError: there is no such file, or no image to read a size from.
        DataError: it has another shape, or contradicts itself.
    """
    return read_checked(path, ImageFile, image_root, cure)


def read_instance_file(path: str | Path, *, image_root: str | Path | None = None, cure: str = "") -> InstanceFile:
    """Instance annotations, checked, masks included; arguments and errors as of ``read_image_file``.

    Objects that have no mask are left out, which is logged. Polygons are arrays of numbers.
    """
    content = _in_parts(path)
    if content is None:
        return read_checked(path, InstanceFile, image_root, cure)
    return _checked(content, path, image_root, cure)


def _in_parts(path: str | Path) -> InstanceFile | None:
    """Instances read part by part, so that text and lists of numbers are never there as a whole.

    Nothing of a file that is not well formed: read in one piece, its fault is named.
    """
    content = InstanceFile([], [], [])
    kinds = {"images": ImageEntry, "annotations": InstanceEntry, "categories": Category}
    try:
        for key, entries in typed_parts(path, kinds):
            if key == "annotations":
                for annotation in entries:
                    _pack_polygons(annotation)
            getattr(content, key).extend(entries)
    except (NotPlainError, OSError):
        return None
    return content


def _pack_polygons(annotation: InstanceEntry) -> None:
    """Keep the numbers of polygons as eight bytes each; those that are too short stay to be left out."""
    if isinstance(annotation.segmentation, list):
        packed = [array("d", p) if len(p) >= MIN_POLYGON_NUMBERS else p for p in annotation.segmentation]
        annotation.segmentation = cast("list[list[float]]", packed)


def findings_of(path: str | Path, kind: type[File], image_root: str | Path | None = None) -> Findings:
    """All that is wrong or remarkable; where the file has another shape than ``kind``, that alone.

    Nothing is raised but for a missing file.
    """
    try:
        content = read_typed_json(path, kind)
        if image_root is not None:
            find_images(content.images, image_root)
        if image_root is not None or isinstance(content, InstanceFile):
            fill_sizes(content.images, path, image_root)
    except DataError as error:
        return Findings([str(error).removeprefix(f"{path}: ")])
    return content_findings(content)


def read_checked(path: str | Path, kind: type[File], image_root: str | Path | None, cure: str) -> File:
    """A whole file of any kind in memory, checked; arguments and errors as of ``read_image_file``."""
    return _checked(read_typed_json(path, kind, cure=cure), path, image_root, cure)


def _checked(content: File, path: str | Path, image_root: str | Path | None, cure: str) -> File:
    """A file that is read, with what ``image_root`` adds, or the error of what is wrong in it."""
    # Before sizes are looked up: which of two images an id means is not known.
    Findings(_image_problems(content.images)).settle(path, cure)
    if image_root is not None:
        find_images(content.images, image_root)
    if image_root is not None or isinstance(content, InstanceFile):
        fill_sizes(content.images, path, image_root)
    content_findings(content).settle(path, cure)
    return content


def content_findings(content: ImageFile | PanopticFile | InstanceFile) -> Findings:
    """What is wrong or remarkable in a file; objects without a mask are taken out of ``content``."""
    found = Findings(_image_problems(content.images))
    if isinstance(content, ImageFile):
        return found
    if isinstance(content, InstanceFile):
        used = {annotation.category_id for annotation in content.annotations}
        content.categories = without_placeholder(content.categories, used)
    found.problems += _repeated("category id", content.categories, lambda c: c.id, lambda c: repr(c.name))
    found.problems += _repeated("category name", content.categories, lambda c: c.name, lambda c: f"id {c.id}")
    if isinstance(content, PanopticFile):
        found.problems += _panoptic_problems(content)
    elif not found.problems:
        _check_objects(content, found)
    return found


def find_images(images: Iterable[ImageEntry], image_root: str | Path) -> None:
    """Make the names of images paths below their folder, as far as that can be told.

    Tools write where a file was on their own machine ("../upload/3/a.jpg"), with backslashes on Windows. The name stays
    as it is where its folder exists below ``image_root``; else the first folders are left out until the rest does.

    Args:
        images: changed in place.
        image_root: folder of the images.
    """
    root, shorter = Path(image_root), dict[str, str]()
    for image in images:
        folder, _, name = image.file_name.replace("\\", "/").rpartition("/")
        if folder and folder not in shorter:
            parts = Path(folder).parts
            rests = (Path(*parts[first:]) for first in range(len(parts)))
            # A name that leads out of the folder was written for another machine.
            usable = (
                p.as_posix() for p in rests if ".." not in p.parts and not p.is_absolute() and (root / p).is_dir()
            )
            shorter[folder] = next(usable, "")
        if folder:
            image.file_name = f"{shorter[folder]}/{name}" if shorter[folder] else name


def fill_sizes(images: Iterable[ImageEntry], path: str | Path, image_root: str | Path | None) -> None:
    """Read sizes that are not stated from the headers of the images, as the mappers turn them.

    Raises:
        DataError: there is no image to read one from; names the JSON, the image and the key.
    """
    for image in images:
        if image.height is not None and image.width is not None:
            continue
        key = "height" if image.height is None else "width"
        try:
            if image_root is None:
                raise DataError("the folder of the images is not known")
            height, width = displayed_size(Path(image_root) / image.file_name)
        except (UserError, OSError, ValueError) as error:
            raise DataError(
                f"{path}: image {image.id!r} ({image.file_name}) states no '{key}', and it cannot be read from the "
                f"image: {error}"
            ) from error
        # What one side contradicts is found where the image is read.
        image.height, image.width = image.height or height, image.width or width


def _image_problems(images: Sequence[ImageEntry]) -> list[str]:
    problems = _repeated("image id", images, lambda image: image.id, lambda image: image.file_name)
    if len({type(image.id) for image in images}) > 1:
        problems.append("some image ids are numbers and some are texts; write all of them in one way")
    problems += [
        f"image {image.id!r} ({image.file_name}) is said to be {image.height} x {image.width}; correct its size"
        for image in images
        if (image.height or 1) * (image.width or 1) > MAX_PIXELS
    ]
    return problems


def _repeated(what: str, entries: Sequence[Any], key: Any, name: Any) -> list[str]:
    """A line for each key that several entries share, with the first two of them."""
    if len({key(entry) for entry in entries}) == len(entries):
        return []
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        found[key(entry)].append(index)
    return [
        f"{what} {value!r} stands {len(places)} times, first for {name(entries[places[0]])} and "
        f"{name(entries[places[1]])} (entries {places[0]} and {places[1]}); were files merged? Give each its own"
        for value, places in found.items()
        if len(places) > 1
    ]


def _unlisted(image_ids: set[Id], images: Sequence[ImageEntry]) -> list[Id]:
    return sorted(image_ids - {image.id for image in images}, key=str)


def _panoptic_problems(content: PanopticFile) -> list[str]:
    problems = []
    annotated = {annotation.image_id for annotation in content.annotations}
    if len(annotated) < len(content.annotations):
        counts: dict[Id, int] = defaultdict(int)
        for annotation in content.annotations:
            counts[annotation.image_id] += 1
        problems += [
            f"image {image_id!r} is annotated {'twice' if count == 2 else f'{count} times'}; obtain the file again or "
            "repair this entry"
            for image_id, count in counts.items()
            if count > 1
        ]
    problems += [
        f"image {image_id!r} is annotated but not listed in 'images'; obtain the file again or repair this entry"
        for image_id in _unlisted(annotated, content.images)
    ]
    categories = {category.id for category in content.categories}
    for annotation in content.annotations:
        problems += [
            f"segment {segment.id} of image {annotation.file_name} has the unknown category id {segment.category_id}; "
            "add the category to the file's 'categories' or correct the segment"
            for segment in annotation.segments_info
            if segment.category_id not in categories
        ]
        if problem := segment_id_problem([segment.id for segment in annotation.segments_info]):
            problems.append(f"image {annotation.image_id!r} ({annotation.file_name}) {problem}")
    return problems


def segment_id_problem(ids: Sequence[int]) -> str:
    """What is wrong with the segment ids of an image, as they are listed: "" if nothing."""
    if not ids:
        return ""
    if not 0 < min(ids) <= max(ids) <= MAX_SEGMENT_ID:
        return (
            f"lists segment ids from {min(ids)} to {max(ids)}; a PNG holds 1 to {MAX_SEGMENT_ID}, and 0 is void. "
            "Correct the JSON"
        )
    if len(set(ids)) < len(ids):
        twice = sorted(i for i in set(ids) if ids.count(i) > 1)
        return f"lists the segment ids {twice[:_SHOWN]} more than once; give every segment its own id"
    return ""


def _check_objects(content: InstanceFile, found: Findings) -> None:
    """Check the objects, and leave out those without a mask."""
    sizes = {image.id: image.size for image in content.images}
    unlisted = _unlisted({annotation.image_id for annotation in content.annotations}, content.images)
    if unlisted:
        found.problems.append(f"objects of images that are not listed: {unlisted[:_SHOWN]}; obtain the file again")
        return
    categories = {category.id for category in content.categories}
    kept, without, wrong_boxes, unknown = [], 0, 0, []
    for annotation in content.annotations:
        annotation.segmentation = without_short_polygons(annotation.segmentation)
        if annotation.category_id not in categories:
            unknown.append(annotation)
        if annotation.bbox is not None and not _is_box(annotation.bbox):
            wrong_boxes += 1
            annotation.bbox = None
        if annotation.segmentation:
            kept.append(annotation)
        else:
            without += 1
    problems = mask_problems([a.segmentation for a in kept], [sizes[a.image_id] for a in kept])
    names = {image.id: image.file_name for image in content.images} if problems or unknown else {}
    found.problems += [
        f"object {a.id} has the unknown category id {a.category_id} (image {a.image_id!r}, {names[a.image_id]}); "
        "correct it, or add the category to 'categories'"
        for a in unknown
    ]
    found.problems += [
        f"annotation {kept[index].id} of image {kept[index].image_id!r} ({names[kept[index].image_id]}) {problem}; "
        "correct its 'segmentation'"
        for index, problem in sorted(problems.items())
    ]
    if without and not kept:
        found.problems.append(
            f"none of its {without} objects has a mask: boxes alone teach no segmentation; export polygons or masks, "
            "each as the object's 'segmentation'"
        )
    found.remarks += _object_remarks(content.annotations, without, wrong_boxes)
    content.annotations = kept


def _is_box(bbox: Sequence[float]) -> bool:
    return len(bbox) == 4 and all(map(math.isfinite, bbox)) and min(bbox[2:]) >= 0


def _object_remarks(annotations: Sequence[InstanceEntry], without: int, wrong_boxes: int) -> list[str]:
    remarks = []
    numbered = [annotation for annotation in annotations if annotation.id is not None]
    if repeated := _repeated("annotation id", numbered, lambda a: a.id, lambda a: f"image {a.image_id!r}"):
        remarks.append(
            f"{repeated[0]} ({len(repeated) - 1} other ids repeat). Until then every entry counts as an object "
            "of its own"
        )
    if without:
        remarks.append(
            f"{without} objects without a polygon of three points or more, or without 'segmentation', are left out"
        )
    if wrong_boxes:
        remarks.append(f"{wrong_boxes} objects have a 'bbox' that is no box (x, y, width, height); it is not used")
    return remarks
