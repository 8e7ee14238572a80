# SPDX-License-Identifier: Apache-2.0
"""Zero-shot semantic data from COCO-Stuff's official PNGs: renumber the labels, hide unseen classes (156/15, SPNet).

Training PNGs hold 0 to 155 and 255, validation PNGs 0 to 170 and 255: seen classes come first, so that the numbers of
the narrow training space and of the wide test space agree. Every training image is kept; the image list counts the
pixels of unseen classes that became void, by which the policy ``drop_image`` of ``padding.data.loaders.sem_seg_list``
chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.files import save_png, write_json
from padding.data.prepare.panoptic_audit import make_target_folder, map_tasks, stray_pngs
from padding.data.readers import displayed_size, read_json, read_label_map
from padding.data.sample import IGNORE_LABEL
from padding.errors import PreparationError, UserError

# Label PNGs of the official download.
FULL_IMAGES = {"train": 118_287, "val": 5_000}
_UNKNOWN = -1
_SHOWN = 5
_CURE = "unpack stuffthingmaps_trainval2017.zip again"
_BAR: dict[str, Any] = {"unit": "img", "mininterval": 1.0, "dynamic_ncols": True}


@dataclass(frozen=True)
class StuffTask:
    """What it takes to write the labels of one image."""

    source: Path  # official PNG
    target: Path  # PNG to write, uint8 (h, w)
    image_file: Path  # the image, whose size must be that of the PNG
    # (256,) int16, value in the official PNG -> label in the wide space, 255 for unlabelled, -1: impossible.
    lookup: npt.NDArray[np.int16]
    num_visible: int  # labels from this number on (those of unseen classes) become void; K keeps all


@dataclass(frozen=True)
class StuffResult:
    """One image: its list entry, (256,) pixels of each label in the PNG, and whether it was written anew."""

    entry: dict[str, Any]
    pixels: npt.NDArray[np.int64]
    written: bool


@dataclass
class StuffAudit:
    """Counts over everything that will be trained on or evaluated."""

    num_classes: int  # labels that may occur are 0 to ``num_classes`` - 1
    num_images: int = 0  # images looked at
    written: int = 0  # PNGs written by this run; the others were valid already
    clean_images: int = 0  # images that show no unseen class; what the policy ``drop_image`` keeps
    # (256,) int64 pixels of each label.
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    hidden_pixels: int = 0  # pixels of unseen classes that became void
    strays: list[str] = field(default_factory=list)  # PNGs in the target folder of no image

    @property
    def leaked_pixels(self) -> int:
        """Pixels labelled with anything but the allowed classes and void."""
        return int(self.pixels[self.num_classes : IGNORE_LABEL].sum())

    def lines(self) -> list[str]:
        """The audit for a reader."""
        total = max(int(self.pixels.sum()), 1)
        present = int(np.count_nonzero(self.pixels[: self.num_classes]))
        text = [
            f"  {self.num_images} images; PNGs: {self.written} written, {self.num_images - self.written} valid already",
            f"  {present} of {self.num_classes} classes occur; labels outside them: {self.leaked_pixels} pixels; void "
            f"{100 * int(self.pixels[IGNORE_LABEL]) / total:.2f} %",
        ]
        if self.hidden_pixels:
            text.append(
                f"  unseen classes: {self.hidden_pixels} pixels made void in {self.num_images - self.clean_images} "
                f"images; policy drop_image keeps the other {self.clean_images}"
            )
        if self.strays:
            text.append(f"  {len(self.strays)} PNGs of no image, delete them: {self.strays[:_SHOWN]}")
        return text


def label_lookup(split: ClassSplit) -> npt.NDArray[np.int16]:
    """(256,) int16: official PNG value -> contiguous id, 255 -> 255, all others -1."""
    lookup = np.full(256, _UNKNOWN, np.int16)
    for value, label in split.contiguous_id.items():
        lookup[value] = label
    lookup[IGNORE_LABEL] = IGNORE_LABEL
    return lookup


def stuff_tasks(
    *, source_dir: Path, target_dir: Path, image_dir: Path, split: ClassSplit, hide_unseen: bool
) -> list[StuffTask]:
    """One task for each official PNG of a folder, sorted by name.

    Args:
        source_dir: official PNGs.
        target_dir: where ours go.
        image_dir: images, ``.jpg``.
        split: all classes, seen ones first.
        hide_unseen: whether unseen classes become void (training).

    Raises:
        PreparationError: a folder is missing or empty, or unseen classes come before seen ones.
    """
    for folder in (source_dir, image_dir):
        if not folder.is_dir():
            raise PreparationError(f"No folder {folder}: unpack COCO and COCO-Stuff as datasets/README.md shows.")
    if split.seen_ids != tuple(range(len(split.seen_ids))):
        raise PreparationError("the label space must list the seen classes first; use coco_zss_split()")
    lookup, num_visible = label_lookup(split), len(split.seen_ids) if hide_unseen else split.num_classes
    tasks = [
        StuffTask(source, target_dir / source.name, image_dir / f"{source.stem}.jpg", lookup, num_visible)
        for source in sorted(source_dir.glob("[!.]*.png"))
    ]
    if not tasks:
        raise PreparationError(f"{source_dir}: holds no PNG; {_CURE}.")
    return tasks


def write_stuff(
    tasks: list[StuffTask], image_list: Path, split: ClassSplit, *, num_workers: int, title: str
) -> StuffAudit:
    """Write the PNGs of all tasks, keeping the valid ones, then the image list.

    Raises:
        PreparationError: the first image that cannot be prepared; PNGs written so far stay.
    """
    make_target_folder(tasks[0].target.parent)
    audit, entries, _ = _audited(_write, tasks, num_workers=num_workers, title=title)
    _write_list(image_list, entries, split, hidden=audit.num_classes < split.num_classes)
    return audit


def check_stuff(
    tasks: list[StuffTask], image_list: Path, *, num_workers: int, title: str = "check"
) -> tuple[StuffAudit, list[str]]:
    """Recompute every label, compare with the PNGs and the image list; nothing is written.

    Returns:
        The audit, and one line for each problem.
    """
    audit, entries, problems = _audited(_check, tasks, num_workers=num_workers, title=title)
    problems += [f"{stray}: belongs to no image; delete it." for stray in audit.strays]
    if audit.leaked_pixels:
        problems.append(f"{tasks[0].target.parent}: {audit.leaked_pixels} pixels of labels that must not occur.")
    listed = _listed(image_list)
    if listed != entries:
        problems.append(f"{image_list}: lists {len(listed)} images, not the {len(entries)} of the PNGs; prepare again.")
    return audit, problems


def _audited(
    function: Callable[[StuffTask], tuple[StuffResult | None, str]],
    tasks: list[StuffTask],
    *,
    num_workers: int,
    title: str,
) -> tuple[StuffAudit, list[dict[str, Any]], list[str]]:
    """Counts, list entries and problems of what a function says of each image."""
    audit, entries, problems = StuffAudit(tasks[0].num_visible), [], []
    results = map_tasks(function, tasks, num_workers=num_workers)
    for result, problem in tqdm(results, total=len(tasks), desc=title, **_BAR):
        if problem:
            problems.append(problem)
        if result is None:
            continue
        entries.append(result.entry)
        unseen = result.entry["unseen_pixels"]
        audit.num_images += 1
        audit.written += result.written
        audit.pixels += result.pixels
        audit.clean_images += unseen == 0
        audit.hidden_pixels += unseen
    audit.strays = stray_pngs({task.target for task in tasks})
    return audit, entries, problems


def _compute(task: StuffTask) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Labels and list entry of one image, from the official PNG."""
    official = read_label_map(task.source, cure=_CURE)
    wide: npt.NDArray[np.int16] = (
        task.lookup[official] if official.dtype == np.uint8 else np.full(official.shape, _UNKNOWN, np.int16)
    )
    if (wide == _UNKNOWN).any():
        values = np.unique(official[wide == _UNKNOWN])[:_SHOWN].tolist()
        raise PreparationError(
            f"{task.source}: holds the values {values}, which are no classes of COCO-Stuff (0 to 181 without the 11 "
            f"unused, and 255). Use the PNGs of stuffthingmaps_trainval2017.zip, not converted ones."
        )
    _check_image(task, wide.shape)
    num_seen = task.num_visible
    # Seen classes come first: ids from ``num_visible`` on are the unseen ones, which become void in training.
    hidden = (wide >= num_seen) & (wide != IGNORE_LABEL)
    labels = np.where(hidden, IGNORE_LABEL, wide).astype(np.uint8)
    height, width = wide.shape
    entry = {
        "id": int(task.source.stem) if task.source.stem.isdigit() else task.source.stem,
        "file_name": task.image_file.name,
        "height": height,
        "width": width,
        "unseen_pixels": int(np.count_nonzero(hidden)),
    }
    return labels, entry


