# SPDX-License-Identifier: Apache-2.0
"""What scribbles are worth: trainings with more or less ink, read from their folders."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from detectron2.data import MetadataCatalog

from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.data.scribbles.folder import ScribbleFolder
from padding.engine.commands import load_config
from padding.errors import MissingFileError

_METHOD_RESULT = "row_result.json"  # of benchmarks.ablation_rows
_LOG = "metrics.json"  # of any training


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        folder: its output.
        dataset: training set.
        labeled_pct: share of the training pixels with a label; None for dense labels.
        length: share of each curve that was drawn, where scribbles are simulated.
        score: the metric, in percent.
    """

    folder: Path
    dataset: str
    labeled_pct: float | None
    length: float | None
    score: float


@dataclass(frozen=True)
class BudgetPoint:
    """Trainings with the same scribbles: mean and standard deviation over them."""

    labeled_pct: float
    length: float | None
    mean: float
    spread: float
    runs: int


@dataclass(frozen=True)
class BudgetCurve:
    """Points by rising budget, and the mean score with dense labels; None without such a run."""

    name: str
    points: tuple[BudgetPoint, ...]
    full: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def read_runs(folder: Path, *, metric: str = "sem_seg/mIoU") -> list[Run]:
    """Every finished training below a folder; registers the data sets.

    Args:
        folder: of one training or of many.
        metric: as task/metric.

    Raises:
        MissingFileError: there is none, or the statistics of its scribbles are missing.
    """
    register_all()
    runs = [run for path in sorted(folder.rglob("config.yaml")) if (run := _read_run(path.parent, metric)) is not None]
    if not runs:
        raise MissingFileError(
            f"{folder}: no finished training below it; expected folders with config.yaml and {metric} in {_LOG} "
            "(train_net.py writes both into OUTPUT_DIR)"
        )
    return runs


def budget_curves(name: str, runs: Sequence[Run]) -> BudgetCurve:
    """Average the runs with the same budget."""
    budgets: dict[tuple[float, float | None], list[float]] = {}
    full = [run.score for run in runs if run.labeled_pct is None]
    for run in runs:
        if run.labeled_pct is not None:
            budgets.setdefault((run.labeled_pct, run.length), []).append(run.score)
    points = [
        BudgetPoint(labeled, length, fmean(scores), pstdev(scores), len(scores))
        for (labeled, length), scores in sorted(budgets.items(), key=lambda item: item[0][0])
    ]
    return BudgetCurve(name, tuple(points), fmean(full) if full else None)


def _read_run(folder: Path, metric: str) -> Run | None:
    """None for a training that is not finished."""
    cfg = load_config(folder / "config.yaml")
    score = _score(folder, metric, max_iter=cfg.SOLVER.MAX_ITER)
    if score is None:
        return None
    register_own_data(cfg)
    dataset = cfg.DATASETS.TRAIN[0]
    labeled, length = _budget_of(dataset)
    return Run(folder, dataset, labeled, length, score)


def _budget_of(dataset: str) -> tuple[float | None, float | None]:
    """Percentage of labeled pixels and the length of the curves; None, None for dense labels."""
    metadata = MetadataCatalog.get(dataset)
    label_root = metadata.get("label_root")
    if not label_root:
        return None, None
    scribbles = ScribbleFolder(Path(label_root))
    manifest = scribbles.content()
    if manifest is None:
        if metadata.get("dense_set") is None:
            return None, None
        raise MissingFileError(
            f"{scribbles.manifest}: not there, so it is unknown how much the scribbles of {dataset} cover; make them "
            "with datasets/prepare_scribbles.py"
        )
    if manifest.statistics is None:
        raise MissingFileError(f"{scribbles.manifest}: not complete; run datasets/prepare_scribbles.py once more")
    return manifest.statistics.coverage_pct, manifest.settings.get("length")


def _score(folder: Path, metric: str, *, max_iter: int) -> float | None:
    """The metric after the last iteration; None where the training has not got that far."""
    result = folder / _METHOD_RESULT
    if result.is_file():
        value: Any = json.loads(result.read_text(encoding="utf-8"))["metrics"]
        for part in metric.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        return None if value is None else float(value)
    lines = [line for line in _lines(folder / _LOG) if line["iteration"] >= max_iter - 1]
    values = [line[metric] for line in lines if line.get(metric) is not None]
    return float(values[-1]) if values else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
