# SPDX-License-Identifier: Apache-2.0
"""Zero-shot panoptic segmentation on the embedded data: behind `make demo` and `make benchmark-shapes`.

Writes the data, warms up a backbone, pre-trains the segmentor on seen classes, trains the second stage of each row and
seed, sweeps the seen bias gamma and draws the results. Every stage is a call of ``train_net.py`` that is printed as the
command a user would type; a finished stage is not repeated, an interrupted one continues.
"""

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.catalog import register_all
from padding.data.files import write_json, write_text
from padding.data.photographs import read_photograph
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_shown
from padding.data.streams import build_eval_loader
from padding.engine.commands import command_parser, load_config, load_model
from padding.engine.contact_sheet import SheetRow, draw_contact_sheet
from padding.engine.cpu_time import counted_stages, stage
from padding.engine.predictor import display_metadata
from padding.errors import run_command
from padding.evaluation.panoptic import PanopticGroundTruth, panoptic_results
from padding.modeling.maskformer import MaskFormer
from padding.study.ablation import METHODS_OF_TABLE_1, rows_of_table
from padding.study.curve import draw_curve, sweep_results
from padding.study.seen_bias import QUANTITIES, postprocess_with_bias, raw_predictions, sweep_model
from padding.study.table_rows import AblationRuns, run_once, sweep_table

BACKBONE, SEGMENTOR, SECOND_STAGE = (
    f"configs/{name}.yaml" for name in ("shapes_backbone", "shapes_zsp_pretrain", "shapes_zsp")
)
MAIN_ROW = METHODS_OF_TABLE_1["padding"]


@dataclass(frozen=True)
class Preset:
    """Sizes of a run; iterations of 0 keep the config's. Rows are keys of ``METHODS_OF_TABLE_1``."""

    num_train: int
    num_val: int
    backbone_iterations: int
    segmentor_iterations: int
    second_stage_iterations: int
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    least_seen_pq: float
    least_unseen_pq: float
    least_hm: float = 0.0


PRESETS = {
    "demo": Preset(1500, 150, 1500, 1100, 0, ("supervised", "padding"), (0,), 30.0, 10.0),
    "benchmark": Preset(3000, 400, 0, 0, 0, ("supervised", "projection", "padding"), (0, 1, 2), 40.0, 25.0, 32.0),
    # Plumbing only: nothing is learnt in so few iterations.
    "smoke": Preset(24, 12, 2, 4, 3, ("supervised", "projection", "padding"), (0,), 0.0, 0.0),
}


def prepare_data(root: Path, preset: Preset) -> None:
    """Write the embedded data set below ``root`` and register it."""
    write_shown(root, ShapesConfig(num_train=preset.num_train, num_val=preset.num_val))
    os.environ["DETECTRON2_DATASETS"] = str(root)
    register_all(root)


def train_segmentor(output: Path, preset: Preset) -> tuple[str, dict[str, float]]:
    """Warm up the backbone and pre-train the segmentor on images without unseen classes.

    Returns:
        Path of the weights, and the CPU seconds of either training.
    """
    with counted_stages() as of_backbone, stage("setup"):
        backbone = run_once(BACKBONE, _iterations(preset.backbone_iterations), output / "backbone")
    options = ("MODEL.WEIGHTS", backbone, *_iterations(preset.segmentor_iterations))
    with counted_stages() as of_segmentor, stage("setup"):
        weights = run_once(SEGMENTOR, options, output / "segmentor")
    parts = {"backbone": of_backbone, "segmentor": of_segmentor}
    return weights, {name: sum(seconds.so_far().values()) for name, seconds in parts.items()}


def _iterations(number: int) -> tuple[str, ...]:
    return ("SOLVER.MAX_ITER", str(number)) if number else ()


def measure(cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
    """Sweep gamma over one trained row.

    Returns:
        ``panoptic_seg`` (all numbers at gamma 0) and ``sweep`` (area, best harmonic mean, curve).
    """
    sweep, groups = sweep_model(cfg, model)
    unbiased = sweep.gammas.index(0.0)
    quantities = QUANTITIES["coco_panoptic_seg"]
    return {
        "panoptic_seg": panoptic_results(sweep.scores("all")[unbiased], groups),
        "sweep": {name: sweep_results(sweep, groups, attribute) for name, attribute in quantities.items()},
    }


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], style: str = "github") -> str:
    """Rows with and without gamma; see ``table_rows.sweep_table``."""
    return sweep_table({label: [run["sweep"] for run in runs] for label, runs in results.items()}, style)


