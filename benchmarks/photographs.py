# SPDX-License-Identifier: Apache-2.0
"""Zero-shot segmentation of photographs in a few minutes, behind `make photos`: train, predict, draw.

Trains Mask2Former on a frozen EfficientNet-Lite0 and PADing on top of it, on whatever photographs are at hand: the 100
of coco128_panoptic below ``$SEGMENTATION_TEST_DATA`` or the data root, else the seven that ship in
``datasets/samples``. Drawn are the sample photographs that no training saw. Finished stages are not repeated.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pictures import draw_once, score_and_draw
from padding.data.catalog import register_all
from padding.data.roots import data_root
from padding.engine.commands import load_config
from padding.errors import run_command
from padding.study.table_rows import run_once

SEGMENTOR, SECOND_STAGE = "configs/coco128_zss_pretrain.yaml", "configs/coco128_zss.yaml"
SHOWN = "coco_samples_val_sem_seg_zss"
# Rounded from what half A of coco128's validation photographs chooses for configs/coco128_zss.yaml.
SEEN_BIAS = -2.0


@dataclass(frozen=True)
class Preset:
    """Iterations of the two stages."""

    segmentor: int
    second_stage: int
    views: int  # augmented passes over the photographs in the feature bank


PRESETS = {"coco128": Preset(500, 300, 2), "coco_samples": Preset(250, 200, 8), "smoke": Preset(2, 2, 1)}


def find_photographs() -> tuple[str, Path]:
    """Prefix of the data sets to train on, and the data root they are found in."""
    given = os.environ.get("SEGMENTATION_TEST_DATA", "")
    for root in [Path(given)] * bool(given) + [data_root()]:
        if (root / "coco128_panoptic").is_dir():
            return "coco128", root
    return "coco_samples", data_root()


def train(prefix: str, preset: Preset, output: Path) -> str:
    """Both stages; path of the final weights."""
    data = ("DATASETS.TRAIN", f"('{prefix}_train_sem_seg_zss',)", "DATASETS.TEST", f"('{SHOWN}',)")
    segmentor = run_once(SEGMENTOR, (*data, "SOLVER.MAX_ITER", str(preset.segmentor)), output / "segmentor")
    iterations = ("SOLVER.MAX_ITER", str(preset.second_stage))
    views = ("MODEL.PADING.FEATURE_BANK.VIEWS", str(preset.views))
    return run_once(SECOND_STAGE, (*data, "MODEL.WEIGHTS", segmentor, *iterations, *views), output / "padding")


def predict_and_draw(weights: str, path: Path) -> dict[str, float]:
    """Segment the sample photographs, draw them, and score them; returns percent."""
    cfg = load_config(SECOND_STAGE, ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{SHOWN}',)"])
    cfg.defrost()
    cfg.MODEL.PADING.TEST.SEEN_BIAS = SEEN_BIAS
    scores = score_and_draw(cfg, path, titles=("image", "truth (* unseen in training)", "prediction"))
    return {key: scores[key] for key in ("mIoU_seen", "mIoU_unseen", "mIoU_hm")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    prefix, root = find_photographs()

    def work(preset: str, folder: Path) -> tuple[Path, dict[str, Any]]:
        register_all(root)
        picture = folder / "photographs.png"
        scores = predict_and_draw(train(prefix, PRESETS[preset], folder), picture)
        return picture, {"trained_on": prefix, **scores}

    return draw_once(
        __doc__,
        arguments,
        output="output/photos",
        presets=PRESETS,
        preset=prefix,
        work=work,
        caption="seven photographs to look at, not to quote",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
