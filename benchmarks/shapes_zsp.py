# SPDX-License-Identifier: Apache-2.0
"""Zero-shot panoptic segmentation on the embedded data: behind `make demo` and `make benchmark-shapes`.

Writes the data, warms up a backbone, pre-trains the segmentor on seen classes, trains the second stage of each row and
seed, sweeps the seen bias gamma and draws the results. Every stage is a call of ``train_net.py`` that is printed as the
command a user would type; a finished stage is not repeated, an interrupted one continues.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import train_net  # before anything of detectron2: it applies the fixes

# isort: split
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import default_argument_parser
from tabulate import tabulate
from tqdm import tqdm

from padding.data.catalog import register_all
from padding.data.shapes import ShapesConfig, write_shapes
from padding.data.streams import build_eval_loader
from padding.engine.contact_sheet import SheetRow, draw_contact_sheet
from padding.engine.predictor import display_metadata
from padding.engine.setup import load_cfg
from padding.evaluation.panoptic import PanopticGroundTruth, panoptic_results
from padding.evaluation.report import write_text_atomically
from padding.evaluation.sweep import draw_curve, sweep_results
from padding.rows import spread_text
from padding.seen_bias import load_model, postprocess_with_bias, raw_predictions, sweep_model

QUANTITIES = ("PQ", "SQ", "RQ")
BACKBONE, SEGMENTOR, SECOND_STAGE = (
    f"configs/{name}.yaml" for name in ("shapes_backbone", "shapes_zsp_pretrain", "shapes_zsp")
)


class Row(NamedTuple):
    """A row of the table."""

    label: str
    options: tuple[str, ...]
    trained: bool = True


SUPERVISED = Row("supervised", ("MODEL.PADING.METHOD", "supervised"), trained=False)
PROJECTION = Row("projection", ("MODEL.PADING.METHOD", "projection"))
PADING = Row("PADing", ())


@dataclass(frozen=True)
class Preset:
    """Sizes of a run; iterations of 0 keep the config's."""

    num_train: int
    num_val: int
    backbone_iterations: int
    segmentor_iterations: int
    second_stage_iterations: int
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    least_seen_pq: float
    least_unseen_pq: float
    least_hm: float = 0.0


PRESETS = {
    "demo": Preset(1500, 150, 1500, 1100, 0, (SUPERVISED, PADING), (0,), 30.0, 10.0),
    "benchmark": Preset(3000, 400, 0, 0, 0, (SUPERVISED, PROJECTION, PADING), (0, 1, 2), 40.0, 25.0, 32.0),
    # Plumbing only: nothing is learnt in so few iterations.
    "smoke": Preset(24, 12, 2, 4, 3, (SUPERVISED, PROJECTION, PADING), (0,), 0.0, 0.0),
}


def prepare_data(root: Path, preset: Preset) -> None:
    """Write the embedded data set below ``root`` and register it."""
    config = ShapesConfig(num_train=preset.num_train, num_val=preset.num_val)
    total = preset.num_train + preset.num_val
    with tqdm(total=total, desc="embedded data", unit="image", mininterval=2.0) as bar:
        write_shapes(root, config, on_progress=bar.update)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    register_all(root)


def train(config_file: str, output: Path, options: Sequence[str], iterations: int = 0) -> str:
    """Train one stage unless it is finished; continue it if it was interrupted.

    Returns:
        Path of the final weights.
    """
    final, stamp = output / "model_final.pth", output / "finished.json"
    if iterations:
        options = [*options, "SOLVER.MAX_ITER", str(iterations)]
    arguments = ["--config-file", config_file, "--resume", *options, "OUTPUT_DIR", str(output)]
    if final.exists() and stamp.exists() and json.loads(stamp.read_text()) == arguments:
        return str(final)
    print(f"\n$ python train_net.py {' '.join(arguments)}", flush=True)
    train_net.main(default_argument_parser().parse_args(arguments))
    write_text_atomically(stamp, json.dumps(arguments))
    return str(final)


def train_segmentor(output: Path, preset: Preset) -> str:
    """Warm up the backbone and pre-train the segmentor on images without unseen classes."""
    backbone = train(BACKBONE, output / "backbone", (), preset.backbone_iterations)
    return train(SEGMENTOR, output / "segmentor", ("MODEL.WEIGHTS", backbone), preset.segmentor_iterations)


def second_stage(output: Path, row: Row, seed: int, segmentor: str, preset: Preset) -> tuple[str, tuple[str, ...]]:
    """Train generator and classifier of one row.

    Returns:
        Path of the weights to evaluate and the options to evaluate them with.
    """
    if not row.trained:
        return segmentor, row.options
    bank = ("MODEL.PADING.FEATURE_BANK.PATH", str(output / "feature_bank"))
    options = ("MODEL.WEIGHTS", segmentor, "SEED", str(seed), *bank, *row.options)
    folder = output / f"{row.label.lower()}_seed{seed}"
    return train(SECOND_STAGE, folder, options, preset.second_stage_iterations), row.options


