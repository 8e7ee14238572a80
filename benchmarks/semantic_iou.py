# SPDX-License-Identifier: Apache-2.0
"""Semantic evaluation: ours against Detectron2's SemSegEvaluator, at the size and class count of Cityscapes.

Timed is ``process``, from scores and a ground-truth PNG to the confusion matrix. Detectron2 also encodes every
prediction as RLE for a JSON file, which ours does only when asked. Run ``python -m benchmarks.semantic_iou``; a ratio
above 1: ours is faster.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as DetectronSemSegEvaluator
from PIL import Image

from benchmarks import add_numbers
from padding.errors import run_command
from padding.evaluation.confusion import iou_from_confusion
from padding.evaluation.semantic import SemSegEvaluator

DATASET = "benchmark_semantic_iou"
IGNORE_LABEL = 255


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Generate, time, compare; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_numbers(parser, images=12, height=512, width=1024, classes=19)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        records = generate(Path(folder), args.images, args.height, args.width, args.classes)
        DatasetCatalog.register(DATASET, lambda: records)
        names = [f"class {i}" for i in range(args.classes)]
        MetadataCatalog.get(DATASET).set(stuff_classes=names, ignore_label=IGNORE_LABEL)
        try:
            result = compare(records, names)
        finally:
            DatasetCatalog.remove(DATASET)
            MetadataCatalog.remove(DATASET)
    size = [args.height, args.width, args.classes]
    result = {"benchmark": "semantic_iou", "images": args.images, "size": size, **result}
    print(json.dumps(result))
    return result


def generate(folder: Path, count: int, height: int, width: int, num_classes: int) -> list[dict[str, Any]]:
    """Write blocky ground-truth PNGs with some void, and return dataset dicts."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        blocks = rng.integers(0, num_classes + 1, (height // 16, width // 16), dtype=np.uint8)
        blocks[blocks == num_classes] = IGNORE_LABEL
        path = folder / f"{index}.png"
        Image.fromarray(np.kron(blocks, np.ones((16, 16), dtype=np.uint8))).save(path)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path), "height": height, "width": width})
    return records


def compare(records: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Process every image with both evaluators in turn and compare their per-class numbers."""
    evaluators = {"ours": SemSegEvaluator(DATASET), "detectron2": DetectronSemSegEvaluator(DATASET, distributed=False)}
    generator = torch.Generator().manual_seed(0)
    for index, record in enumerate([records[0], *records]):  # the first round warms up and is forgotten
        if index <= 1:
            seconds = dict.fromkeys(evaluators, 0.0)
            for evaluator in evaluators.values():
                evaluator.reset()
        scores = _scores(record, len(names), generator)
        for name, evaluator in evaluators.items():
            start = time.perf_counter()
            evaluator.process([record], [{"sem_seg": scores}])
            seconds[name] += time.perf_counter() - start
    ours = 100 * iou_from_confusion(evaluators["ours"].confusions["sem_seg"])
    theirs = evaluators["detectron2"].evaluate()["sem_seg"]
    return {
        "detectron2_ms_per_image": round(1000 * seconds["detectron2"] / len(records), 1),
        "ours_ms_per_image": round(1000 * seconds["ours"] / len(records), 1),
        "ratio": round(seconds["detectron2"] / seconds["ours"], 2),
        "max_difference": max(abs(iou - theirs[f"IoU-{name}"]) for name, iou in zip(names, ours.tolist(), strict=True)),
    }


def _scores(record: dict[str, Any], num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """Noise with the true class raised, so that the prediction has regions as a model's has."""
    gt = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
    scores = torch.rand((num_classes, *gt.shape), generator=generator)
    return scores.scatter_add_(0, gt.clamp(max=num_classes - 1)[None], torch.full((1, *gt.shape), 0.95))


if __name__ == "__main__":
    sys.exit(run_command(main))
