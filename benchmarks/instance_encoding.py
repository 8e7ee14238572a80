# SPDX-License-Identifier: Apache-2.0
"""Masks of instances to COCO's run-length code: ours against Detectron2's ``instances_to_coco_json``.

``ratio`` is the CPU time of ours over that of Detectron2's, whose entries also hold a box that it is given; ours are
computed from the masks. ``equal``: every code is the same string.

    python -m benchmarks.instance_encoding [--masks 100] [--height 480] [--width 640]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from benchmarks import add_numbers, time_in_turn
from padding.errors import run_command
from padding.evaluation.instance import mask_entries


def draw_masks(count: int, height: int, width: int) -> Tensor:
    """Discs of random places and sizes, (N, h, w) bool."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    radii = torch.rand(count) * 0.3 * min(height, width) + 3
    centres = torch.rand(count, 2) * torch.tensor([height, width])
    discs = [(rows - y) ** 2 + (columns - x) ** 2 < r**2 for (y, x), r in zip(centres, radii, strict=True)]
    return torch.stack(discs)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time both in turn; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_numbers(parser, masks=100, height=480, width=640, repeats=7)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    instances = Instances((args.height, args.width))
    instances.pred_masks = draw_masks(args.masks, args.height, args.width)
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores, instances.pred_classes = torch.ones(args.masks), torch.zeros(args.masks, dtype=torch.int64)
    forms = {
        "ours": lambda: mask_entries(instances.pred_masks, (args.height, args.width)),
        "detectron2": lambda: instances_to_coco_json(instances, 0),
    }
    seconds, results = time_in_turn(forms, args.repeats)
    codes = [[entry["segmentation"]["counts"] for entry in results[name]] for name in ("ours", "detectron2")]
    result = {
        "benchmark": "instance_encoding",
        "ratio": round(seconds["ours"] / seconds["detectron2"], 3),
        "equal": codes[0] == codes[1],
        "ours_ms": round(1000 * seconds["ours"], 2),
        "detectron2_ms": round(1000 * seconds["detectron2"], 2),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    sys.exit(run_command(main))