def draw_sheet(path: Path, cfg: CfgNode, count: int = 8) -> None:
    """Draw the validation images with the most unseen segments, each class set at most twice."""
    dataset = cfg.DATASETS.TEST[0]
    truth = PanopticGroundTruth.of_dataset(dataset)
    entries = {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset)}
    chosen = choose_images(truth, count)
    model = load_model(cfg)
    postprocess = postprocess_with_bias(model, truth.groups.seen_ids, 0.0)
    thing_ids = MetadataCatalog.get(dataset).class_split.thing_ids
    wanted = ([sample] for batch in build_eval_loader(cfg, dataset) for sample in batch if sample["image_id"] in chosen)
    rows = {}
    for raw in raw_predictions(model, wanted):
        gt_map, gt_segments = truth.read(raw["image_id"])
        gt_segments = [{**segment, "isthing": segment["category_id"] in thing_ids} for segment in gt_segments]
        pred_map, pred_segments = postprocess(raw)
        image = read_photograph(entries[raw["image_id"]]["file_name"])
        rows[raw["image_id"]] = SheetRow(image, (gt_map, gt_segments), (np.asarray(pred_map), pred_segments))
    draw_contact_sheet(path, [rows[image_id] for image_id in chosen], display_metadata(dataset), scale=2.5, panels=2)


def choose_images(truth: PanopticGroundTruth, count: int) -> list[Any]:
    """Pick images whose unseen classes differ, so that a small sheet shows all of them."""
    unseen = set(truth.groups.unseen_ids)
    of_image = {i: {s["category_id"] for s in truth.read(i)[1]} & unseen for i in truth.image_ids}
    chosen: list[Any] = []
    shown: set[int] = set()
    while len(chosen) < min(count, len(of_image)):
        best = max((i for i in of_image if i not in chosen), key=lambda i: (len(of_image[i] - shown), len(of_image[i])))
        chosen.append(best)
        shown |= of_image[best]
    return chosen


def run(preset: Preset, output: Path) -> dict[str, Any]:
    """Everything; returns what ``metrics.json`` holds."""
    started = time.perf_counter()
    with counted_stages() as of_data, stage("data"):
        prepare_data(output / "data", preset)
    weights, of_training = train_segmentor(output, preset)
    options = ("MODEL.WEIGHTS", weights, *_iterations(preset.second_stage_iterations))
    ablation = AblationRuns(SECOND_STAGE, options, output)
    every_row = rows_of_table("1", load_config(SECOND_STAGE))
    rows = {row.label: row for row in every_row if row.name in preset.rows}
    with counted_stages() as of_rows, stage("setup"):
        results = {
            label: [
                ablation.measure(row, seed, "panoptic", stage("evaluation")(measure))
                for seed in (preset.seeds if row.trained else preset.seeds[:1])
            ]
            for label, row in rows.items()
        }
    first = results[MAIN_ROW][0]
    # Of this call: what an earlier one has finished costs nothing any more.
    cpu_seconds = {**of_data.so_far(), **of_training, **of_rows.so_far()}
    metrics = {
        "panoptic_seg": {
            **{key: value for key, value in first["panoptic_seg"].items() if value == value},
            "AUSUC": first["sweep"]["PQ"]["AUSUC"],
            **{key: first["sweep"]["PQ"][key] for key in first["sweep"]["PQ"] if key.startswith("best_hm")},
        },
        "rows": results,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "metrics.json", metrics)
    write_text(output / "table.md", table(results) + "\n")
    curves = {
        label: [(point["seen"], point["unseen"]) for point in runs[0]["sweep"]["PQ"]["curve"]]
        for label, runs in results.items()
    }
    draw_curve(output / "seen_unseen_curve.png", curves)
    main, seed = rows[MAIN_ROW], preset.seeds[0]
    draw_sheet(
        output / "contact_sheet.png", ablation.configure(main, seed, "MODEL.WEIGHTS", ablation.train(main, seed))
    )
    cost = f"{metrics['seconds']:.0f} s, {sum(cpu_seconds.values()) / 60:.1f} CPU minutes"
    print(f"\n{table(results, 'simple')}\n\n{cost}; pictures and numbers are in {output}")
    return metrics


def shortfalls(metrics: dict[str, Any], preset: Preset) -> list[str]:
    """Name the floors of the preset that the main row misses."""
    runs = [entry["panoptic_seg"] for entry in metrics["rows"][MAIN_ROW]]
    floors = {"PQ_seen": preset.least_seen_pq, "PQ_unseen": preset.least_unseen_pq, "PQ_hm": preset.least_hm}
    means = {key: statistics.mean(entry[key] for entry in runs) for key in floors}
    return [
        f"{key} is {means[key]:.1f}, expected at least {floor:g}"
        for key, floor in floors.items()
        if not means[key] >= floor  # a NaN misses it too
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 when a floor is missed."""
    parser = command_parser(__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    args = parser.parse_args(arguments)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    preset = PRESETS[args.preset]
    metrics = run(preset, args.output)
    missed = shortfalls(metrics, preset)
    for line in missed:
        print(f"floor missed: {line}", file=sys.stderr)
    print(json.dumps({**metrics["panoptic_seg"], "seconds": metrics["seconds"]}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
