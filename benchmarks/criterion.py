# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's criterion with all its auxiliary predictions: targets read from bytes against float copies of them.

The plain form reads each target by ``grid_sample`` of a float copy, for every match and every loss, as published.
``ratio`` is the CPU time of forward passes, ours over plain; ``max_difference`` the largest difference of a loss.
``products`` compares losses and gradients with masks that are multiplied out for the matched queries alone against
those of all queries, from the decoder's vectors and features; there ``max_difference`` is that of the gradients,
relative to the largest.

    python -m benchmarks.criterion [--targets 40 100] [--side 1024]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import add_numbers, relative_difference, time_in_turn
from padding.errors import run_command
from padding.modeling import criterion, matcher
from padding.modeling.point_sampling import sample_at
from padding.modeling.transformer_decoder import MaskProduct, mask_logits

NUM_CLASSES, NUM_QUERIES, NUM_PREDICTIONS, NUM_POINTS = 133, 100, 10, 12544
WIDTH = 256
WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


class FloatReader:
    """What ``MaskReader`` does, by a float copy of the masks that are read."""

    def __init__(self, masks: Tensor) -> None:
        self._masks = masks

    def at(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """See ``MaskReader.at``."""
        if rows is None:
            return sample_at(self._masks[None].to(points), points)[0]
        return sample_at(self._masks[rows].to(points).unsqueeze(1), points).squeeze(1)


def draw(count: int, side: int) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Predictions at a quarter of the image's side, and targets of one image."""

    def prediction() -> dict[str, Tensor]:
        masks = F.interpolate(torch.randn(1, NUM_QUERIES, 16, 16) * 4, size=(side // 4, side // 4), mode="bilinear")
        return {"pred_logits": torch.randn(1, NUM_QUERIES, NUM_CLASSES + 1), "pred_masks": masks}

    last, *others = (prediction() for _ in range(NUM_PREDICTIONS))
    masks = F.interpolate(torch.randn(1, count, 32, 32), size=(side, side), mode="bilinear")[0] > 0
    targets = [{"labels": torch.randint(0, NUM_CLASSES, (count,)), "masks": masks}]
    return {**last, "aux_outputs": others}, targets


def compute(reader: type, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses with one way of reading the targets; points are drawn from one seed."""
    losses = criterion.MaskCriterion(
        NUM_CLASSES, matcher.HungarianMatcher(2.0, 5.0, 5.0, NUM_POINTS), WEIGHTS, 0.1, NUM_POINTS, 3.0, 0.75
    )
    with mock.patch.object(criterion, "MaskReader", reader):
        return losses(outputs, targets, image_seeds=[0])


def gradients(
    vectors: Sequence[Tensor], features: Tensor, outputs: dict[str, Any], targets: Any, *, as_products: bool
) -> list[Tensor]:
    """Gradients of the sum of all losses with respect to the queries' vectors and the features."""
    predictions = [outputs, *outputs["aux_outputs"]]
    kept = features.unbind()
    masks = [MaskProduct(one, kept) if as_products else mask_logits(one, features) for one in vectors]
    last, *others = ({**old, "pred_masks": new} for old, new in zip(predictions, masks, strict=True))
    losses = compute(criterion.MaskReader, {**last, "aux_outputs": others}, targets)
    return list(torch.autograd.grad(torch.stack([*losses.values()]).sum(), [*vectors, features]))


@torch.enable_grad()
def measure_products(outputs: dict[str, Any], targets: Any, side: int, repeats: int) -> dict[str, float]:
    """Both ways to multiply the masks out."""
    vectors = [torch.randn(1, NUM_QUERIES, WIDTH, requires_grad=True) for _ in range(NUM_PREDICTIONS)]
    coarse = torch.randn(1, WIDTH, 16, 16) / WIDTH**0.5
    features = F.interpolate(coarse, size=(side // 4, side // 4), mode="bilinear").requires_grad_()
    forms = {
        name: partial(gradients, vectors, features, outputs, targets, as_products=as_products)
        for name, as_products in (("ours", True), ("plain", False))
    }
    seconds, results = time_in_turn(forms, repeats)
    return {
        "ratio": round(seconds["ours"] / seconds["plain"], 3),
        "max_difference": relative_difference(results["ours"], results["plain"]),
        "seconds": round(seconds["ours"], 3),
    }


def measure(count: int, side: int, repeats: int) -> dict[str, Any]:
    """Both forms on one draw."""
    outputs, targets = draw(count, side)
    readers = {"ours": criterion.MaskReader, "plain": FloatReader}
    forms = {name: partial(compute, reader, outputs, targets) for name, reader in readers.items()}
    seconds, results = time_in_turn(forms, repeats)
    differences = [abs(float(results["ours"][name] - value)) for name, value in results["plain"].items()]
    return {
        "ratio": round(seconds["ours"] / seconds["plain"], 3),
        "max_difference": max(differences),
        "seconds": round(seconds["ours"], 3),
        "products": measure_products(outputs, targets, side, repeats),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each number of targets; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", default=[40, 100], metavar="N")
    add_numbers(parser, side=1024, repeats=3)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    measured = {str(count): measure(count, args.side, args.repeats) for count in args.targets}
    result = {"benchmark": "criterion", **measured}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(run_command(main))
