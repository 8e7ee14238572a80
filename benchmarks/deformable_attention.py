# SPDX-License-Identifier: Apache-2.0
"""Deformable attention on one CPU thread: ``embedding_bag`` against ``grid_sample``.

The default is one layer of the published pixel decoder on an 800 x 1333 image: padded to multiples of 32 px it has maps
of strides 8, 16 and 32, together 22 050 tokens; 8 heads, 4 points, 32 channels per head. Ratios are the time of
``grid_sample`` over that of ``embedding_bag`` (medians of alternating runs), so above 1 ``embedding_bag`` is the faster
one. ``forward`` is measured as in inference, without gradients; ``backward`` is the gradient step alone.

    python -m benchmarks.deformable_attention [--height 800] [--width 1333] [--repeats 7]
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import add_numbers, relative_difference
from padding.errors import run_command
from padding.modeling.deformable_attention import SpatialShapes, embedding_bag_attention, grid_sample_attention
from padding.modeling.pixel_decoder import pixel_centres

_FORMULATIONS: dict[str, Callable[[Tensor, SpatialShapes, Tensor, Tensor], Tensor]] = {
    "embedding_bag": embedding_bag_attention,
    "grid_sample": grid_sample_attention,
}


def draw_inputs(
    spatial_shapes: SpatialShapes, *, num_heads: int, num_points: int, channels_per_head: int, spread_px: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Random values, locations around each token's own place, and weights that sum to 1.

    ``spread_px`` is the standard deviation of the sampling offsets, in pixels of the sampled map.

    Returns:
        (1, N, A, D), (1, N, A, L, P, 2) and (1, N, A, L, P) float32, all requiring gradients.
    """
    centres = pixel_centres(spatial_shapes)
    N, L = len(centres), len(spatial_shapes)
    map_size = torch.tensor([(width, height) for height, width in spatial_shapes])[:, None]
    offsets = torch.randn(1, N, num_heads, L, num_points, 2) * spread_px / map_size
    weights = torch.randn(1, N, num_heads, L * num_points).softmax(dim=-1)
    return (
        torch.randn(1, N, num_heads, channels_per_head).requires_grad_(),
        (centres[:, None, None, None] + offsets).requires_grad_(),
        weights.view(1, N, num_heads, L, num_points).requires_grad_(),
    )


def measure(spatial_shapes: SpatialShapes, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> dict[str, float]:
    """Time both formulations in turn and compare their results and gradients.

    Args:
        spatial_shapes: (H, W) of each level.
        inputs: value, locations and weights.
        repeats: timed runs of each; one more run warms up.

    Returns:
        Ratios, median milliseconds, and the largest difference of any result or gradient, relative to its maximum.
    """
    value, locations, weights = inputs
    probe = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    seconds: dict[tuple[str, str], list[float]] = {}
    tensors: dict[str, Sequence[Tensor]] = {}
    for repeat in range(repeats + 1):
        for name, formulation in _FORMULATIONS.items():
            start = time.perf_counter()
            with torch.no_grad():
                formulation(value, spatial_shapes, locations, weights)
            forward_end = time.perf_counter()
            result = formulation(value, spatial_shapes, locations, weights)
            backward_start = time.perf_counter()
            gradients = torch.autograd.grad(result, inputs, probe)
            backward_end = time.perf_counter()
            tensors[name] = (result.detach(), *gradients)
            if repeat:
                seconds.setdefault((name, "forward"), []).append(forward_end - start)
                seconds.setdefault((name, "backward"), []).append(backward_end - backward_start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "forward_ratio": round(medians["grid_sample", "forward"] / medians["embedding_bag", "forward"], 3),
        "backward_ratio": round(medians["grid_sample", "backward"] / medians["embedding_bag", "backward"], 3),
        "max_relative_error": relative_difference(tensors["embedding_bag"], tensors["grid_sample"]),
        **{f"{name}_{step}_ms": round(1e3 * median, 2) for (name, step), median in medians.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description="deformable attention: embedding_bag against grid_sample, one thread")
    parser.add_argument("--height", type=int, default=800, help="of the image, in pixels")
    parser.add_argument("--width", type=int, default=1333, help="of the image, in pixels")
    parser.add_argument("--num-points", type=int, default=4, help="per head and level")
    add_numbers(parser, num_heads=8, channels_per_head=32, repeats=7)
    parser.add_argument("--spread-px", type=float, default=4.0, help="standard deviation of the sampling offsets")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    height, width = math.ceil(args.height / 32), math.ceil(args.width / 32)
    spatial_shapes = [(height * scale, width * scale) for scale in (1, 2, 4)]
    inputs = draw_inputs(
        spatial_shapes,
        num_heads=args.num_heads,
        num_points=args.num_points,
        channels_per_head=args.channels_per_head,
        spread_px=args.spread_px,
    )
    result = {"tokens": inputs[0].shape[1], **measure(spatial_shapes, inputs, args.repeats)}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
