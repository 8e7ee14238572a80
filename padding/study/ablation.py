# SPDX-License-Identifier: Apache-2.0
"""Tables 1 to 3 of PADing from one segmentor and one feature bank, with several seeds.

``python -m padding.ablation --config-file configs/shapes_zsp.yaml --table 1 --seeds 3 [--output DIR] [KEY VALUE ...]``
trains the rows in ``configs/ablations/padding/_base_``, prints a Markdown table with mean and spread and writes it with
every number as JSON. Finished runs are not repeated, interrupted ones continue; the segmentor of the embedded data, and
the data, are made where they are missing.

Table 1: the methods at gamma 0, with gamma tuned on half A and reported on half B, and the area under the curve.
Table 2: the same models as detectors (boxes, masks) and semantic segmentors. Table 3: the number of primitives.
Two tables the paper has not. "bank": the method trained from the feature bank and from images, as many in each
iteration, with CPU seconds. "presets": the method of the configuration, as the paper prints it, and as the released
code computes it, which takes its features from images.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from tabulate import tabulate

from padding.bank.feature_bank import flattened
from padding.data.catalog import register_all
from padding.data.files import write_json, write_text
from padding.data.roots import data_root, find_config, project_dir
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_missing_shapes
from padding.data.streams import build_eval_loader
from padding.engine.commands import (
    add_config_arguments,
    command_parser,
    load_config,
    open_config,
    parse,
    start_log,
)
from padding.errors import ConfigError
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.semantic import SemSegEvaluator
from padding.modeling.maskformer import MaskFormer
from padding.study.curve import GAMMAS
from padding.study.seen_bias import sweep_summary
from padding.study.table_rows import AblationRuns, Row, mean_and_spread, read_row, run_once, spread_text, sweep_table

ROWS = project_dir() / "configs" / "ablations" / "padding" / "_base_"
TABLES = ("1", "2", "3", "bank", "presets")
# What the released code changes between its tasks.
OFFICIAL = {"sem_seg": "padding_official_semantic", "coco_instance": "padding_official_instance"}
METHODS_OF_TABLE_1 = {
    "supervised": "supervised",
    "projection": "projection",
    "gmmn": "GMMN",
    "primitives": "P",
    "primitives_alignment": "P & A",
    "padding": "PADing",
}
# Not in the paper: without it nobody knows how much of an unseen score is chance.
CONTROL = {"control": "control: random vectors"}
# Table 3 has 100 to 700 primitives where the method has 400; here in the same proportion to the configuration's number.
FRACTIONS_OF_TABLE_3 = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# Measures of Table 2: column -> where the evaluators put them.
TASKS = {"box AP50": ("bbox", "AP50"), "mask AP50": ("segm", "AP50"), "mIoU": ("sem_seg", "mIoU")}
# Where gamma is tuned, too: column -> measure and quantity of the sweep, and the gammas. Average precision of hundreds
# of images takes a second for each, so these are fewer than in Table 1 of panoptic data, and without the ends, so that
# no area is reported. Table 1 of instance data takes these and the ends.
SWEPT_TASKS = {"mask AP50": ("coco_instance", "AP50"), "mIoU": ("sem_seg", "mIoU")}
TASK_GAMMAS = tuple(float(gamma) for gamma in range(-2, 9))
GROUPS = {"seen": "_seen", "unseen": "_unseen", "HM": "_hm"}
_TASKS_ON = ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True")


def rows_of_table(table: str, cfg: CfgNode) -> list[Row]:
    """Rows of one of ``TABLES`` for a configuration."""
    if table == "bank":
        method = read_row(ROWS / "padding.yaml", "PADing")
        images = ("MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH", str(cfg.SOLVER.IMS_PER_BATCH))
        # Otherwise MMD would compare class by class with one of them only.
        grouping = ("MODEL.PADING.MMD.GROUPING", "per_class")
        common = (*method.options, *images, *grouping)
        return [
            Row("from the bank", "from_bank", common),
            Row("from images", "from_images", (*common, "MODEL.PADING.FEATURE_BANK.ENABLED", "False")),
        ]
    if table == "presets":
        official = OFFICIAL.get(MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("evaluator_type", ""), "padding_official")
        return [
            read_row(ROWS / "padding.yaml", "PADing"),
            _preset_row("padding_paper", "paper, as printed"),
            _preset_row(official, "released recipe"),
        ]
    if table in ("1", "2"):
        return [read_row(ROWS / f"{name}.yaml", label) for name, label in {**METHODS_OF_TABLE_1, **CONTROL}.items()]
    base = read_row(ROWS / "primitives.yaml", "P")
    key, published = "MODEL.PADING.GENERATOR.NUM_PRIMITIVES", cfg.MODEL.PADING.GENERATOR.NUM_PRIMITIVES
    numbers = [max(round(published * fraction), 1) for fraction in FRACTIONS_OF_TABLE_3]
    return [Row(f"{n} primitives", f"{base.name}_{n}", (*base.options, key, str(n))) for n in numbers]


def _preset_row(name: str, label: str) -> Row:
    """Row of a preset in ``configs/_base_``, with what it is based on."""
    leaves = flattened(CfgNode.load_yaml_with_base(str(ROWS.parents[2] / "_base_" / f"{name}.yaml")))
    return Row(label, name, tuple(str(word) for pair in leaves for word in pair))


def prepare(cfg: CfgNode, config_file: str) -> None:
    """Make the embedded data and the segmentor that ``cfg`` starts from, where they are missing.

    Raises:
        ConfigError: if weights of a real data set are missing; names the command.
    """
    embedded = all(name.startswith("shapes_") for name in cfg.DATASETS.TRAIN)
    if embedded:
        write_missing_shapes(data_root(), ShapesConfig())
    register_all()
    weights = cfg.MODEL.WEIGHTS
    if not weights or "://" in weights or Path(weights).is_file():
        return
    origin = _config_that_writes(weights, find_config(config_file).parent)
    if origin is None or not embedded:
        command = f"; train it with: python train_net.py --config-file {origin}" if origin else ""
        raise ConfigError(f"MODEL.WEIGHTS {weights} does not exist{command}")
    prepare(load_config(origin), str(origin))
    run_once(str(origin), (), Path(weights).parent)


def _config_that_writes(weights: str, folder: Path) -> Path | None:
    """The configuration beside the given one whose OUTPUT_DIR the weights lie in."""
    for path in sorted(folder.glob("*.yaml")):
        # Only this key: other methods' configurations hold keys that are unknown here.
        written = (yaml.safe_load(path.read_text()) or {}).get("OUTPUT_DIR")
        if written is not None and Path(written) == Path(weights).parent:
            return path
    return None


def dataset_sweep(cfg: CfgNode, model: MaskFormer) -> dict[str, dict[str, Any]]:
    """The sweep of Table 1 in the measure of the data set; see ``seen_bias.sweep_summary``."""
    if MetadataCatalog.get(cfg.DATASETS.TEST[0]).evaluator_type == "coco_instance":
        return sweep_summary(cfg, model, (GAMMAS[0], *TASK_GAMMAS, GAMMAS[-1]))
    return sweep_summary(cfg, model)


def task_results(cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
    """Table 2 for a panoptic model: column -> group -> percent at gamma 0, and sweeps of masks and labels.

    Returns:
        ``gamma 0``: ``{column: {group: percent}}``; ``sweep``: ``{column: summary}``, see ``curve.sweep_results``.
    """
    name = cfg.DATASETS.TEST[0]
    folder = Path(cfg.OUTPUT_DIR) / "inference" / name
    evaluators = DatasetEvaluators([InstanceEvaluator(name, folder), SemSegEvaluator(name, folder)])
    results = inference_on_dataset(model, build_eval_loader(cfg, name), evaluators)
    return {
        "gamma 0": {
            column: {group: float(results[task][metric + suffix]) for group, suffix in GROUPS.items()}
            for column, (task, metric) in TASKS.items()
        },
        "sweep": {
            column: sweep_summary(cfg, model, TASK_GAMMAS, evaluator_type=evaluator_type)[quantity]
            for column, (evaluator_type, quantity) in SWEPT_TASKS.items()
        },
    }


def task_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Table 2 as Markdown: two lines a row, without gamma and with gamma tuned on half A for each column."""
    headers = ["row", "gamma", *(f"{column} {group}" for column in TASKS for group in GROUPS)]
    lines = []
    for label, runs in results.items():
        plain = [[run["gamma 0"][column][group] for run in runs] for column in TASKS for group in GROUPS]
        lines.append([label, "0", *map(spread_text, plain)])
        tuned: list[str] = []
        for column in TASKS:
            if column in runs[0]["sweep"]:
                keys = ("best_hm_seen", "best_hm_unseen", "best_hm")
                tuned += [spread_text([run["sweep"][column][key] for run in runs]) for key in keys]
            else:
                tuned += [""] * len(GROUPS)
        lines.append([label, "tuned on half A", *tuned])
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def cost_table(ablation: AblationRuns, rows: Mapping[str, Row], seeds: Sequence[int]) -> str:
    """CPU time of an iteration as Markdown, start and end of the training included.

    The median over the seeds: the first run from a bank also writes it.
    """
    lines = []
    for label, row in rows.items():
        iterations = ablation.configure(row, 0).SOLVER.MAX_ITER
        spent = [1000 * ablation.cpu_seconds(row, seed) / iterations for seed in seeds]
        lines.append([label, f"{statistics.median(spent):.1f}"])
    return tabulate(lines, headers=["row", "CPU ms an iteration"], tablefmt="github", disable_numparse=True)


