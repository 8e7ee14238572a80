# SPDX-License-Identifier: Apache-2.0
"""One report form for all tasks: a table in the log, and ``<task>_per_class.json`` and ``.md`` in the output folder."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from padding.data.files import write_text
from padding.evaluation.grouping import ClassGroups

logger = logging.getLogger(__name__)

MISSING = "–"  # printed for a number that does not exist, e.g. the score of an absent class
GROUP_ROWS = (("all", ""), ("seen", "_seen"), ("unseen", "_unseen"), ("harmonic mean", "_hm"))


@dataclass(frozen=True)
class Report:
    """Numbers of one task, in percent.

    Attributes:
        task: result key, e.g. "panoptic_seg".
        metrics: class-averaged quantities, keys of ``results``.
        results: flat numbers as the evaluator returns them.
        rows: one dict per class: ``id, name, group, counted`` and the per-class columns.
        group_sizes: number of classes of "all", "seen" and "unseen", counted or not.
    """

    task: str
    metrics: tuple[str, ...]
    results: Mapping[str, float]
    rows: tuple[dict[str, Any], ...]
    group_sizes: Mapping[str, int]

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that were left out of the means."""
        return tuple(row["name"] for row in self.rows if not row["counted"])

    def group_table(self, style: str = "github") -> str:
        """Means by group, with the number of classes behind each.

        Args:
            style: table format of ``tabulate``.
        """
        lines = []
        for label, suffix in GROUP_ROWS:
            if f"{self.metrics[0]}{suffix}" not in self.results:
                continue
            counted = self.results.get(f"num_classes{suffix}")
            size = self.group_sizes.get(label)
            classes = MISSING if counted is None or size is None else f"{counted:.0f} of {size}"
            lines.append([label, *(_number(self.results.get(f"{name}{suffix}")) for name in self.metrics), classes])
        return tabulate(
            lines, headers=["classes", *self.metrics, "counted"], tablefmt=style, **_alignment(len(self.metrics) + 2)
        )

    def class_table(self, style: str = "github") -> str:
        """One line per class.

        Args:
            style: table format of ``tabulate``.
        """
        columns = list(self.rows[0]) if self.rows else []
        lines = [[_number(row[name]) for name in columns] for row in self.rows]
        return tabulate(lines, headers=columns, tablefmt=style, **_alignment(len(columns), text_columns=4))

    def to_json(self) -> str:
        """Strict JSON: a number that does not exist is null."""
        content = {
            "task": self.task,
            "results": {name: _json_value(value) for name, value in self.results.items()},
            "absent_classes": list(self.absent),
            "per_class": [{name: _json_value(value) for name, value in row.items()} for row in self.rows],
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Group table, other numbers, class table."""
        in_group_table = {f"{name}{suffix}" for name in (*self.metrics, "num_classes") for _, suffix in GROUP_ROWS}
        others = [f"- {name}: {_number(value)}" for name, value in self.results.items() if name not in in_group_table]
        parts = [f"# {self.task}", self.group_table(), "\n".join(others), self._absent_sentence(), self.class_table()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _absent_sentence(self) -> str:
        if not self.absent:
            return "Every class occurs in the ground truth."
        return f"Left out of the means, {len(self.absent)} absent classes: {', '.join(self.absent)}."


def build_report(
    task: str,
    results: Mapping[str, float],
    metrics: Sequence[str],
    per_class: Mapping[str, npt.NDArray[Any]],
    counted: npt.NDArray[np.bool_],
    groups: ClassGroups,
) -> Report:
    """Arrange an evaluator's numbers as a report.

    Args:
        task: result key.
        results: flat numbers in percent, e.g. of ``grouping.grouped_results``.
        metrics: the class-averaged names among them, in the order of the columns.
        per_class: column name to its (K,) numbers.
        counted: (K,) bool, classes that count in the means.
        groups: the classes; those in no group (stuff, in an instance report) get no row.
    """
    unseen = frozenset(groups.unseen_ids)
    rows = tuple(
        {
            "id": class_id,
            "name": groups.names[class_id],
            "group": "unseen" if class_id in unseen else "seen",
            "counted": bool(counted[class_id]),
            **{name: values[class_id].item() for name, values in per_class.items()},
        }
        for class_id in sorted((*groups.seen_ids, *groups.unseen_ids))
    )
    sizes = {"all": len(rows), "seen": len(groups.seen_ids), "unseen": len(groups.unseen_ids)}
    return Report(task=task, metrics=tuple(metrics), results=results, rows=rows, group_sizes=sizes)


def publish(report: Report, output_folder: str | Path | None) -> None:
    """Log both tables and, given a folder, write ``<task>_per_class.json`` and ``<task>_per_class.md`` into it."""
    logger.info("%s by class:\n%s", report.task, report.class_table("simple"))
    logger.info("%s (%%):\n%s", report.task, report.group_table("simple"))
    if report.absent:
        logger.info("%s: %d classes are absent and left out of the means", report.task, len(report.absent))
    if output_folder is None:
        return
    folder = Path(output_folder)
    write_text(folder / f"{report.task}_per_class.json", report.to_json())
    write_text(folder / f"{report.task}_per_class.md", report.to_markdown())


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _alignment(num_columns: int, text_columns: int = 1) -> dict[str, Any]:
    # The cells are strings already: without disable_numparse tabulate would undo their two decimals.
    return {"colalign": ["left"] * text_columns + ["right"] * (num_columns - text_columns), "disable_numparse": True}
