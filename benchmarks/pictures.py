# SPDX-License-Identifier: Apache-2.0
"""What commands that train on photographs and draw the result share: options, last lines, pictures."""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from padding.data.files import write_json
from padding.data.photographs import read_photograph
from padding.data.sample import IGNORE_LABEL
from padding.engine.commands import command_parser
from padding.engine.contact_sheet import SheetRow, draw_contact_sheet
from padding.engine.predictor import Predictor, display_metadata
from padding.evaluation.semantic import SemanticGroundTruth, SemSegEvaluator

SHEET_SIZE = (480, 640)  # height and width of a picture of the sheet; others are reduced and padded
_SMALLEST_SEGMENT = 0.005  # share of the image below which a segment is not drawn
Segments = tuple[npt.NDArray[np.int64], list[dict[str, Any]]]


def draw_once(
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    output: str,
    presets: Iterable[str],
    preset: str,
    work: Callable[[str, Path], tuple[Path, dict[str, Any]]],
    caption: str,
) -> int:
    """Run such a command: the picture, and its numbers in ``metrics.json`` and as the last line.

    Args:
        description: of the command.
        arguments: of the command line, None for those of the process.
        output: default folder.
        presets: names to choose from.
        preset: the default one.
        work: preset and folder -> path of the picture, numbers beside it.
        caption: what the picture shows.
    """
    parser = command_parser(description)
    parser.add_argument("--output", type=Path, default=Path(output), metavar="DIR")
    parser.add_argument("--preset", choices=sorted(presets), default=preset)
    args = parser.parse_args(arguments)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    started, folder = time.perf_counter(), args.output / args.preset
    picture, scores = work(args.preset, folder)
    metrics = {**scores, "seconds": time.perf_counter() - started}
    write_json(folder / "metrics.json", metrics)
    print(f"\n{caption}: {picture}")
    print(json.dumps(metrics))
    return 0


def score_and_draw(
    cfg: CfgNode,
    picture: Path | None = None,
    *,
    only: Collection[str] | None = None,
    titles: Sequence[str] = ("image", "truth", "prediction"),
) -> dict[str, float]:
    """Semantic scores of the test set of a configuration, in percent; its images are drawn into one picture.

    Args:
        cfg: with MODEL.WEIGHTS and one test set.
        picture: to be written; None: nothing is drawn.
        only: names of the files that are drawn; None: all.
        titles: of the three columns.
    """
    (name,) = cfg.DATASETS.TEST
    predictor, truth, evaluator = Predictor(cfg), SemanticGroundTruth.of_dataset(name), SemSegEvaluator(name)
    rows = []
    for entry in DatasetCatalog.get(name):
        image = read_photograph(entry["file_name"])
        prediction = predictor(image)
        evaluator.process([entry], [prediction])
        if picture and (only is None or Path(entry["file_name"]).name in only):
            labels = prediction["sem_seg"].argmax(dim=0).numpy()
            drawn = [segments_of(part) for part in (truth.read(entry["image_id"]), labels)]
            rows.append(SheetRow(fitted(image, 255), *((fitted(ids, 0), segments) for ids, segments in drawn)))
    if picture:
        draw_contact_sheet(picture, rows, display_metadata(name), scale=0.75, panels=1, titles=titles)
    results: dict[str, dict[str, float]] = dict(evaluator.evaluate() or {})
    return results["sem_seg"]


def segments_of(labels: npt.NDArray[np.integer]) -> Segments:
    """One segment a class, in the form that is drawn; small ones and void are left out."""
    values, counts = np.unique(labels, return_counts=True)
    least = _SMALLEST_SEGMENT * labels.size
    drawn = [int(v) for v, count in zip(values, counts, strict=True) if v != IGNORE_LABEL and count >= least]
    ids = np.where(np.isin(labels, drawn), labels.astype(np.int64) + 1, 0)
    return ids, [{"id": value + 1, "category_id": value, "isthing": False} for value in drawn]


def fitted(picture: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    """(h, w) or (h, w, 3) reduced to fit ``SHEET_SIZE`` and padded to it; ids are not mixed."""
    height, width = SHEET_SIZE
    scale = min(height / picture.shape[0], width / picture.shape[1], 1.0)
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    mode = cv2.INTER_AREA if picture.ndim == 3 else cv2.INTER_NEAREST
    small = cv2.resize(picture if picture.ndim == 3 else picture.astype(np.int32), size, interpolation=mode)
    canvas = np.full((height, width, *picture.shape[2:]), fill, small.dtype)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
