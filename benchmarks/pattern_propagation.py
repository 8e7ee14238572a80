# SPDX-License-Identifier: Apache-2.0
"""Contextual pattern propagation on one CPU thread: the back end that is chosen against the unfold form.

Measured is one step, forward and backward, of ``propagate_patterns`` with the paper's radii (52 neighbors) on four maps
of the destination's size, as the laterals leave them, at 32 x 32 and 64 x 64 nodes. Ratios are the chosen back end over
``unfold``, so below 1 the chosen one is better. Time is CPU time, the median of alternating runs. Memory is the growth
of the resident set at its peak, each back end in a process of its own, inputs not counted. The difference is the
largest of any result or gradient, relative to the largest value of its tensor.

    python -m benchmarks.pattern_propagation [--channels 256] [--batch 2] [--repeats 5] [--all]
"""

import argparse
import json
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import add_numbers, relative_difference, time_in_turn
from padding.errors import run_command
from psi.pattern_graph import PatternGraph
from psi.pattern_propagation import BACKENDS, choose_backend, propagate_patterns

ORACLE = "unfold"
# All four maps on the destination's grid: levels with one neighbor a node are sampled before their lateral convolution.
GRAPH = PatternGraph.of((16, 16, 16, 16), (1, 1, 1, 4), destination=3)


def draw(size: int, channels: int, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of a step: four maps (batch, channels, size, size), and the gradients that come back for the results."""
    torch.manual_seed(0)
    shape = (batch, channels, size, size)
    levels = [torch.randn(shape).relu_().requires_grad_() for _ in GRAPH.windows]  # as batch norm and ReLU leave them
    return levels, [torch.randn(shape) for _ in GRAPH.windows]


def step(backend: str, levels: Sequence[Tensor], probes: Sequence[Tensor]) -> list[Tensor]:
    """Aggregates of every level, then the gradient of every level."""
    query = levels[GRAPH.destination] * levels[0].shape[1] ** -0.5
    aggregates = propagate_patterns(query, levels, levels, GRAPH, backend=backend).aggregates
    return [*(maps.detach() for maps in aggregates), *torch.autograd.grad(aggregates, levels, probes)]


def peak_megabytes(backend: str, size: int, channels: int, batch: int) -> float:
    """Growth of this process's resident set while it makes its first step of the size asked for."""
    step(backend, *draw(8, channels, 1))  # threads, kernels and modules are loaded at first use
    levels, probes = draw(size, channels, batch)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    step(backend, levels, probes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # A small step may fit into what the process had free: one page at least, for a ratio needs a divisor.
    page = resource.getpagesize()
    return max(peak - pages * page, page) / 2**20


def peak_of(backend: str, size: int, channels: int, batch: int) -> float:
    """``peak_megabytes`` in a process of its own: memory freed by another run would hide some of it."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(peak_megabytes, (backend, size, channels, batch))


def compare(names: Sequence[str], size: int, channels: int, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Time back ends in turn and compare their results.

    Args:
        names: of back ends; the first is what the others are compared with.
        size: rows and columns of nodes.
        channels: C.
        batch: B.
        repeats: timed steps of each; one more warms up.

    Returns:
        For each name ``seconds`` and ``difference`` from the first.
    """
    levels, probes = draw(size, channels, batch)
    medians, results = time_in_turn({name: partial(step, name, levels, probes) for name in names}, repeats)
    expected = results[names[0]]
    return {
        name: {"seconds": medians[name], "difference": relative_difference(results[name], expected)} for name in names
    }


def ratios(ours: dict[str, float], theirs: dict[str, float], suffix: str = "") -> dict[str, float]:
    """Ratios of a back end to the oracle, with the numbers behind them."""
    return {
        f"time_ratio{suffix}": round(ours["seconds"] / theirs["seconds"], 3),
        f"memory_ratio{suffix}": round(ours["megabytes"] / theirs["megabytes"], 3),
        f"max_difference{suffix}": ours["difference"],
        f"milliseconds{suffix}": round(1e3 * ours["seconds"], 1),
        f"megabytes{suffix}": round(ours["megabytes"], 1),
        f"unfold_milliseconds{suffix}": round(1e3 * theirs["seconds"], 1),
        f"unfold_megabytes{suffix}": round(theirs["megabytes"], 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object; keys without a size in them are of the larger one."""
    parser = argparse.ArgumentParser(description="contextual pattern propagation: chosen back end against unfold")
    parser.add_argument("--sizes", type=int, nargs=2, default=(32, 64), help="rows and columns of nodes, small, large")
    add_numbers(parser, channels=256, batch=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each back end")
    parser.add_argument("--all", action="store_true", help="print a line for every back end as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    small, large = args.sizes
    names = {
        size: [ORACLE, *(name for name in BACKENDS if name != ORACLE and (args.all or name == choose_backend(size**2)))]
        for size in (small, large)
    }
    # Before anything large is allocated here: the measured processes begin as copies of this one.
    peaks = {(size, name): peak_of(name, size, args.channels, args.batch) for size in names for name in names[size]}
    result: dict[str, object] = {"channels": args.channels, "batch": args.batch}
    for size, suffix in ((large, ""), (small, f"_{small}")):
        measured = compare(names[size], size, args.channels, args.batch, args.repeats)
        for name, numbers in measured.items():
            numbers["megabytes"] = peaks[size, name]
        if args.all:
            for name, numbers in measured.items():
                print(size, name, json.dumps(ratios(numbers, measured[ORACLE])))
        chosen = choose_backend(size**2)
        result |= {f"backend{suffix}": chosen, **ratios(measured[chosen], measured[ORACLE], suffix)}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
