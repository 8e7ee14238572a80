# SPDX-License-Identifier: Apache-2.0
"""Masks from a few strokes on photographs, behind `make scribbles`: simulate strokes, train PSI on them, draw labels.

The fourteen photographs of ``datasets/samples`` get simulated strokes and become a folder of one's own, as
``configs/own_psi.yaml`` takes one; PSI with EfficientNet-Lite0 learns from the strokes alone. Drawn and scored are the
same photographs against their dense labels, which training never reads: what a person who scribbles gets back.
A finished training is not repeated.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog

from benchmarks.pictures import draw_once
from padding.data.class_split import ClassSplit
from padding.data.files import save_png, write_text
from padding.data.prepare.scribbles import simulate_files, tasks_of_dataset
from padding.data.registration import register_listed_images, register_panoptic
from padding.data.sample import IGNORE_LABEL
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.simulator import SimulatorConfig
from padding.data.scribbles.tags import ScribbleTags
from padding.data.sets.coco import coco_zsp_split
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from padding.data.sets.voc import voc_palette
from padding.engine.commands import load_config, register_data
from padding.errors import run_command
from padding.evaluation.semantic import SemanticGroundTruth
from padding.study.table_rows import run_once
from psi.figures import draw_strips
from psi.inspection import LabelInspection
from psi.label_report import LabelReport

CONFIG = "configs/own_psi.yaml"
ITERATIONS = {"full": 600, "smoke": 2}
SHOWN = ("000000000072", "000000000471", "000000007281", "000000001268")
"""Photographs of the picture."""
# Strokes of five pixels on photographs of 640 x 480, over every part of at least 600 pixels.
_STROKES = SimulatorConfig(width=5, min_area=600, erosion=(3.0, 20.0))
_SMALLEST_CLASS = 0.01  # share of a photograph below which a class is void: no stroke fits into it
_DENSE = "scribbled_photographs"
Labels = npt.NDArray[np.int64]


def read_samples() -> dict[Path, Labels]:
    """Photograph -> (h, w) int64 ids of COCO's 133 panoptic classes, void and small classes 255."""
    found = {}
    for part in ("train", "val"):
        files = photograph_files(samples_dir(), part)
        register_panoptic(_DENSE, class_split=coco_zsp_split(), evaluator_type="sem_seg", **files)
        truth = SemanticGroundTruth.of_dataset(_DENSE)
        for entry in DatasetCatalog.get(_DENSE):
            labels = truth.read(entry["image_id"]).astype(np.int64)
            values, counts = np.unique(labels, return_counts=True)
            labels[np.isin(labels, values[counts < _SMALLEST_CLASS * labels.size])] = IGNORE_LABEL
            found[Path(entry["file_name"])] = labels
    return found


def write_folder(folder: Path) -> None:
    """Fill a folder with images, dense labels, names of the classes, and strokes."""
    samples, split = read_samples(), coco_zsp_split()
    present = sorted({int(v) for labels in samples.values() for v in np.unique(labels)} - {IGNORE_LABEL})
    number = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.uint8)
    number[present] = np.arange(len(present))
    names = [split.names[i] for i in present]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path, labels in samples.items():
        shutil.copyfile(path, folder / "images" / path.name)
        save_png(number[labels], folder / "labels" / f"{path.stem}.png")
    write_text(folder / "classes.txt", "\n".join(names) + "\n")
    colors = voc_palette(len(names))
    classes = [{"id": i, "name": name, "isthing": False, "color": colors[i]} for i, name in enumerate(names)]
    register_listed_images(
        _DENSE,
        class_split=ClassSplit.from_categories(classes),
        image_root=folder / "images",
        label_root=folder / "labels",
    )
    tasks, space = tasks_of_dataset(_DENSE, ScribbleTags.of(ClassSplit.from_categories(classes), {}))
    simulate_files(tasks, space, _STROKES, ScribbleFolder(folder / "scribbles"))


def options(folder: Path, iterations: int) -> tuple[str, ...]:
    """KEY, VALUE, ... that put the folder into the place of one's own."""
    paths = {
        "IMAGES": "images",
        "SCRIBBLES": "scribbles",
        "LABELS": "labels",
        "CLASSES": "classes.txt",
        "VAL_IMAGES": "images",
        "VAL_LABELS": "labels",
    }
    words = [word for key, name in paths.items() for word in (f"DATASETS.FOLDERS.{key}", str(folder / name))]
    size = ("INPUT.SCALE_FACTORS", "(0.3, 0.6)", "INPUT.MIN_SIZE_TEST", "240", "INPUT.MAX_SIZE_TEST", "320")
    return (*words, "DATASETS.FOLDERS.VAL_LIST", "", *size, "SOLVER.MAX_ITER", str(iterations))


def draw_and_score(weights: str, words: Sequence[str], path: Path) -> dict[str, float]:
    """Grow the labels of all photographs, draw some; returns percent."""
    inspection = LabelInspection.open(CONFIG, weights, words)
    report, shown = LabelReport(inspection.class_split.names), []
    for image in inspection:
        report.add(image)
        if image.key in SHOWN:
            shown.append(image)
    draw_strips(path, shown, inspection.class_split)
    first, last = report.step_rows()[0], report.step_rows()[-1]
    return {
        "drawn": first["coverage"],
        "labeled": last["coverage"],
        "right_of_labeled": last["accuracy"],
        "network_right": 100 * report.network_accuracy,
    }


def train_and_draw(preset: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """The whole run; path of the picture and its numbers in percent."""
    write_folder(folder / "data")
    words = options(folder / "data", ITERATIONS[preset])
    register_data(load_config(CONFIG, words))
    picture = folder / "scribbles.png"
    return picture, draw_and_score(run_once(CONFIG, words, folder / "psi"), words, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    return draw_once(
        __doc__,
        arguments,
        output="output/scribbles",
        presets=ITERATIONS,
        preset="full",
        work=train_and_draw,
        caption="strokes and what grows from them",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
