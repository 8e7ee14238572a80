# SPDX-License-Identifier: Apache-2.0
"""All label PNGs of a panoptic data set: write them, count what they show, check them again (COCO zero-shot panoptic).

The audit answers one question: does anything that will be trained on show an unseen class?
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.files import TEMPORARY
from padding.data.prepare.panoptic_png import IGNORE_LABEL, LabelResult, LabelTask, label_problems, write_labels
from padding.data.worker_pool import worker_pool

# Tasks handed to the pool at a time: bounds the memory, long enough to keep the workers busy.
_BATCH = 256
_SHOWN = 5
_BAR: dict[str, Any] = {"unit": "img", "mininterval": 1.0, "dynamic_ncols": True}

T = TypeVar("T")
Task = TypeVar("Task")


@dataclass
class LeakAudit:
    """Counts over everything that will be trained on (or evaluated, where unseen classes are welcome)."""

    split: ClassSplit  # all classes, seen and unseen
    num_images: int = 0  # images looked at
    num_segments: int = 0  # segments in the JSON
    unseen_segments: int = 0  # those of an unseen class
    written: int = 0  # semantic PNGs written by this run; the others were valid already
    # (256,) int64 pixels of each label value.
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    # PNGs in the target folder of no image in the JSON; a loader that lists the folder reads them.
    strays: list[str] = field(default_factory=list)

    def add(self, task: LabelTask, result: LabelResult) -> None:
        """Count one image."""
        unseen = set(self.split.unseen_ids)
        self.num_images += 1
        self.num_segments += len(task.segments)
        self.unseen_segments += sum(segment.class_id in unseen for segment in task.segments)
        self.written += result.written
        self.pixels += result.pixels

    @property
    def unseen_pixels(self) -> int:
        """Pixels labelled with an unseen class."""
        return int(self.pixels[list(self.split.unseen_ids)].sum())

    @property
    def leaks(self) -> bool:
        """Whether training on these files could show an unseen class."""
        return self.unseen_segments > 0 or self.unseen_pixels > 0 or bool(self.strays)

    def lines(self) -> list[str]:
        """The audit for a reader."""
        total = max(int(self.pixels.sum()), 1)
        text = [
            f"  {self.num_images} images, {self.num_segments} segments; PNGs: {self.written} written, "
            f"{self.num_images - self.written} valid already",
            f"  unseen classes: {self.unseen_segments} segments, {self.unseen_pixels} pixels; "
            f"void {100 * int(self.pixels[IGNORE_LABEL]) / total:.2f} % of the pixels",
        ]
        if self.strays:
            text.append(f"  {len(self.strays)} PNGs of no image in the JSON, delete them: {self.strays[:_SHOWN]}")
        return text


def write_all_labels(
    tasks: Iterable[LabelTask],
    split: ClassSplit,
    *,
    num_workers: int = 1,
    total: int | None = None,
    title: str = "labels",
) -> LeakAudit:
    """Write the PNGs of all tasks, keeping the valid ones, and count what is in them.

    Raises:
        PreparationError: the first image that cannot be prepared; PNGs written so far stay.
    """
    audit = LeakAudit(split)
    results = map_tasks(_write, _folders_made(tasks), num_workers=num_workers)
    written: set[Path] = set()
    for task, result in tqdm(results, total=total, desc=title, **_BAR):
        audit.add(task, result)
        written.add(task.semantic_file)
    audit.strays = stray_pngs(written)
    return audit


def check_all_labels(
    tasks: Iterable[LabelTask],
    split: ClassSplit,
    *,
    unseen_allowed: bool,
    num_workers: int = 1,
    total: int | None = None,
) -> tuple[int, list[str]]:
    """Compare JSON, panoptic PNG and semantic PNG of all tasks without writing.

    Returns:
        Number of images looked at, and one line for each problem.
    """
    unseen = set(split.unseen_ids)
    problems: list[str] = []
    expected: set[Path] = set()
    results = map_tasks(_check, tasks, num_workers=num_workers)
    for task, task_problems in tqdm(results, total=total, desc="check", **_BAR):
        expected.add(task.semantic_file)
        problems += task_problems
        leaked = sorted({split.names[s.class_id] for s in task.segments if s.class_id in unseen})
        if leaked and not unseen_allowed:
            problems.append(f"{task.json_file}: {task.panoptic_file.name} is trained on and holds unseen {leaked}")
    problems += [f"{stray}: belongs to no image of the JSON; delete it." for stray in stray_pngs(expected)]
    return len(expected), problems


def map_tasks(function: Callable[[Task], T], tasks: Iterable[Task], *, num_workers: int) -> Iterator[T]:
    """`map` in order with a bounded pool of processes, closed in every case."""
    if num_workers <= 1:
        yield from map(function, tasks)
        return
    waiting = iter(tasks)
    with worker_pool(num_workers) as pool:
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(function, batch, chunksize=8)


def stray_pngs(expected: set[Path]) -> list[str]:
    """PNGs beside the expected ones, by path."""
    folders = {path.parent for path in expected}
    return sorted(str(path) for folder in folders for path in folder.glob("[!.]*.png") if path not in expected)


def make_target_folder(folder: Path) -> None:
    """Make a folder, and sweep away what killed runs left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(TEMPORARY):
        leftover.unlink(missing_ok=True)


def _write(task: LabelTask) -> tuple[LabelTask, LabelResult]:
    return task, write_labels(task)


def _check(task: LabelTask) -> tuple[LabelTask, list[str]]:
    return task, label_problems(task)


def _folders_made(tasks: Iterable[LabelTask]) -> Iterator[LabelTask]:
    """Make the target folders, once each."""
    made: set[Path] = set()
    for task in tasks:
        for path in (task.semantic_file, task.masked_file):
            if path is not None and path.parent not in made:
                made.add(path.parent)
                make_target_folder(path.parent)
        yield task
