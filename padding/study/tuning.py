# SPDX-License-Identifier: Apache-2.0
"""Every row of Table 1 tuned equally on one half of the validation images and reported on the other.

``python -m padding.tuning --config-file configs/shapes_zsp.yaml --segmentors A.pth B.pth --seeds 3 [KEY VALUE ...]``

A zero-shot method is one point of a trade-off between seen and unseen classes, so that a row with one more tuned number
beats a row without. Here each row gets six settings of its training (unseen class weight and number of synthetic
features; for the projection, which has neither, the temperature of its cosines), every gamma and, for PQ, five
object-mask thresholds. They are chosen by the best harmonic mean (of PQ, or of mean IoU on semantic data) on half A,
with one seed and the first segmentor. The report is half B's: area under the seen-unseen curve, and the harmonic mean
at the gamma chosen on half A, for every segmentor and seed. The supervised row has nothing to tune; the control, whose
random vectors differ from seed to seed, is tuned like the others. ``--gamma-only`` trains every row as it is configured
and tunes nothing else. The frozen segmentor sees the images once; finished runs and measurements are not repeated.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from padding.data.files import write_json, write_text
from padding.engine.commands import load_config, open_config, start_log
from padding.study.ablation import choose_rows, parse_study, prepare, rows_of_table, study_parser
from padding.study.half_measures import (
    GRID,
    SEMANTIC_GAMMAS,
    THRESHOLDS,
    TUNING_GAMMAS,
    HalfMeasures,
    half_measures_of,
)
from padding.study.table_rows import AblationRuns, Row, spread_text

_WEIGHT, _NUMBER = "MODEL.PADING.CLASSIFIER.UNSEEN_WEIGHT", "MODEL.PADING.CLASSIFIER.NUM_PER_CLASS"
_GENERATIVE = tuple((_WEIGHT, weight, _NUMBER, number) for weight in ("1.0", "5.0", "20.0") for number in ("4", "16"))
_TEMPERATURES = ("0.01", "0.02", "0.05", "0.1", "0.2", "0.5")
_PROJECTION = tuple(("MODEL.PADING.PROJECTION.TEMPERATURE", temperature) for temperature in _TEMPERATURES)
_THRESHOLD = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"


@dataclass(frozen=True)
class Choice:
    """What was chosen for a row on half A."""

    options: tuple[str, ...]  # KEY, VALUE, ... of its training
    threshold: float | None  # probability from which a query is a segment; None for labels, or where nothing is tuned
    gamma: float  # the best one of ``TUNING_GAMMAS``; the report chooses its own for each run
    hm: float  # harmonic mean of PQ on half A, percent


def settings_of(row: Row) -> tuple[tuple[str, ...], ...]:
    """Settings of the training that are tried for a row: as many for each, so that no row is tuned more than another.

    Raises:
        ValueError: for a row without a training.
    """
    if not row.trained:
        raise ValueError(f"row '{row.label}' is not trained: there is nothing to tune")
    return _PROJECTION if row.name == "projection" else _GENERATIVE


def choose(results: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Choice:
    """Setting, threshold and gamma of the best harmonic mean in results of ``on_half_a``; of equal ones the first."""
    known = [(options, point) for options, result in results.items() for point in result["points"]]
    options, best = max(known, key=lambda entry: entry[1]["hm"] if entry[1]["hm"] == entry[1]["hm"] else -1.0)
    return Choice(options, best.get("threshold"), best["gamma"], best["hm"])


def tune_and_report(
    rows: Sequence[Row],
    segmentors: Sequence[AblationRuns],
    seeds: Sequence[int],
    output: Path,
    *,
    gamma_only: bool = False,
) -> dict[str, Any]:
    """Tune every row with the first segmentor and seed 0, then measure it with all segmentors and seeds.

    ``tuning.json`` and ``tuning.md`` are written after every row.

    Args:
        rows: of Table 1.
        segmentors: the trainings and measurements on each.
        seeds: of the second stage.
        output: folder.
        gamma_only: train as configured; gamma alone is chosen on half A.

    Returns:
        What the JSON holds.
    """
    cfg = segmentors[0].configure(rows[0], 0)
    measures = half_measures_of(cfg.DATASETS.TEST[0])
    chosen: dict[str, Choice] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    content: dict[str, Any] = {}
    for row in rows:
        tunable = row.trained and not gamma_only
        chosen[row.label] = choice = _tune(row, segmentors[0], measures) if tunable else Choice((), None, 0.0, 0.0)
        final = _with(row, choice.options)
        threshold = () if choice.threshold is None else (_THRESHOLD, str(choice.threshold))
        runs[row.label] = [
            {
                "segmentor": index,
                "seed": seed,
                **segmentor.measure(final, seed, f"half_b_{_grid_digest()}", measures.on_half_b, *threshold),
            }
            for index, segmentor in enumerate(segmentors)
            # The segmentor itself has no second stage whose seed could matter.
            for seed in (seeds if row.trained else seeds[:1])
        ]
        content = {
            "markdown": to_markdown(runs, chosen),
            "chosen": {label: vars(entry) for label, entry in chosen.items()},
            "runs": runs,
        }
        write_text(output / "tuning.md", content["markdown"] + "\n")
        write_json(output / "tuning.json", content)
    return content


def _tune(row: Row, segmentor: AblationRuns, measures: HalfMeasures[Any]) -> Choice:
    return choose(
        {
            options: segmentor.measure(_with(row, options), 0, f"half_a_{_grid_digest()}", measures.on_half_a)
            for options in settings_of(row)
        }
    )


def _with(row: Row, options: tuple[str, ...]) -> Row:
    return row._replace(options=(*row.options, *options))


def _grid_digest() -> str:
    """Measurements of another grid are not taken for those of this one."""
    return hashlib.sha256(repr((THRESHOLDS, TUNING_GAMMAS, SEMANTIC_GAMMAS, GRID)).encode()).hexdigest()[:6]


def to_markdown(runs: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Mapping[str, Choice]) -> str:
    """One line a row: mean and spread over segmentors and seeds, then the means of each segmentor, then the choice."""
    headers = ["row", "AUSUC x 100", "HM", "seen", "unseen", "HM at gamma 0"]
    segmentors = sorted({run["segmentor"] for entries in runs.values() for run in entries})
    headers += [f"AUSUC x 100, HM (segmentor {index})" for index in segmentors] + ["chosen on half A"]
    lines = []
    for label, entries in runs.items():
        scaled = [{**run, "AUSUC": 100 * run["AUSUC"]} for run in entries]
        cells = [
            spread_text([run[key] for run in scaled]) for key in ("AUSUC", "hm", "seen", "unseen", "hm_at_gamma_0")
        ]
        for index in segmentors:
            of_segmentor = [run for run in scaled if run["segmentor"] == index]
            cells.append("; ".join(spread_text([run[key] for run in of_segmentor]) for key in ("AUSUC", "hm")))
        choice = chosen[label]
        values = ", ".join(choice.options[1::2]) or "-"
        threshold = "" if choice.threshold is None else f"; threshold {choice.threshold}"
        lines.append([label, *cells, values + threshold])
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns what the JSON holds."""
    parser = study_parser(__doc__, output="output/tuning/<config>")
    parser.add_argument("--segmentors", nargs="+", metavar="PTH", help="pre-trained weights; default: the config's own")
    parser.add_argument("--gamma-only", action="store_true", help="train every row as configured, tune gamma alone")
    args = parse_study(parser, arguments)
    start_log()
    cfg = open_config(args.config_file, args.opts, architectures=("PADing",))
    segmentors = args.segmentors or [cfg.MODEL.WEIGHTS]
    for weights in segmentors:
        prepare(load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", weights]), args.config_file)
    output = args.output or Path("output/tuning") / Path(args.config_file).stem
    segmentors = [
        AblationRuns(args.config_file, ("MODEL.WEIGHTS", weights, *args.opts), output / f"segmentor_{index}")
        for index, weights in enumerate(segmentors)
    ]
    rows = choose_rows(rows_of_table("1", cfg), args.rows, parser)
    content = tune_and_report(rows, segmentors, range(args.seeds), output, gamma_only=args.gamma_only)
    print(f"\n{content['markdown']}\n\nnumbers in {output / 'tuning.json'}")  # noqa: T201  (the command line's result)
    return content
