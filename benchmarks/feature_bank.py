# SPDX-License-Identifier: Apache-2.0
"""CPU seconds of one iteration of the second stage: the frozen segmentor in every iteration against the feature bank.

Both trainings run the real loop (``GeneratorClassifierTrainer``) on the same images with the same number of images per
iteration, data loading, augmentation, matching and both optimiser steps included; weights are random, which costs the
same. ``ratio_repeated_run`` is without over with the bank for configs/coco_zsp.yaml (Mask2Former R50, 100 queries, 400
primitives) on images of 512 x 512, for a training that finds the bank written: any but the first of a table.

``ratio_first_run`` counts writing the bank (``build_seconds_per_image``) as well, over the iterations and views of the
configuration. No bank makes it larger than ``bound_first_run``: iterations x images over views x images of the set,
since each view is a forward of its own. The same with ``_tiny`` for configs/shapes_zsp.yaml.

    python -m benchmarks.feature_bank [--size 512] [--batch 2] [--iterations 2]
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from padding.data.catalog import register_all
from padding.data.prepare.coco_panoptic import FULL_TRAIN_KEPT
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_shapes
from padding.engine.commands import load_config
from padding.errors import run_command
from padding.trainer import GeneratorClassifierTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
# An iteration from the bank is short: more of them for a stable median.
BANK_ITERATIONS = 10
# Images of the sets that the configurations train on.
SET_SIZES = {"coco_zsp": FULL_TRAIN_KEPT, "shapes_zsp": 3000}
# Batches go round and round over them, so that writing the bank does not take longer than what is measured.
NUM_IMAGES = 4


def configure(config: str, root: Path, options: Sequence[object]) -> CfgNode:
    """A second stage on the embedded data below ``root``, with random weights, on the CPU."""
    common = {
        "DATASETS.TRAIN": ("shapes_train_panoptic_zsp",),
        "DATASETS.TEST": ("shapes_val_panoptic_zsp",),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 35,
        "MODEL.PADING.EMBEDDINGS.PATH": str(root / "shapes" / "class_embeddings.npz"),
        "MODEL.PADING.FEATURE_BANK.VIEWS": 1,
        "SOLVER.AMP.ENABLED": False,
        "OUTPUT_DIR": tempfile.mkdtemp(prefix=f"{config}_", dir=root),
        "SEED": 1,
    }
    words = [str(word) for pair in common.items() for word in pair] + [str(word) for word in options]
    return load_config(CONFIGS / f"{config}.yaml", words)


def seconds_per_iteration(trainer: GeneratorClassifierTrainer, iterations: int) -> float:
    """Median CPU seconds of an iteration, after one more to warm up."""
    trainer.module.train()
    seconds = []
    for trainer.iter in range(iterations + 1):
        start = time.process_time()
        trainer.run_step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def measure(config: str, root: Path, options: Sequence[object], *, batch: int, iterations: int) -> dict[str, float]:
    """Time one configuration without and with the bank.

    Args:
        config: name in ``configs``.
        root: folder of the data.
        options: KEY, VALUE, ...
        batch: images per iteration, in both cases.
        iterations: timed without the bank; at least ``BANK_ITERATIONS`` with it.
    """
    bank = ("MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH", batch, "MODEL.PADING.FEATURE_BANK.ENABLED")
    torch.manual_seed(0)
    common = (*options, "SOLVER.IMS_PER_BATCH", batch, *bank)
    without = seconds_per_iteration(GeneratorClassifierTrainer(configure(config, root, (*common, False))), iterations)
    trainer = GeneratorClassifierTrainer(configure(config, root, (*common, True)))
    start = time.process_time()
    images = len(trainer.open_feature_bank())
    build = time.process_time() - start
    with_bank = seconds_per_iteration(trainer, max(iterations, BANK_ITERATIONS))
    return {
        "ratio_repeated_run": round(without / with_bank, 2),
        **first_run(config, batch=batch, without=without, with_bank=with_bank, build=build / images),
        "seconds_without": round(without, 4),
        "seconds_with": round(with_bank, 4),
        "build_seconds_per_image": round(build / images, 4),
    }


def first_run(config: str, *, batch: int, without: float, with_bank: float, build: float) -> dict[str, float]:
    """How many times faster a training of the configuration's length is that writes its bank first, and the bound.

    Args:
        config: name in ``configs``.
        batch: images of an iteration that was timed.
        without: its CPU seconds with the segmentor.
        with_bank: from the bank.
        build: to write an image of one view.
    """
    cfg = load_config(CONFIGS / f"{config}.yaml", [])
    bank = cfg.MODEL.PADING.FEATURE_BANK
    seen = cfg.SOLVER.MAX_ITER * (bank.IMAGES_PER_BATCH or cfg.SOLVER.IMS_PER_BATCH)  # images, those seen again too
    written = bank.VIEWS * SET_SIZES[config]
    ratio = seen / batch * without / (written * build + seen / batch * with_bank)
    return {"ratio_first_run": round(ratio, 2), "bound_first_run": round(seen / written, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description="second stage: segmentor in every iteration against feature bank")
    parser.add_argument("--size", type=int, default=512, help="height and width of the R50 segmentor's images")
    parser.add_argument("--batch", type=int, default=2, help="images per iteration with the R50 segmentor")
    parser.add_argument("--tiny-batch", type=int, default=8, help="images per iteration with the embedded segmentor")
    parser.add_argument("--iterations", type=int, default=2, help="timed iterations without the bank, R50")
    parser.add_argument("--tiny-iterations", type=int, default=10)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("padding").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shapes(root, ShapesConfig(num_train=NUM_IMAGES, num_val=1))
        register_all(root)
        size = ("INPUT.MIN_SIZE_TRAIN", (args.size,), "INPUT.MAX_SIZE_TRAIN", args.size, "INPUT.CROP.ENABLED", False)
        large = measure("coco_zsp", root, size, batch=args.batch, iterations=args.iterations)
        tiny = measure("shapes_zsp", root, (), batch=args.tiny_batch, iterations=args.tiny_iterations)
    result = {"size": args.size, "batch": args.batch, **large, "tiny_batch": args.tiny_batch}
    print(json.dumps(result | {f"{key}_tiny": value for key, value in tiny.items()}))


if __name__ == "__main__":
    sys.exit(run_command(main))