def _check_image(task: StuffTask, shape: tuple[int, ...]) -> None:
    height, width = displayed_size(task.image_file, cure="unpack train2017.zip and val2017.zip")
    if (height, width) != tuple(shape):
        raise PreparationError(
            f"{task.image_file}: {height} x {width} (height x width), its labels {task.source} are {shape[0]} x "
            f"{shape[1]}; use the original images, not resized ones."
        )


def _existing(task: StuffTask) -> npt.NDArray[Any] | None:
    """Labels of an earlier run; None where there are none that can be read."""
    try:
        return read_label_map(task.target)
    except UserError:
        return None


def _write(task: StuffTask) -> tuple[StuffResult, str]:
    labels, entry = _compute(task)
    earlier = _existing(task)
    # What is right already is not written again: its time of change keeps caches valid.
    written = earlier is None or earlier.dtype != np.uint8 or not np.array_equal(earlier, labels)
    if written:
        save_png(labels, task.target)
    return StuffResult(entry, np.bincount(labels.ravel(), minlength=256), written), ""


def _check(task: StuffTask) -> tuple[StuffResult | None, str]:
    """Counts of the PNG as it is on disk, and what is wrong with it."""
    try:
        labels, entry = _compute(task)
    except UserError as error:
        return None, str(error)
    stored = _existing(task)
    if stored is None or stored.dtype != np.uint8:
        return None, f"{task.target}: missing or unreadable; prepare again."
    result = StuffResult(entry, np.bincount(stored.ravel(), minlength=256), False)
    same = np.array_equal(stored, labels)
    return result, "" if same else f"{task.target}: differs from {task.source}; delete it and prepare again."


def _write_list(path: Path, entries: list[dict[str, Any]], split: ClassSplit, *, hidden: bool) -> None:
    classes = split.seen_only() if hidden else split
    categories = [{"id": i, "name": name} for i, name in enumerate(classes.names)]
    write_json(path, {"images": entries, "categories": categories}, indent=None)


def _listed(path: Path) -> list[Any]:
    try:
        listed = read_json(path, required=("images",))["images"]
    except (OSError, UserError):
        return []
    return listed if isinstance(listed, list) else []
