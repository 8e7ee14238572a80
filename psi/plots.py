# SPDX-License-Identifier: Apache-2.0
"""Look at how labels grow, and at what scribbles are worth.

``python -m psi.plots strip --config-file FILE --weights FILE [--images N | --ids ID ...] --output FILE.png`` draws
training images in rows: scribbles, the labels of each diffusion, prediction, truth, the network's confidence.

``python -m psi.plots budget --results [NAME=]FOLDER ... --output FILE.png`` draws mIoU over the share of labeled
pixels. Every finished training below a folder is a point: its config.yaml names the training set, and the file beside
the set's scribbles, which datasets/prepare_scribbles.py writes, says how many pixels they cover. Seeds are averaged, so
a folder should hold one method; a training on dense labels becomes a horizontal line. The numbers go to FILE.json.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from padding.data.files import write_json
from padding.engine.trained import add_strip_command
from psi.budget import budget_curves, read_runs
from psi.figures import draw_budget, draw_strips
from psi.inspection import Inspection, open_trained

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the picture's path."""
    args = _parse(arguments)
    for name in ("padding", "psi"):
        setup_logger(name=name).setLevel(logging.WARNING)
    return _strip(args) if args.command == "strip" else _budget(args)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    strip = add_strip_command(commands, "how labels grow in some images")
    budget = commands.add_parser("budget", help="mIoU over labeled pixels")
    budget.add_argument("--results", nargs="+", required=True, metavar="[NAME=]FOLDER", help="one curve each")
    budget.add_argument("--metric", default="sem_seg/mIoU", help="as task/metric (default %(default)s)")
    for command in (strip, budget):
        command.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    return parser.parse_args(arguments)


def _strip(args: argparse.Namespace) -> Path:
    cfg, model = open_trained(args.config_file, args.weights, args.opts)
    inspection = Inspection(cfg, model, number=args.images, ids=args.ids)
    images = list(tqdm(inspection, total=len(inspection), desc="labels", unit="image"))
    draw_strips(args.output, images, inspection.class_split, bgr=cfg.INPUT.FORMAT == "BGR")
    return args.output


def _budget(args: argparse.Namespace) -> Path:
    curves = []
    for text in args.results:
        name, _, folder = text.rpartition("=")
        runs = read_runs(Path(folder), metric=args.metric)
        curves.append(budget_curves(name or Path(folder).name, runs))
    draw_budget(args.output, curves, metric=args.metric.split("/")[-1])
    write_json(args.output.with_suffix(".json"), [curve.to_json() for curve in curves])
    return args.output


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
