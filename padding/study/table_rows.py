# SPDX-License-Identifier: Apache-2.0
"""Rows of a table: trained once from one segmentor and one feature bank, with several seeds, and evaluated once.

A row is a set of KEY VALUE pairs put behind a configuration. What is finished is recognised by what it depends on (keys
and the segmentor's weights) and not repeated; what was interrupted goes on. Commands are printed as a user would type
them.
"""

import functools
import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from padding.bank.feature_bank import flattened
from padding.config import add_padding_config
from padding.data.files import write_json
from padding.engine.commands import METHODS, load_config, load_model, parse, training_parser
from padding.engine.cpu_time import process_cpu_seconds
from padding.engine.output_folder import claimed_folder
from padding.engine.setup import load_cfg, start_run
from padding.engine.trainer import TRAINER_REGISTRY
from padding.modeling.maskformer import MaskFormer

# Keys that act in evaluation only, or on nothing but the place and rhythm of a training.
_PLACES = ("OUTPUT_DIR", "OUTPUT_OVERWRITE", "INPUT.MAX_UNPACKED_MB", "INPUT.ALLOW_TRUNCATED_JPEG")
_NOT_TRAINING = (
    *_PLACES,
    *("TEST.", "MODEL.MASK_FORMER.TEST.", "MODEL.PADING.TEST.", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
    *("SOLVER.LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "DATALOADER.NUM_WORKERS", "VIS_PERIOD"),
)
Measure = Callable[[CfgNode, MaskFormer], dict[str, Any]]


class Row(NamedTuple):
    """A row of a table."""

    label: str  # its name in the table
    name: str  # its name in folders
    options: tuple[str, ...] = ()  # KEY, VALUE, ... put behind the configuration
    trained: bool = True  # False if the segmentor is evaluated as it is
    seeded: tuple[str, ...] = ()  # KEYs that are set to the seed of each run


def read_row(path: Path, label: str) -> Row:
    """Row of a YAML file without ``_BASE_``."""
    leaves = dict(flattened(yaml.safe_load(path.read_text())))
    options = tuple(str(word) for pair in leaves.items() for word in pair)
    seeded = tuple(key for key in leaves if key.endswith(".RANDOM_SEED"))
    return Row(label, path.stem, options, leaves.get("MODEL.PADING.METHOD") != "supervised", seeded)


def run_once(config_file: str, options: Sequence[str], output: Path) -> str:
    """Train one configuration unless it is finished, without evaluating it; go on if it was interrupted.

    Args:
        config_file: YAML.
        options: KEY, VALUE, ...
        output: OUTPUT_DIR; the same folder always means the same training.

    Returns:
        Path of the final weights.
    """
    final, stamp = output / "model_final.pth", output / "finished.json"
    if final.exists() and stamp.exists():
        return str(final)
    words = ["--config-file", config_file, "--resume", *options, "OUTPUT_DIR", str(output)]
    print(f"\n$ python train_net.py {' '.join(words)}", flush=True)  # noqa: T201  (a command line's progress)
    started, cpu = time.perf_counter(), process_cpu_seconds()
    args = parse(training_parser(None), words)
    cfg = load_config(args.config_file, args.opts)
    with claimed_folder(cfg, resume=True) as note:
        start_run(cfg, args, METHODS)
        if note:
            logging.getLogger(__name__).warning(note)
        trainer = _without_evaluation(TRAINER_REGISTRY.get(cfg.TRAINER))(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    for checkpoint in output.glob("model_0*.pth"):
        checkpoint.unlink()
    cost = {"seconds": time.perf_counter() - started, "cpu_seconds": process_cpu_seconds() - cpu}
    write_json(stamp, {"options": words, **cost})
    return str(final)


def _without_evaluation(trainer_class: type[Any]) -> type[Any]:
    """The same training loop without its evaluation at the end: rows are measured by ``AblationRuns.measure``."""

    class Trainer(trainer_class):  # type: ignore[misc]
        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: ARG003
            return {}

    return Trainer


@dataclass(frozen=True)
class AblationRuns:
    """Trainings and measurements of an ablation's rows, on top of one configuration."""

    config_file: str  # YAML of the second stage
    options: tuple[str, ...]  # KEY, VALUE, ... of the user, in every row; a row's own come later
    output: Path  # folder of trainings and results

    def configure(self, row: Row, seed: int, *more: str) -> CfgNode:
        """The configuration of one run."""
        return load_config(self.config_file, [*self._options(row, seed), *more])

    def train(self, row: Row, seed: int) -> str:
        """Weights of one run: trained now or earlier, or the segmentor itself."""
        cfg = self.configure(row, seed)
        if not row.trained:
            return str(cfg.MODEL.WEIGHTS)
        return run_once(self.config_file, self._options(row, seed), self._folder(row, seed))

    def cpu_seconds(self, row: Row, seed: int) -> float:
        """What the training of a finished run took; NaN if it was interrupted or is older than this number."""
        content = json.loads((self._folder(row, seed) / "finished.json").read_text())
        return float(content.get("cpu_seconds", math.nan))

    def measure(self, row: Row, seed: int, name: str, measure: Measure, *more: str) -> dict[str, Any]:
        """Numbers of one run, taken now or earlier.

        Args:
            row: of the table.
            seed: of the second stage.
            name: of the numbers, in file names.
            measure: takes them.
            more: KEY, VALUE, ... of the evaluation only.
        """
        weights, folder = self.train(row, seed), self._folder(row, seed)
        cfg = self.configure(row, seed, *more, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(folder))
        path = folder / f"{name}_{_digest(cfg, everything=True)}.json"
        if not path.exists():
            logging.getLogger(__name__).info("Measuring %s of row %s, seed %d", name, row.label, seed)
            write_json(path, measure(cfg, load_model(cfg)))
        return with_nan(json.loads(path.read_text()))

    def _options(self, row: Row, seed: int) -> list[str]:
        bank = ("MODEL.PADING.FEATURE_BANK.PATH", str(self.output / "feature_bank"))
        seeds = [word for key in ("SEED", *row.seeded) for word in (key, str(seed))]
        return ["MODEL.PADING.FEATURE_BANK.ENABLED", "True", *bank, *self.options, *row.options, *seeds]

    def _folder(self, row: Row, seed: int) -> Path:
        cfg = self.configure(row, seed)
        return self.output / f"{row.name}_seed{seed}_{_digest(cfg, everything=False)}"


def _digest(cfg: CfgNode, *, everything: bool) -> str:
    """Short digest of the configuration and of the weights it starts from.

    Args:
        cfg: full configuration.
        everything: False to leave out what acts in evaluation only.
    """
    entries = {
        key: repr(value)
        for key, value in flattened(cfg)
        if key in _own_keys() and (everything or not key.startswith(_NOT_TRAINING))
    }
    for key in (*_PLACES, "MODEL.PADING.FEATURE_BANK.PATH"):
        entries.pop(key, None)
    weights = Path(entries.pop("MODEL.WEIGHTS").strip("'"))
    if weights.is_file():
        entries["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:10]


@functools.cache
def _own_keys() -> frozenset[str]:
    """Keys that act on PADing; a new key of another method must not make finished trainings unknown."""
    return frozenset(key for key, _ in flattened(load_cfg("", [], (add_padding_config,))))


def with_nan(value: Any) -> Any:
    """The inverse of ``files.without_nan`` for numbers: NaN for every None."""
    if isinstance(value, dict):
        return {key: with_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_nan(entry) for entry in value]
    return float("nan") if value is None else value


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where a value is, and for the deviation of a single one."""
    if any(math.isnan(value) for value in values):
        return math.nan, math.nan
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def spread_text(values: Sequence[float], *, digits: int = 1) -> str:
    """Mean and, of several, the sample standard deviation; a dash for numbers that do not exist."""
    mean, deviation = mean_and_spread(values)
    if math.isnan(mean):
        return "-"
    if math.isnan(deviation):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def sweep_table(results: Mapping[str, Sequence[Mapping[str, Any]]], style: str = "github") -> str:
    """Two lines a row: without gamma, and with gamma tuned on half A and reported on half B.

    Args:
        results: label -> one ``seen_bias.sweep_summary`` for each seed.
        style: of ``tabulate``.
    """
    quantities = list(next(iter(results.values()))[0])
    groups = ("seen", "unseen", "HM")
    headers = ["row", "gamma", *(f"{name} {group}" for name in quantities for group in groups), "AUSUC x 100"]
    lines = []
    for label, runs in results.items():
        plain = [
            spread_text([_at_zero(run[name])[group.lower()] for run in runs]) for name in quantities for group in groups
        ]
        lead = [run[quantities[0]] for run in runs]
        tuned = [spread_text([entry[f"best_hm{key}"] for entry in lead]) for key in ("_seen", "_unseen", "")]
        gamma = spread_text([entry["best_hm_gamma"] for entry in lead])
        empty = [""] * (len(groups) * (len(quantities) - 1))
        lines.append([label, "0", *plain, spread_text([100 * entry["AUSUC"] for entry in lead])])
        lines.append([label, f"tuned on half A: {gamma}", *tuned, *empty, ""])
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True)


def _at_zero(summary: Mapping[str, Any]) -> Mapping[str, float]:
    return next(point for point in summary["curve"] if point["gamma"] == 0)
