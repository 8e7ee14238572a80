# SPDX-License-Identifier: Apache-2.0
"""A quarter of some photographs labeled, behind `make few-labels`: train on the labels, then on all, predict, draw.

The photographs at hand (those of `make photos`) and twelve groups of COCO's categories become a folder of one's own, as
``configs/own_tcc.yaml`` takes one. Trained are a network that learns from the labeled quarter alone, and one that
also learns the other photographs from its own average; both have EfficientNet-Lite0, as many steps and labeled crops.
Scored is the validation half, drawn those of its photographs that ship with the project. Finished trainings are not
repeated.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog

from benchmarks.photographs import find_photographs
from benchmarks.pictures import draw_once, score_and_draw
from padding.data.files import save_png, write_text
from padding.data.registration import register_panoptic
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.coco import coco_zsp_split
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from padding.engine.commands import load_config, register_data
from padding.errors import run_command
from padding.evaluation.semantic import SemanticGroundTruth
from padding.study.table_rows import run_once

ALONE, WITH_UNLABELED = (f"configs/ablations/tcc/own_{row}.yaml" for row in ("supervised", "average"))
ITERATIONS = {"full": 1200, "smoke": 2}
# Group -> supercategories of COCO's panoptic categories; each has 2 % of the pixels of coco128 or more, what is in
# none is void.
GROUPS = {
    "person": ("person",),
    "animal": ("animal",),
    "vehicle": ("vehicle",),
    "furniture": ("furniture", "furniture-stuff"),
    "kitchenware": ("kitchen",),
    "food": ("food", "food-stuff"),
    "plant": ("plant",),
    "ground": ("ground", "floor"),
    "water": ("water",),
    "building": ("building",),
    "wall": ("wall",),
    "sky": ("sky",),
}
_LABELED_SHARE = 0.25
_WHOLE = "few_labels_photographs"


def write_folder(folder: Path, photographs: Path) -> None:
    """Fill a folder with images and label maps of both halves, names of the groups, and the lists of ids.

    Args:
        folder: to be filled.
        photographs: with the layout of coco128_panoptic.
    """
    ids: dict[str, list[str]] = {}
    for part in ("train", "val"):
        files = photograph_files(photographs, part)
        register_panoptic(_WHOLE, class_split=coco_zsp_split(), evaluator_type="sem_seg", **files)
        truth, number = SemanticGroundTruth.of_dataset(_WHOLE), group_numbers(files["panoptic_json"])
        images, labels = folder / f"{part}_images", folder / f"{part}_labels"
        for path in (images, labels):
            path.mkdir(parents=True, exist_ok=True)
        ids[part] = []
        for entry in sorted(DatasetCatalog.get(_WHOLE), key=lambda entry: entry["file_name"]):
            source = Path(entry["file_name"])
            link = images / source.name
            if not link.is_symlink():
                link.symlink_to(source.resolve())
            save_png(number[truth.read(entry["image_id"])], labels / f"{source.stem}.png")
            ids[part].append(source.stem)
    labeled = ids["train"][:: round(1 / _LABELED_SHARE)]
    write_text(folder / "classes.txt", "\n".join(GROUPS) + "\n")
    write_text(folder / "lists" / "labeled.txt", "\n".join(labeled) + "\n")
    write_text(folder / "lists" / "unlabeled.txt", "\n".join(sorted(set(ids["train"]) - set(labeled))) + "\n")


def group_numbers(panoptic_json: Path) -> npt.NDArray[np.uint8]:
    """(256,) uint8: id of COCO's 133 classes, or 255 -> number of its group, 255 for none."""
    above = {c["name"]: c["supercategory"] for c in json.loads(panoptic_json.read_text())["categories"]}
    group = {name: i for i, names in enumerate(GROUPS.values()) for name in names}
    number = np.full(256, IGNORE_LABEL, np.uint8)
    for i, name in enumerate(coco_zsp_split().names):
        number[i] = group.get(above.get(name, ""), IGNORE_LABEL)
    return number


def options(folder: Path, iterations: int) -> tuple[str, ...]:
    """KEY, VALUE, ... that put the folder into the place of one's own."""
    paths = {
        "IMAGES": "train_images",
        "LABELS": "train_labels",
        "VAL_IMAGES": "val_images",
        "VAL_LABELS": "val_labels",
        "CLASSES": "classes.txt",
    }
    words = [word for key, name in paths.items() for word in (f"DATASETS.FOLDERS.{key}", str(folder / name))]
    return (
        *words,
        "DATASETS.FOLDERS.VAL_LIST",
        "",
        "DATASETS.SPLIT",
        str(folder / "lists"),
        "SOLVER.MAX_ITER",
        str(iterations),
    )


def score(config: str, weights: str, words: Sequence[str], picture: Path | None = None) -> dict[str, float]:
    """Percent on the validation half; with ``picture`` its photographs that ship are drawn."""
    cfg = load_config(config, [*words, "MODEL.WEIGHTS", weights])
    shipped = {path.name for path in (samples_dir() / "images").rglob("*.jpg")}
    scores = score_and_draw(cfg, picture, only=shipped)
    return {key: scores[key] for key in ("mIoU", "pACC")}


def train_and_draw(preset: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The whole run; path of the picture, and the scores of both networks."""
    prefix, root = find_photographs()
    photographs = root / "coco128_panoptic" if prefix == "coco128" else samples_dir()
    write_folder(folder / "data", photographs)
    words, picture = options(folder / "data", ITERATIONS[preset]), folder / "few_labels.png"
    register_data(load_config(ALONE, words))
    scores: dict[str, Any] = {"trained_on": prefix}
    for config, name, drawn in ((ALONE, "labels_alone", None), (WITH_UNLABELED, "with_unlabeled", picture)):
        scores[name] = score(config, run_once(config, words, folder / name), words, drawn)
    return picture, scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    return draw_once(
        __doc__,
        arguments,
        output="output/few_labels",
        presets=ITERATIONS,
        preset="full",
        work=train_and_draw,
        caption="photographs to look at, not to quote",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
