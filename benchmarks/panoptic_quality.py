# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality: ours against panopticapi, on generated pairs of ground truth and prediction.

Ours is what the evaluator does for an image: read the ground-truth PNG, count the predicted id map that is in memory.
panopticapi reads both from PNGs; ``ratio_from_files`` lets ours read both, too. Writing the prediction PNGs, which
panopticapi also needs, is not timed. Run ``python -m benchmarks.panoptic_quality``; a ratio above 1: ours is faster.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from panopticapi.evaluation import PQStat, pq_compute_single_core

from benchmarks import add_numbers
from padding.data.files import save_panoptic_png
from padding.data.readers import read_panoptic_ids
from padding.errors import run_command
from padding.evaluation.panoptic_quality import PanopticQuality

NUM_CLASSES = 133
SEGMENTS = 14  # about COCO's mean
CHUNK = 10  # pairs timed in turn, so that a busy machine slows all contestants alike


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Generate, time, compare; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_numbers(parser, pairs=200, height=480, width=640)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        pairs = generate_pairs(Path(folder), args.pairs, args.height, args.width)
        result = compare(pairs, Path(folder))
    result = {"benchmark": "panoptic_quality", "pairs": args.pairs, "size": [args.height, args.width], **result}
    print(json.dumps(result))
    return result


def compare(pairs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run the three contestants over the pairs in turn."""
    official, from_tensors, from_files = PQStat(), PanopticQuality(NUM_CLASSES), PanopticQuality(NUM_CLASSES)
    seconds = dict.fromkeys(("official", "from_tensors", "from_files"), 0.0)
    _run_official(pairs[:2], folder)  # warm up: imports, file cache
    _run_ours(PanopticQuality(NUM_CLASSES), pairs[:2], folder, read_predictions=True)
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        elapsed, part = _timed(partial(_run_official, chunk, folder))
        seconds["official"] += elapsed
        official += part
        for name, quality in (("from_tensors", from_tensors), ("from_files", from_files)):
            ours = partial(_run_ours, quality, chunk, folder, read_predictions=name == "from_files")
            seconds[name] += _timed(ours)[0]
    return {
        "panopticapi_images_per_second": round(len(pairs) / seconds["official"], 1),
        "ours_images_per_second": round(len(pairs) / seconds["from_tensors"], 1),
        "ratio": round(seconds["official"] / seconds["from_tensors"], 2),
        "ratio_from_files": round(seconds["official"] / seconds["from_files"], 2),
        "max_difference": max(_difference(official, from_tensors), _difference(official, from_files)),
    }


def generate_pairs(folder: Path, count: int, height: int, width: int) -> list[dict[str, Any]]:
    """Write ``gt/`` and ``pred/`` PNGs and return their segment lists and the predicted maps.

    Ground truth: ellipses painted over each other, some void, one crowd segment; prediction: the same ellipses moved a
    little, a few of another class, one missing.
    """
    rng = np.random.default_rng(0)
    for name in ("gt", "pred"):
        (folder / name).mkdir()
    pairs = []
    for index in range(count):
        classes = rng.integers(0, NUM_CLASSES, SEGMENTS)
        ids = rng.choice(2**24 - 1, SEGMENTS, replace=False) + 1
        centres = rng.uniform((0, 0), (width, height), (SEGMENTS, 2))
        axes = rng.uniform(0.05, 0.4, (SEGMENTS, 2)) * (width, height)
        gt = _paint(ids, centres, axes, height, width)
        moved = centres + rng.normal(0, 0.015 * width, centres.shape)
        guesses = np.where(rng.random(SEGMENTS) < 0.15, rng.integers(0, NUM_CLASSES, SEGMENTS), classes)
        guesses[1] = classes[2]
        pred = _paint(np.arange(1, SEGMENTS + 1)[: SEGMENTS - 1], moved, axes * 1.03, height, width)
        name = f"{index:06d}.png"
        save_panoptic_png(gt, folder / "gt" / name)
        save_panoptic_png(pred, folder / "pred" / name)
        crowd = np.arange(SEGMENTS) == 2
        gt_segments = _segments(gt, ids, classes, crowd)
        pred_segments = _segments(pred, np.arange(1, SEGMENTS + 1), guesses, np.zeros(SEGMENTS, dtype=bool))
        pairs.append({"file_name": name, "gt": gt_segments, "pred": pred_segments, "pred_map": pred, "image_id": index})
    return pairs


def _paint(ids: np.ndarray, centres: np.ndarray, axes: np.ndarray, height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), dtype=np.int32)
    for segment_id, centre, axis in zip(ids, centres, axes, strict=False):
        x, y = (round(float(v)) for v in centre)
        half_width, half_height = (max(2, round(float(v))) for v in axis)
        cv2.ellipse(canvas, (x, y), (half_width, half_height), 0, 0, 360, int(segment_id), thickness=-1)
    return canvas


def _segments(id_map: np.ndarray, ids: np.ndarray, classes: np.ndarray, crowd: np.ndarray) -> list[dict[str, int]]:
    areas = dict(zip(*(part.tolist() for part in np.unique(id_map, return_counts=True)), strict=True))
    return [
        {"id": int(i), "category_id": int(c), "iscrowd": int(k), "area": areas[int(i)]}
        for i, c, k in zip(ids, classes, crowd, strict=True)
        if int(i) in areas
    ]


def _run_official(pairs: list[dict[str, Any]], folder: Path) -> PQStat:
    entries = [
        tuple(
            {"image_id": p["image_id"], "file_name": p["file_name"], "segments_info": p[side]}
            for side in ("gt", "pred")
        )
        for p in pairs
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(
            0, entries, str(folder / "gt"), str(folder / "pred"), dict.fromkeys(range(NUM_CLASSES))
        )


def _run_ours(quality: PanopticQuality, pairs: list[dict[str, Any]], folder: Path, *, read_predictions: bool) -> None:
    for pair in pairs:
        name = pair["file_name"]
        pred_map = read_panoptic_ids(folder / "pred" / name) if read_predictions else pair["pred_map"]
        quality.update(pred_map, pair["pred"], read_panoptic_ids(folder / "gt" / name), pair["gt"])


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def _difference(official: PQStat, ours: PanopticQuality) -> float:
    """Largest difference of a count or of a summed IoU, over all classes."""
    expected = np.array([[official[c].iou, official[c].tp, official[c].fp, official[c].fn] for c in range(NUM_CLASSES)])
    return float(np.abs(expected - np.stack([ours.iou, ours.tp, ours.fp, ours.fn], axis=1)).max())


if __name__ == "__main__":
    sys.exit(run_command(main))
