# SPDX-License-Identifier: Apache-2.0
"""Semantic, panoptic and instance scores of generated predictions: CPU milliseconds an image beyond the forward pass.

COCO's 133 classes, 14 segments and 100 detections an image. Files and predictions of a few images stand for all. The
semantic prediction is the best class of each pixel, which mask classification predicts where no evaluator looks at the
scores of all classes; ``--scores`` gives these.

Example:
  python -m benchmarks.evaluation --images 5000 --workers 2
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.generated_coco import link_files
from benchmarks.panoptic_quality import generate_pairs
from padding.data.files import write_json
from padding.data.registration import register_panoptic
from padding.data.sets.coco import coco_zsp_split
from padding.engine.commands import command_parser, load_config, parse, positive
from padding.errors import run_command
from padding.evaluation.build import build_evaluator

NAME = "benchmark_evaluation"
DETECTIONS = 100
DISTINCT = 12
_SCORES = 3  # of 163 MB each


def write_set(folder: Path, count: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Register ``count`` images as ``NAME``; returns the pairs of ground truth and prediction that they repeat."""
    split = coco_zsp_split()
    height, width = size
    pairs = generate_pairs(folder, min(DISTINCT, count), height, width)
    Image.new("RGB", (width, height)).save(folder / "image.jpg")
    link_files(folder / "image.jpg", folder / "images", count)
    (folder / "semantic").mkdir()
    panoptic: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for index in range(count):
        pair = pairs[index % len(pairs)]
        name = pair["file_name"]
        segments = [{**s, "category_id": split.dataset_ids[s["category_id"]]} for s in pair["gt"]]
        panoptic.append({"image_id": index, "file_name": name, "segments_info": segments})
        if index < len(pairs):
            pair |= _write_truth(folder, pair, split.thing_ids)
        objects += [
            {"id": len(objects) + i, "image_id": index, "category_id": split.dataset_ids[class_id], **shape}
            for i, (class_id, shape) in enumerate(pair["objects"])
        ]
    head = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": height, "width": width} for i in range(count)],
        "categories": [{"id": i, "name": n} for i, n in zip(split.dataset_ids, split.names, strict=True)],
    }
    write_json(folder / "panoptic.json", {**head, "annotations": panoptic})
    write_json(folder / "instances.json", {**head, "annotations": objects})
    register_panoptic(
        NAME,
        class_split=split,
        image_root=folder / "images",
        panoptic_root=folder / "gt",
        panoptic_json=folder / "panoptic.json",
        sem_seg_root=folder / "semantic",
        json_file=folder / "instances.json",
    )
    return pairs


def _write_truth(folder: Path, pair: dict[str, Any], thing_ids: frozenset[int]) -> dict[str, Any]:
    """Write the semantic labels of a pair; returns its objects and the map it was painted from."""
    ids = np.asarray(Image.open(folder / "gt" / pair["file_name"])).astype(np.int64) @ (1, 256, 65536)
    labels = np.full(ids.shape, 255, np.uint8)
    objects = []
    for segment in pair["gt"]:
        mask = ids == segment["id"]
        labels[mask] = segment["category_id"]
        if segment["category_id"] in thing_ids:
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            shape = {"segmentation": {"size": code["size"], "counts": code["counts"].decode()}}
            objects.append((segment["category_id"], {**shape, "iscrowd": segment["iscrowd"]}))
    Image.fromarray(labels).save(folder / "semantic" / pair["file_name"])
    return {"objects": objects}


