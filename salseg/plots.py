# SPDX-License-Identifier: Apache-2.0
"""Look at both tasks, and at how they are weighted.

``python -m salseg.plots strip --config-file FILE --weights FILE [--images N | --ids ID ...] --output FILE.png`` draws
test images in rows: image, segmentation, true classes, saliency, true saliency. The sets of DATASETS.TEST say what is
true; without saliency sets, or in a model without the branch, their columns are left out.

``python -m salseg.plots weights --results [NAME=]FOLDER ... --output FILE.png`` draws the weight of each task and its
loss over the iterations, from the metrics.json of every training below a folder; seeds are averaged. With learned
weights (Eq. 8) a loss L that stays the same ends with weight 1 / (2 L). The numbers go to FILE.json.
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
from salseg.figures import draw_courses, draw_strips
from salseg.inspection import Inspection, open_trained
from salseg.training_log import read_courses

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the picture's path."""
    args = _parse(arguments)
    for name in ("padding", "salseg"):
        setup_logger(name=name).setLevel(logging.WARNING)
    return _strip(args) if args.command == "strip" else _weights(args)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    strip = add_strip_command(commands, "both tasks beside some images")
    weights = commands.add_parser("weights", help="weights and losses of the tasks over the training")
    weights.add_argument("--results", nargs="+", required=True, metavar="[NAME=]FOLDER", help="one color each")
    for command in (strip, weights):
        command.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    return parser.parse_args(arguments)


def _strip(args: argparse.Namespace) -> Path:
    cfg, predictor = open_trained(args.config_file, args.weights, args.opts)
    inspection = Inspection(cfg, predictor, number=args.images, ids=args.ids)
    images = list(tqdm(inspection, total=len(inspection), desc="images", unit="image"))
    draw_strips(args.output, images, inspection.class_split)
    return args.output


def _weights(args: argparse.Namespace) -> Path:
    trainings = []
    for text in args.results:
        name, _, folder = text.rpartition("=")
        trainings += read_courses(Path(folder), name)
    draw_courses(args.output, trainings)
    write_json(args.output.with_suffix(".json"), [training.to_json() for training in trainings])
    return args.output


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
