# SPDX-License-Identifier: Apache-2.0
"""Train every row of a method's ablation table with several seeds and print the table.

A row is a YAML ``configs/ablations/<method>/<data>_<row>.yaml``; the method's own ``configs/<data>_<method>.yaml`` is
the last one. Every run is a call of ``train_net.py``, printed as the command a user would type. A run whose
configuration is unchanged is not repeated, an interrupted one continues from its last checkpoint. The last line is one
JSON object; the table is also written as Markdown beside the runs.

Example:
  python -m benchmarks.ablation_rows --method tcc --data shapes --seeds 3
"""

import hashlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

import train_net
from padding.data.files import write_json, write_text
from padding.engine.commands import add_pairs_argument, command_parser, load_config, parse, positive
from padding.engine.cpu_time import process_cpu_seconds
from padding.errors import ConfigError, MissingFileError, run_command
from padding.study.table_rows import spread_text

RESULT = "row_result.json"
_PLACE_AND_RHYTHM = (
    *("OUTPUT_DIR", "OUTPUT_OVERWRITE", "INPUT.MAX_UNPACKED_MB", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD"),
    "DATALOADER.NUM_WORKERS",
)


def find_rows(method: str, data: str, only: Sequence[str] = (), configs: Path = Path("configs")) -> dict[str, Path]:
    """Configurations of a table by row name, in alphabetical order, the method itself last.

    Raises:
        MissingFileError: if there are none, or one of ``only`` is not among them.
    """
    method_file = configs / f"{data}_{method}.yaml"
    files = sorted((configs / "ablations" / method).glob(f"{data}_*.yaml"))
    rows = {path.stem.removeprefix(f"{data}_"): path for path in files}
    if method_file.is_file():
        rows[method] = method_file
    unknown = [name for name in only if name not in rows]
    if not rows or unknown:
        raise MissingFileError(
            f"no row {', '.join(unknown) or 'at all'} in {configs}/ablations/{method}/{data}_*.yaml; "
            f"there are: {', '.join(rows) or 'none'}"
        )
    return {name: rows[name] for name in (only or rows)}


def run_row(config: Path, output: Path, options: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate one configuration, unless its result is there already.

    Returns:
        ``metrics`` of the run, ``wall_seconds`` and ``cpu_seconds`` of it, ``identity`` of the configuration.
    """
    words = [*options, "OUTPUT_DIR", str(output)]
    identity = identity_of(config, options)
    path = output / RESULT
    if path.is_file() and (kept := json.loads(path.read_text()))["identity"] == identity:
        return kept
    mark = output / "row_identity.txt"
    if mark.is_file() and mark.read_text() != identity:
        raise ConfigError(
            f"{output} holds a run of another configuration; remove it, or choose another folder with --output"
        )
    command = ["--config-file", str(config), "--resume", *words]
    print(f"\npython train_net.py {' '.join(command)}", flush=True)
    write_text(mark, identity)
    start, before = time.perf_counter(), process_cpu_seconds()
    metrics = train_net.main(train_net.parse_arguments(command))
    result = {
        "identity": identity,
        "metrics": metrics,
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": process_cpu_seconds() - before,
    }
    write_json(path, result)
    return result


def identity_of(config: Path, options: Sequence[str]) -> str:
    """Digest of everything in a configuration that can change its result."""
    cfg = load_config(config, options).clone()
    cfg.defrost()
    for key in _PLACE_AND_RHYTHM:
        *nodes, leaf = key.split(".")
        node = cfg
        for name in nodes:
            node = node[name]
        node[leaf] = None
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def metric_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """Number at "task/metric" in nested results; None if the row has none.

    Where a row is tested on several data sets, each with tasks of its own, the task is looked up below their names.
    """
    below = [entry for key, entry in metrics.items() if key != "best" and isinstance(entry, Mapping)]
    for results in (metrics, *below):
        value: Any = results
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return float(value)
    return None


def summarise(results: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> dict[str, Any]:
    """Numbers of every row and metric over its seeds; a metric that a row lacks is an empty list."""
    return {
        row: {
            **{name: [v for run in runs if (v := metric_of(run["metrics"], name)) is not None] for name in names},
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
        }
        for row, runs in results.items()
    }


def headroom_shares(
    summary: Mapping[str, Mapping[str, Sequence[float]]], name: str, low: str, high: str
) -> dict[str, float]:
    """Which part of the way from row ``low`` to row ``high`` the mean of a metric has gone, in percent, by row.

    Raises:
        ConfigError: a row is missing, or ``high`` is not above ``low``: there is nothing to gain.
    """
    missing = [row for row in (low, high) if row not in summary or not summary[row][name]]
    if missing:
        raise ConfigError(f"--headroom names the row {missing[0]}, which has no {name}; rows: {', '.join(summary)}")
    means = {row: statistics.fmean(numbers[name]) for row, numbers in summary.items() if numbers[name]}
    if means[high] <= means[low]:
        raise ConfigError(
            f"--headroom: {high} has {means[high]:.1f} {name} and {low} {means[low]:.1f}, so nothing can be gained; "
            "train longer or with fewer labels"
        )
    return {row: 100 * (mean - means[low]) / (means[high] - means[low]) for row, mean in means.items()}


def to_table(
    summary: Mapping[str, Mapping[str, Sequence[float]]],
    names: Sequence[str],
    shares: Mapping[str, float] | None = None,
) -> str:
    """Markdown: mean and spread over the seeds; a metric that stays below 1 is a fraction and gets three decimals.

    Args:
        summary: of ``summarise``.
        names: of the metrics.
        shares: of ``headroom_shares``, a column of its own.
    """
    values = {name: [abs(v) for numbers in summary.values() for v in numbers[name]] for name in names}
    digits = {name: 3 if max(of_metric, default=1.0) < 1 else 1 for name, of_metric in values.items()}
    lines = [
        [
            row,
            *(spread_text(numbers[name], digits=digits[name]) if numbers[name] else "-" for name in names),
            *([f"{shares[row]:.0f} %" if row in shares else "-"] if shares is not None else []),
            len(numbers["cpu_seconds"]),
            f"{statistics.fmean(numbers['cpu_seconds']) / 60:.1f}",
        ]
        for row, numbers in summary.items()
    ]
    headers = ["row", *names, *(["of the headroom"] if shares is not None else []), "seeds", "CPU minutes a run"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of a table and print it."""
    parser = command_parser(__doc__)
    parser.add_argument("--method", required=True, help="folder below configs/ablations, for example tcc")
    parser.add_argument("--data", required=True, help="first word of the configurations' names, for example shapes")
    parser.add_argument("--rows", nargs="*", default=[], help="rows by name; default: all")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds 0 to N - 1 (default 3)")
    parser.add_argument("--metrics", nargs="*", default=["sem_seg/mIoU"], help="columns, as task/metric")
    parser.add_argument(
        "--headroom",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="two rows; a column says how much of the way between them each row goes, in the first metric",
    )
    parser.add_argument("--output", type=Path, help="folder of the runs; default output/ablations/<method>/<data>")
    add_pairs_argument(parser)
    args = parse(parser, arguments)
    output = args.output or Path("output/ablations") / args.method / args.data
    rows = find_rows(args.method, args.data, args.rows)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    for seed in range(args.seeds):  # seed by seed: an interrupted table compares all rows on the seeds it has
        for name, config in rows.items():
            results[name].append(run_row(config, output / name / f"seed_{seed}", [*args.opts, "SEED", str(seed)]))
    logging.disable(logging.INFO)
    summary = summarise(results, args.metrics)
    shares = headroom_shares(summary, args.metrics[0], *args.headroom) if args.headroom else None
    table = to_table(summary, args.metrics, shares)
    write_text(output / "table.md", table + "\n")
    write_json(output / "table.json", summary)
    print(f"\n{table}\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(run_command(main))
