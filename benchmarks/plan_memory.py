# SPDX-License-Identifier: Apache-2.0
"""The memory that ``padding.plan`` foresees against what a step really takes on the CPU, file by file.

Both run the same iteration of the same trainer: one on tensors without values, one computed, whose peak is that of
torch's allocator as its profiler records it. ``ratio`` is foreseen over measured, ``worst`` its largest distance of 1.
The default files are those of ``configs/smoke`` and the small trainings, and Mask2Former R50 with one image at 512.

    python -m benchmarks.plan_memory [--configs smoke/shapes_psi shapes_tcc] [--no-r50]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from padding.engine.commands import load_config, register_data
from padding.engine.plan_memory import for_one_process, measured_peak, rehearse
from padding.errors import run_command

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = (
    *("shapes_backbone", "shapes_zsp_pretrain", "shapes_zsp", "shapes_zss", "shapes_zsi"),
    *("shapes_tcc", "shapes_psi", "shapes_salseg", "coco128_zss_pretrain", "coco128_zss"),
    *("camvid12_tcc_ours", "lite0_camvid_psi", "camvid_salseg"),
)
R50 = ("INPUT.IMAGE_SIZE", "512", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.AMP.ENABLED", "False")
IMAGE_SIZE = {"shapes": (64, 96), "camvid": (360, 480)}  # of the photographs; others as COCO's


def default_files() -> list[str]:
    """Names of all smoke configurations and of the small ones."""
    return [*(f"smoke/{path.stem}" for path in sorted((CONFIGS / "smoke").glob("*.yaml"))), *SMALL]


def compare(cfg: CfgNode, image_size: tuple[int, int]) -> dict[str, float]:
    """MiB foreseen and measured, and their ratio."""
    own = for_one_process(cfg, 1, device="cpu")
    _, step = rehearse(own, image_size)
    measured = measured_peak(own, image_size)
    return {
        "foreseen": round(step.peak / 2**20, 1),
        "measured": round(measured / 2**20, 1),
        "ratio": round(step.peak / measured, 4),
    }


def compare_file(name: str, opts: Sequence[str] = ()) -> dict[str, float]:
    """The comparison for a file of ``configs``."""
    cfg = load_config(CONFIGS / f"{name}.yaml", opts)
    register_data(cfg)
    stem = Path(name).stem
    size = next((size for word, size in IMAGE_SIZE.items() if word in stem), (480, 640))
    return compare(cfg, size)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each file and one JSON object."""
    parser = argparse.ArgumentParser(description="memory foreseen against memory taken")
    parser.add_argument(
        "--configs", nargs="+", default=default_files(), metavar="NAME", help="below configs, without .yaml"
    )
    parser.add_argument("--no-r50", action="store_true", help="leave out Mask2Former R50 at 512 x 512")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for name in args.configs:
        found[name] = compare_file(name)
        print(name, json.dumps(found[name]), flush=True)
    if not args.no_r50:
        found["coco_zsp_pretrain 512"] = compare_file("coco_zsp_pretrain", R50)
    worst = max(abs(entry["ratio"] - 1.0) for entry in found.values())
    print(json.dumps({"worst": round(worst, 4), **found}))


if __name__ == "__main__":
    sys.exit(run_command(main))
