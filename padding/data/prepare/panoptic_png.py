# SPDX-License-Identifier: Apache-2.0
"""One panoptic PNG to one semantic PNG: read ids, check them against the JSON, write labels (COCO panoptic format).

A panoptic PNG stores the segment id of every pixel as R + 256 G + 65536 B; id 0 is void. Everything here concerns a
single image and can run in a worker process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.files import save_panoptic_png, save_png
from padding.data.readers import displayed_size, read_label_map, read_panoptic_ids
from padding.errors import PreparationError, UserError

IGNORE_LABEL = 255
VOID_ID = 0
_SHOWN = 5
_PANOPTIC_CURE = "unpack panoptic_{train,val}2017.zip of panoptic_annotations_trainval2017.zip"
_LABEL_CURE = "run datasets/prepare_coco_zsp.py again, it writes what is missing"


@dataclass(frozen=True)
class LabelSegment:
    """One entry of ``segments_info``: its id in the PNG, contiguous class, and area in pixels (-1: not given)."""

    segment_id: int
    class_id: int
    area: float = -1


@dataclass(frozen=True)
class LabelTask:
    """What it takes to write the labels of one image."""

    json_file: str  # annotation file, named in errors
    height: int  # rows of the image according to the JSON
    width: int  # columns of the image according to the JSON
    panoptic_file: Path  # panoptic PNG to read
    semantic_file: Path  # semantic PNG to write, uint8 (h, w), 255 where nothing is labelled
    segments: tuple[LabelSegment, ...]  # segments that may be learnt
    ignored_ids: tuple[int, ...] = ()  # segment ids whose pixels become void (policy ``ignore_pixels``)
    masked_file: Path | None = None  # copy of the panoptic PNG without the ignored segments; None: not written
    image_file: Path | None = None  # image whose presence and size are checked; None: not checked


@dataclass(frozen=True)
class LabelResult:
    """Pixels of each label value, (256,) int64, of one semantic PNG; not ``written`` where a valid one was kept."""

    written: bool
    pixels: npt.NDArray[np.int64]


def checked_labels(ids: npt.NDArray[np.uint32], task: LabelTask) -> npt.NDArray[np.uint8]:
    """Contiguous class of every pixel, 255 where void or ignored; the PNG must agree with the JSON.

    Args:
        ids: (h, w) segment ids of the PNG.
        task: the image's entry of the JSON.

    Returns:
        (h, w) uint8.

    Raises:
        PreparationError: another size than in the JSON, ids without a segment, or segments without a pixel.
    """
    if ids.shape != (task.height, task.width):
        raise PreparationError(
            f"{task.panoptic_file}: {ids.shape[1]}x{ids.shape[0]} pixels, but {task.json_file} says "
            f"{task.width}x{task.height}. PNG and JSON belong to different releases; fetch both again."
        )
    labels = np.full(ids.shape, IGNORE_LABEL, dtype=np.uint8)
    # Every pixel is void, a segment's or ignored: a count finds strays without looking at the ids.
    explained = int(np.count_nonzero(ids == VOID_ID))
    empty = []
    for segment in task.segments:
        mask = ids == segment.segment_id
        count = int(np.count_nonzero(mask))
        explained += count
        labels[mask] = segment.class_id
        if count == 0:
            empty.append(segment.segment_id)
    explained += sum(int(np.count_nonzero(ids == ignored)) for ignored in task.ignored_ids)
    if explained != ids.size:
        known = {VOID_ID, *(segment.segment_id for segment in task.segments), *task.ignored_ids}
        strange = sorted(set(np.unique(ids).tolist()) - known)
        raise PreparationError(
            f"{task.panoptic_file}: {ids.size - explained} pixels carry ids that {task.json_file} does not list "
            f"({strange[:_SHOWN]}). PNG and JSON belong to different releases; fetch both again."
        )
    if empty:
        raise PreparationError(
            f"{task.panoptic_file}: no pixel of segments {empty[:_SHOWN]} that {task.json_file} lists. "
            "PNG and JSON belong to different releases; fetch both again."
        )
    return labels


def write_labels(task: LabelTask) -> LabelResult:
    """Write the semantic PNG of one image, and the masked panoptic PNG where asked; valid ones are kept.

    Raises:
        MissingFileError, DataError: a file is missing or damaged.
        PreparationError: see `checked_labels` and `check_image`.
    """
    kept = _valid_labels(task)
    if kept is not None:
        return LabelResult(False, np.bincount(kept.ravel(), minlength=256))
    check_image(task)
    ids = read_panoptic_ids(task.panoptic_file, cure=_PANOPTIC_CURE)
    labels = checked_labels(ids, task)
    # The semantic PNG goes last: where it stands, the masked one stands too.
    if task.masked_file is not None:
        save_panoptic_png(np.where(np.isin(ids, task.ignored_ids), VOID_ID, ids), task.masked_file)
    save_png(labels, task.semantic_file)
    return LabelResult(True, np.bincount(labels.ravel(), minlength=256))


def check_image(task: LabelTask) -> None:
    """The image exists and has the size that the JSON says.

    Raises:
        PreparationError: it does not.
    """
    if task.image_file is None:
        return
    height, width = displayed_size(task.image_file, cure="unpack the images ({train,val}2017.zip)")
    if (height, width) != (task.height, task.width):
        raise PreparationError(
            f"{task.image_file}: {width}x{height} pixels, but {task.json_file} says {task.width}x{task.height}. "
            "Use the original images, not resized ones."
        )


def label_problems(task: LabelTask) -> list[str]:
    """What is wrong with the files of one prepared image, one line each; nothing is written."""
    problems: list[str] = []
    _collect(problems, lambda: check_image(task))
    expected: list[npt.NDArray[np.uint8]] = []
    panoptic_file = task.masked_file or task.panoptic_file

    def compare_ids() -> None:
        ids = read_panoptic_ids(panoptic_file, cure=_PANOPTIC_CURE)
        # A masked copy holds void where the ignored segments were; their ids must not come back.
        ignored = task.ignored_ids if task.masked_file is None else ()
        expected.append(checked_labels(ids, replace(task, panoptic_file=panoptic_file, ignored_ids=ignored)))
        values, pixels = np.unique(ids, return_counts=True)
        counts = dict(zip(values.tolist(), pixels.tolist(), strict=True))
        wrong = [s for s in task.segments if s.area >= 0 and s.area != counts[s.segment_id]]
        if wrong:
            raise PreparationError(
                f"{panoptic_file}: segment {wrong[0].segment_id} covers {counts[wrong[0].segment_id]} pixels, "
                f"{task.json_file} says {wrong[0].area:g} ({len(wrong)} such segments); fetch both again."
            )

    def compare_labels() -> None:
        stored = read_label_map(task.semantic_file, cure=_LABEL_CURE)
        if expected and not np.array_equal(stored, expected[0]):
            raise PreparationError(f"{task.semantic_file}: differs from {panoptic_file}; delete it and prepare again.")

    _collect(problems, compare_ids)
    _collect(problems, compare_labels)
    return problems


def _collect(problems: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except UserError as error:
        problems.append(str(error))


def _valid_labels(task: LabelTask) -> npt.NDArray[np.uint8] | None:
    """Labels left by an earlier run, if they have the right size and exactly the classes of the JSON."""
    if not task.semantic_file.is_file() or (task.masked_file is not None and not task.masked_file.is_file()):
        return None
    try:
        labels = read_label_map(task.semantic_file, cure=_LABEL_CURE)
    except UserError:
        return None
    classes = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - {IGNORE_LABEL}
    # Panoptic segments do not overlap and none is empty, so every class must show.
    same = classes == {segment.class_id for segment in task.segments}
    return labels if same and labels.shape == (task.height, task.width) else None
