# SPDX-License-Identifier: Apache-2.0
"""Weights and losses of the tasks over a training, read from the metrics.json that it writes."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from padding.errors import DataError, MissingFileError
from salseg.task_weighting import TASKS

_LOG = "metrics.json"
_SEED = re.compile(r"seed_\d+")  # folders of benchmarks.ablation_rows
_WEIGHT, _LOSS = "salseg/weight_{}", "salseg/{}"

Log = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """A number over the iterations: mean and standard deviation of the trainings that have it."""

    iterations: tuple[int, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True)
class TaskCourses:
    """Trainings of one kind.

    Attributes:
        name: of the kind.
        runs: number of trainings.
        weights: by task, the factor on its loss: e^-s where it is learned.
        losses: by task, the loss before it is weighted; classes are weighted.
    """

    name: str
    runs: int
    weights: dict[str, Course]
    losses: dict[str, Course]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def read_courses(folder: Path, name: str = "") -> list[TaskCourses]:
    """Every training below a folder; those in folders seed_0, seed_1, ... of one folder are averaged.

    Args:
        folder: of one training or of many.
        name: of the result; "": the folder's. Where the trainings are of several kinds, each adds its own folder.

    Raises:
        MissingFileError: there is no training of SalSeg.
        ValueError: a log is damaged.
    """
    logs_by_kind: dict[Path, list[Log]] = {}
    for path in sorted(folder.rglob(_LOG)):
        log = _read_log(path)
        if log:
            run = path.parent
            logs_by_kind.setdefault(run.parent if _SEED.fullmatch(run.name) and run != folder else run, []).append(log)
    if not logs_by_kind:
        raise MissingFileError(
            f"{folder}: no {_LOG} of a SalSeg training below it; name a folder that train_net.py or "
            "benchmarks.ablation_rows wrote (OUTPUT_DIR)"
        )
    title = name or folder.resolve().name
    if len(logs_by_kind) == 1:
        return [_courses(title, logs) for logs in logs_by_kind.values()]
    prefix = f"{name}/" if name else ""
    return [_courses(f"{prefix}{kind.relative_to(folder)}", logs) for kind, logs in logs_by_kind.items()]


def _courses(name: str, logs: Sequence[Log]) -> TaskCourses:
    def of_tasks(key: str) -> dict[str, Course]:
        courses = {task: _course(logs, key.format(task)) for task in TASKS}
        return {task: course for task, course in courses.items() if course.iterations}

    return TaskCourses(name, len(logs), weights=of_tasks(_WEIGHT), losses=of_tasks(_LOSS))


def _course(logs: Sequence[Log], key: str) -> Course:
    values: dict[int, list[float]] = {}
    for log in logs:
        for iteration, line in log.items():
            if key in line:
                values.setdefault(iteration, []).append(float(line[key]))
    at = sorted(values)
    return Course(tuple(at), tuple(fmean(values[i]) for i in at), tuple(pstdev(values[i]) for i in at))


def _read_log(path: Path) -> Log:
    """Lines with weights by iteration, of a repeated one (after resuming) the later; {} for another kind of file."""
    log: Log = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if not log:  # results of an evaluation have the same name and are one value over several lines
                return {}
            raise DataError(f"{path}, line {number}: {error}; the log is damaged, was the disk full?") from error
        if isinstance(line, dict) and any(_WEIGHT.format(task) in line for task in TASKS):
            log[int(line["iteration"])] = line
    return log
