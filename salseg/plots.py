# SPDX-License-Identifier: Apache-2.0
"""Look at both tasks, and at how they are weighted.

``python -m salseg.plots strip --config-file FILE --weights FILE [--images N | --ids ID ...] --output FILE.png`` draws
test images in rows: image, segmentation, true classes, saliency, true saliency. The sets of DATASETS.TEST say what is
true; without saliency sets, or in a model without the branch, their columns are left out.

``python -m salseg.plots weights --results [NAME=]FOLDER ... --output FILE.png`` draws the weight of each task and its
loss over the iterations, from the metrics.json of every training below a folder; seeds are averaged. With learned
weights (Eq. 8) a loss L that stays the same ends with weight 1 / (2 L). The numbers go to FILE.json.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from padding.engine.inspection import Curves, Strip, draw_plots
from padding.errors import run_command
from salseg.figures import draw_courses, draw_strips
from salseg.inspection import PredictionInspection
from salseg.training_log import read_courses


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the picture's path."""
    strip = Strip(
        "both tasks beside some images",
        PredictionInspection,
        lambda path, images, inspection: draw_strips(path, images, inspection.class_split),
    )
    curves = Curves(
        "weights",
        "weights and losses of the tasks over the training",
        lambda folder, name, _: read_courses(folder, name),
        lambda path, trainings, _: draw_courses(path, trainings),
        {},
    )
    return draw_plots(arguments, __doc__, strip, curves)


if __name__ == "__main__":
    sys.exit(run_command(main))