def run_table(table: str, ablation: AblationRuns, rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    """Train and measure all rows of a table; write ``table<N>.md`` and ``table<N>.json`` after every row.

    Returns:
        What the JSON holds.
    """
    name, measure, more = ("tasks", task_results, _TASKS_ON) if table == "2" else ("sweep", dataset_sweep, ())
    markdown: Callable[..., str] = task_table if table == "2" else sweep_table
    results: dict[str, list[dict[str, Any]]] = {}
    content: dict[str, Any] = {}
    for row in rows:
        # The segmentor itself has no second stage whose seed could matter.
        results[row.label] = [
            ablation.measure(row, seed, name, measure, *more) for seed in (seeds if row.trained else seeds[:1])
        ]
        done = {row.label: row for row in rows if row.label in results}
        costs = f"\n\n{cost_table(ablation, done, seeds)}" if table == "bank" else ""
        content = {
            "table": table,
            "config_file": ablation.config_file,
            "options": list(ablation.options),
            "seeds": list(seeds),
            "markdown": markdown(results) + costs,
            "summary": {label: _summary(runs) for label, runs in results.items()},
            "rows": results,
        }
        write_text(ablation.output / f"table{table}.md", content["markdown"] + "\n")
        write_json(ablation.output / f"table{table}.json", content)
    return content


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and spread over the seeds of every number of a run; of a curve, its point at gamma 0."""
    columns = [dict(_numbers(run)) for run in runs]
    summary = {}
    for key in columns[0]:
        mean, deviation = mean_and_spread([column[key] for column in columns])
        summary[key] = {"mean": mean, "spread": deviation}
    return summary


def _numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key} ")
        elif key == "curve":
            at_zero = next(point for point in value if point["gamma"] == 0)
            yield from ((f"{prefix}{group} at gamma 0", at_zero[group]) for group in ("seen", "unseen", "hm"))
        else:
            yield prefix + key, value


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns what the JSON holds."""
    parser = study_parser(__doc__, output="output/ablation/<config>")
    parser.add_argument("--table", choices=TABLES, required=True)
    args = parse_study(parser, arguments)
    start_log()
    cfg = open_config(args.config_file, args.opts, architectures=("PADing",))
    rows = choose_rows(rows_of_table(args.table, cfg), args.rows, parser)
    output = args.output or Path("output/ablation") / Path(args.config_file).stem
    prepare(cfg, args.config_file)
    ablation = AblationRuns(args.config_file, tuple(args.opts), output)
    content = run_table(args.table, ablation, rows, range(args.seeds))
    heading = f"Table {args.table}, {args.seeds} seed(s); numbers in {output / f'table{args.table}.json'}"
    print(f"\n{heading}\n\n{content['markdown']}")  # noqa: T201  (the command line's result)
    return content


def study_parser(description: str | None, *, output: str) -> argparse.ArgumentParser:
    """Parser of a command that trains rows of a table; ``output`` says where it writes without ``--output``."""
    parser = command_parser(description)
    add_config_arguments(parser, help_text="second stage, e.g. configs/shapes_zsp.yaml")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of the second stage: 0 to N-1")
    parser.add_argument("--rows", metavar="NAMES", help="some of the rows, by file or label, comma-separated")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default: {output}")
    return parser


def parse_study(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line of ``study_parser``."""
    args = parse(parser, arguments)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least one seed is needed")
    return args


def choose_rows(rows: list[Row], names: str | None, parser: argparse.ArgumentParser) -> list[Row]:
    """Rows named on a command line, by file or label, comma-separated; all without names."""
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",")]
    known = {name for row in rows for name in (row.name, row.label)}
    if unknown := sorted(set(wanted) - known):
        parser.error(f"--rows {', '.join(unknown)}: known are {', '.join(row.name for row in rows)}")
    return [row for row in rows if row.name in wanted or row.label in wanted]
