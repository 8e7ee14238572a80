# SPDX-License-Identifier: Apache-2.0
"""Panoptic merge of full-size masks: part by part against whole tensors.

The plain form is that of MaskFormer's Sec. 3.4 by whole-tensor operations. ``ratio`` is the CPU time of ours over it
for each number of segments, ``max_difference`` that of the id maps (segments are compared for equality), ``peak_mb``
the memory that each form adds to its inputs.

    python -m benchmarks.post_processing [--segments 10 24 100] [--height 800] [--width 1333]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks import add_numbers, time_in_turn
from padding.errors import run_command
from padding.modeling.inference import assign_segments, panoptic_inference

NUM_CLASSES = 133
OPTIONS: dict[str, float] = {"object_mask_threshold": 0.0, "overlap_threshold": 0.8}


def plain(class_logits: Tensor, mask_logits: Tensor, thing_ids: frozenset[int]) -> tuple[Tensor, list[dict[str, Any]]]:
    """The merge without tiles: every query is kept."""
    scores, labels = class_logits.softmax(dim=-1).max(dim=-1)
    probs = mask_logits.sigmoid()
    own = (probs >= 0.5).flatten(1).sum(dim=1)
    winner = (scores[:, None, None] * probs).argmax(dim=0)
    inside = probs.gather(0, winner[None])[0] >= 0.5
    won = torch.bincount(winner.flatten(), minlength=len(probs))
    shown = torch.bincount(winner[inside], minlength=len(probs))
    table = torch.stack([row.double() for row in (labels, scores, own, won, shown)], dim=1).tolist()
    ids, segments = assign_segments(table, thing_ids, OPTIONS["overlap_threshold"])
    return torch.tensor(ids, dtype=torch.int32)[winner] * inside, segments


def draw(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Class logits without no-object, and smooth mask logits."""
    class_logits = torch.randn(count, NUM_CLASSES + 1)
    class_logits[:, -1] = -10.0
    coarse = torch.randn(1, count, height // 32 + 1, width // 32 + 1) * 4
    return class_logits, F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def peak_mb(form: Callable[[], Any]) -> float:
    """Most memory that a form holds at a time beyond its inputs, from the allocations that the profiler sees."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = form()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del kept
    return peak / 2**20


def measure(count: int, height: int, width: int, repeats: int) -> dict[str, float]:
    """Both forms on one draw.

    Raises:
        RuntimeError: they give other segments.
    """
    class_logits, mask_logits = draw(count, height, width)
    things = frozenset(range(80))
    forms = {
        "tiled": partial(panoptic_inference, class_logits, mask_logits, thing_ids=things, **OPTIONS),
        "plain": partial(plain, class_logits, mask_logits, things),
    }
    seconds, results = time_in_turn(forms, repeats)
    if results["tiled"][1] != results["plain"][1]:
        raise RuntimeError(f"the forms give other segments: {results['tiled'][1]} and {results['plain'][1]}")
    return {
        "ratio": round(seconds["tiled"] / seconds["plain"], 3),
        "max_difference": int((results["tiled"][0] - results["plain"][0]).abs().max()),
        "seconds": round(seconds["tiled"], 4),
        **{f"peak_mb_{name}": round(peak_mb(form), 1) for name, form in forms.items()},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each number of segments; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 24, 100], metavar="M")
    add_numbers(parser, height=800, width=1333, repeats=3)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    sizes = (args.height, args.width, args.repeats)
    result = {"benchmark": "post_processing", **{str(count): measure(count, *sizes) for count in args.segments}}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(run_command(main))