def predictions(
    pairs: Sequence[dict[str, Any]], size: tuple[int, int], *, with_scores: bool
) -> Iterator[dict[str, Any]]:
    """What a model returns for each of the pairs, again and again."""
    rng = np.random.default_rng(0)
    things = sorted(coco_zsp_split().thing_ids)
    scores = [torch.rand(133, *size) for _ in range(min(_SCORES, len(pairs)))]
    semantic = scores if with_scores else [one.argmax(dim=0) for one in scores]
    outputs = []
    for index, pair in enumerate(pairs):
        pred = torch.from_numpy(pair["pred_map"])
        chosen = rng.choice([s["id"] for s in pair["pred"]], DETECTIONS)
        instances = Instances(size)
        # Holes, as those of a network.
        masks = torch.stack([torch.roll(pred == int(i), int(rng.integers(-9, 9)), 1) for i in chosen])
        instances.pred_masks = masks & (torch.rand(masks.shape) > 0.005)
        instances.scores = torch.from_numpy(rng.random(DETECTIONS, np.float32))
        instances.pred_classes = torch.from_numpy(rng.choice(things, DETECTIONS))
        sem_seg = semantic[index % len(semantic)]
        outputs.append({"sem_seg": sem_seg, "panoptic_seg": (pred, pair["pred"]), "instances": instances})
    while True:
        yield from outputs


def measure(count: int, size: tuple[int, int], workers: int, *, with_scores: bool) -> dict[str, Any]:
    """CPU milliseconds an image of each evaluator, the memory that an image leaves, and the same with processes."""
    tasks = [f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("SEMANTIC", "PANOPTIC", "INSTANCE")]
    switches = [word for task in tasks for word in (task, "True")]
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_set(Path(folder), count, size)
        outputs = predictions(pairs, size, with_scores=with_scores)
        cfg = load_config("", ["OUTPUT_DIR", folder, *switches])
        result = {"images": count, **_alone(build_evaluator(cfg, NAME)._evaluators, outputs)}
        if workers:
            cfg = load_config("", ["OUTPUT_DIR", folder, *switches, "TEST.EVALUATION_WORKERS", str(workers)])
            result |= {"workers": workers, **_beside(build_evaluator(cfg, NAME), outputs)}
    return result


def _alone(evaluators: Sequence[DatasetEvaluator], outputs: Iterator[dict[str, Any]]) -> dict[str, float]:
    entries = DatasetCatalog.get(NAME)
    warm = min(DISTINCT, len(entries) // 2)
    spent = {type(evaluator).__name__: [0.0, 0.0] for evaluator in evaluators}
    memory = 0
    for evaluator in evaluators:
        evaluator.reset()
    for index, entry in enumerate(entries):
        output = next(outputs)
        if index == warm:
            gc.collect()
            memory = _resident()
        for evaluator in evaluators:
            start = time.process_time()
            evaluator.process([entry], [output])
            spent[type(evaluator).__name__][0] += time.process_time() - start
    grown = (_resident() - memory) / (len(entries) - warm)
    for evaluator in evaluators:
        start = time.process_time()
        evaluator.evaluate()
        spent[type(evaluator).__name__][1] += time.process_time() - start
    times = {
        f"{name.removesuffix('Evaluator').lower()}_{part}_ms": 1000 * seconds / len(entries)
        for name, both in spent.items()
        for part, seconds in zip(("process", "evaluate"), both, strict=True)
    }
    return {**times, "total_ms": sum(times.values()), "kept_kb_an_image": grown / 1024}


def _beside(evaluator: Any, outputs: Iterator[dict[str, Any]]) -> dict[str, float]:
    """CPU of the process that runs the model, and time on the clock, where others compare."""
    entries = DatasetCatalog.get(NAME)
    cpu, clock = time.process_time(), time.perf_counter()
    evaluator.reset()
    for entry in entries:
        evaluator.process([entry], [next(outputs)])
    evaluator.evaluate()
    spent = {"with_workers_cpu_ms": time.process_time() - cpu, "with_workers_clock_ms": time.perf_counter() - clock}
    return {name: 1000 * seconds / len(entries) for name, seconds in spent.items()}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=positive, default=200, metavar="N", help="default: 200; COCO val2017: 5000")
    parser.add_argument("--size", type=positive, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="once more with so many processes")
    parser.add_argument("--scores", action="store_true", help="predict the scores of all classes")
    args = parse(parser, arguments)
    print(json.dumps(measure(args.images, tuple(args.size), args.workers, with_scores=args.scores)))


if __name__ == "__main__":
    sys.exit(run_command(main))
