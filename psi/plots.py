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
import sys
from collections.abc import Sequence
from pathlib import Path

from padding.engine.inspection import Curves, Strip, draw_plots
from padding.errors import run_command
from psi.budget import BudgetCurve, budget_curves, read_runs
from psi.figures import draw_budget, draw_strips
from psi.inspection import LabelInspection


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the picture's path."""
    strip = Strip(
        "how labels grow in some images",
        LabelInspection,
        lambda path, images, inspection: draw_strips(
            path, images, inspection.class_split, bgr=inspection.cfg.INPUT.FORMAT == "BGR"
        ),
    )
    curves = Curves(
        "budget",
        "mIoU over labeled pixels",
        _budget,
        lambda path, found, args: draw_budget(path, found, metric=args.metric.split("/")[-1]),
        {"--metric": {"default": "sem_seg/mIoU", "help": "as task/metric (default %(default)s)"}},
    )
    return draw_plots(arguments, __doc__, strip, curves)


def _budget(folder: Path, name: str, args: argparse.Namespace) -> list[BudgetCurve]:
    return [budget_curves(name or folder.name, read_runs(folder, metric=args.metric))]


if __name__ == "__main__":
    sys.exit(run_command(main))