def evaluate(weights: str, options: Sequence[str]) -> dict[str, Any]:
    """Sweep gamma over one trained row.

    Returns:
        ``panoptic_seg`` (all numbers at gamma 0) and ``sweep`` (area, best harmonic mean, curve).
    """
    cfg = load_cfg(SECOND_STAGE, [*options, "MODEL.WEIGHTS", weights], train_net.METHODS)
    sweep, groups = sweep_model(cfg, load_model(cfg))
    unbiased = sweep.gammas.index(0.0)
    return {
        "panoptic_seg": panoptic_results(sweep.scores("all")[unbiased], groups),
        "sweep": {name: sweep_results(sweep, groups, name.lower()) for name in QUANTITIES},
    }


def table(results: dict[str, list[dict[str, Any]]], style: str = "github") -> str:
    """Rows with and without gamma: all of PQ, SQ and RQ without, PQ with, and the area under the curve."""
    headers = [
        "row",
        "gamma",
        *(f"{name} {group}" for name in QUANTITIES for group in ("seen", "unseen", "HM")),
        "AUSUC x 100",
    ]
    lines = []
    for label, runs in results.items():
        plain = [
            spread_text([run["panoptic_seg"][f"{name}_{group}"] for run in runs])
            for name in QUANTITIES
            for group in ("seen", "unseen", "hm")
        ]
        area = spread_text([100 * run["sweep"]["PQ"]["AUSUC"] for run in runs])
        lines.append([label, "0", *plain, area])
        tuned = [spread_text([run["sweep"]["PQ"][f"best_hm{key}"] for run in runs]) for key in ("_seen", "_unseen", "")]
        gamma = spread_text([run["sweep"]["PQ"]["best_hm_gamma"] for run in runs])
        lines.append([label, f"tuned on half A: {gamma}", *tuned, *[""] * 6, ""])
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True)


def draw_sheet(path: Path, weights: str, options: Sequence[str], count: int = 8) -> None:
    """Draw the validation images with the most unseen segments, each class set at most twice."""
    cfg = load_cfg(SECOND_STAGE, [*options, "MODEL.WEIGHTS", weights], train_net.METHODS)
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
        image = read_image(entries[raw["image_id"]]["file_name"], format="RGB")
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
    prepare_data(output / "data", preset)
    segmentor = train_segmentor(output, preset)
    results: dict[str, list[dict[str, Any]]] = {}
    trained: dict[str, tuple[str, tuple[str, ...]]] = {}
    for row in preset.rows:
        for seed in preset.seeds if row.trained else preset.seeds[:1]:
            weights, options = second_stage(output, row, seed, segmentor, preset)
            trained.setdefault(row.label, (weights, options))
            results.setdefault(row.label, []).append(evaluate(weights, options))
    main_row = PADING.label
    first = results[main_row][0]
    metrics = {
        "panoptic_seg": {
            **{key: value for key, value in first["panoptic_seg"].items() if value == value},
            "AUSUC": first["sweep"]["PQ"]["AUSUC"],
            **{key: first["sweep"]["PQ"][key] for key in first["sweep"]["PQ"] if key.startswith("best_hm")},
        },
        "rows": results,
        "seconds": time.perf_counter() - started,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_text_atomically(output / "table.md", table(results) + "\n")
    curves = {
        label: [(point["seen"], point["unseen"]) for point in runs[0]["sweep"]["PQ"]["curve"]]
        for label, runs in results.items()
    }
    draw_curve(output / "seen_unseen_curve.png", curves)
    draw_sheet(output / "contact_sheet.png", *trained[main_row])
    print(f"\n{table(results, 'simple')}\n\n{metrics['seconds']:.0f} s; pictures and numbers are in {output}")
    return metrics


def shortfalls(metrics: dict[str, Any], preset: Preset) -> list[str]:
    """Name the floors of the preset that the main row misses."""
    runs = [entry["panoptic_seg"] for entry in metrics["rows"][PADING.label]]
    floors = {"PQ_seen": preset.least_seen_pq, "PQ_unseen": preset.least_unseen_pq, "PQ_hm": preset.least_hm}
    means = {key: statistics.mean(entry[key] for entry in runs) for key in floors}
    return [
        f"{key} is {means[key]:.1f}, expected at least {floor:g}"
        for key, floor in floors.items()
        if not means[key] >= floor  # a NaN misses it too
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 when a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    sys.exit(main())
