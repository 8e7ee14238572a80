# SPDX-License-Identifier: Apache-2.0
"""Adding classes to a trained PADing at the scale of COCO panoptic, on the CPU.

133 classes, D = 256, 400 primitives and the network of ``configs/coco_zsp.yaml``, with random weights, embeddings and
stored features: none of them changes the amount of work. ``seconds`` spans everything after the model is loaded:
synthetic features, fit, balance, and the new checkpoint on disk. ``old_class_max_change`` is the largest change of an
old logit on 1000 stored features.

    python -m benchmarks.add_classes [--num-added 2] [--refit] [--threads 2]
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.add_classes import save_extended
from padding.bank.feature_bank import FeatureBatch, weights_digest
from padding.bank.seen_statistics import SeenStatistics
from padding.data.catalog import coco_zsp_split, register_all
from padding.data.class_embeddings import random_class_embeddings, save_class_embeddings
from padding.engine.commands import add_pairs_argument, command_parser, load_config, parse
from padding.errors import run_command
from padding.extension import add_classes_to
from padding.meta_arch import PADing

CONFIG = "configs/coco_zsp.yaml"
EMBEDDING_WIDTH = 512  # CLIP ViT-B/16


def random_statistics(model: PADing, cfg: CfgNode) -> SeenStatistics:
    """Full statistics of normalised random features, a centre for each class."""
    names, node = model.label_space.names, cfg.MODEL.PADING.STATISTICS
    origin = weights_digest([model.backbone, model.sem_seg_head])
    statistics = SeenStatistics(names, per_class=node.PER_CLASS, no_object=node.NO_OBJECT, origin=origin)
    seen = torch.tensor(model.label_space.seen_ids).repeat_interleave(node.PER_CLASS)
    labels = torch.cat([seen, torch.full((node.NO_OBJECT,), len(names))])
    channels = model.new_fc.in_features
    centres = torch.randn(len(names) + 1, channels)
    features = torch.nn.functional.layer_norm(centres[labels] + torch.randn(len(labels), channels), (channels,))
    statistics.add(FeatureBatch(features, labels, torch.ones(len(labels))), num_images=len(labels) // 10)
    return statistics


def measure(opts: Sequence[str], *, num_added: int, refit: bool) -> dict[str, float | int | bool]:
    """Add ``num_added`` classes once; returns what the benchmark prints."""
    names = [f"new class {i}" for i in range(num_added)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "embeddings.npz"
        known = (*coco_zsp_split().names, *names)
        save_class_embeddings(table, known, random_class_embeddings(known, EMBEDDING_WIDTH, seed=0))
        forced = ("MODEL.PADING.EMBEDDINGS.PATH", str(table), "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu")
        cfg = load_config(CONFIG, [*forced, *opts])
        model: PADing = build_model(cfg).eval()
        num_old = model.num_test_classes
        statistics = random_statistics(model, cfg)
        start = time.perf_counter()
        report = add_classes_to(model, cfg, names, statistics=statistics, refit=refit)
        save_extended(Path(folder) / "new.pth", model, statistics)
        seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 3),
        "fit_seconds": round(report.seconds, 3),
        "old_class_max_change": report.old_class_max_change,
        "old_classes": num_old,
        "added_classes": num_added,
        "stored_features": len(statistics.rows().labels),
        "refit": refit,
        "threads": torch.get_num_threads(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = command_parser("time of adding classes to a trained PADing at COCO scale")
    parser.add_argument("--num-added", type=int, default=2)
    parser.add_argument("--refit", action="store_true", help="fit the rows of the old classes again too")
    parser.add_argument("--threads", type=int, default=2)
    add_pairs_argument(parser)
    args = parse(parser, argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        register_all()
        print(json.dumps(measure(args.opts, num_added=args.num_added, refit=args.refit)))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(run_command(main))
