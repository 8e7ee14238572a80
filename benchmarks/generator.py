# SPDX-License-Identifier: Apache-2.0
"""The primitive generator on one CPU thread: primitives repeated for every condition against one shared set.

The default is one iteration of the published second stage: 130 matched segments, 400 primitives, 256 channels, 3
layers, 8 heads. ``expanded`` gives every condition its own copy of the primitives, so that keys and values are computed
130 times, and attends from the condition to itself with full attention; ``shared`` is ``PrimitiveTransformer``. Noise
and dropout are off, both forms use the same parameters. ``ratio`` is the CPU time of forward and backward of
``expanded`` over that of ``shared`` (medians of alternating runs); ``max_difference`` that of the outputs,
``max_gradient_difference`` that of all gradients relative to the largest.

    python -m benchmarks.generator [--conditions 130] [--primitives 400] [--channels 256] [--repeats 3]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import add_numbers, time_in_turn
from padding.errors import run_command
from padding.generator import PrimitiveTransformer, PrimitiveTransformerLayer

Forward = Callable[[Tensor, Tensor], Tensor]


def expanded_forward(generator: PrimitiveTransformer, conditions: Tensor, primitives: Tensor) -> Tensor:
    """The generator with its own primitives for each condition: (n, D), (P, D) -> (n, D).

    Args:
        generator: without noise.
        conditions: (n, D), each a sequence of length 1 in a batch of n.
        primitives: (P, D), repeated n times.
    """
    x = conditions[None]
    memory = primitives[:, None].repeat(1, len(conditions), 1)
    for layer in map(_as_layer, generator.layers):
        x = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
        x = layer.norm2(x + layer.multihead_attn(x, memory, memory, need_weights=False)[0])
        x = layer.norm3(x + layer.linear2(torch.relu(layer.linear1(x))))
    return generator.norm(x)[0]


def _as_layer(module: nn.Module) -> PrimitiveTransformerLayer:
    assert isinstance(module, PrimitiveTransformerLayer)
    return module


def run(
    forward: Forward, generator: PrimitiveTransformer, inputs: tuple[Tensor, Tensor], probe: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of inputs and parameters."""
    # Of self-attention over one token, queries and keys get no gradient in the shared form and zeros in the other.
    wanted = [*inputs, *(p for name, p in generator.named_parameters() if "self_attn.in_proj" not in name)]
    output = forward(*inputs)
    return output.detach(), list(torch.autograd.grad(output, wanted, probe))


def measure(generator: PrimitiveTransformer, conditions: Tensor, primitives: Tensor, repeats: int) -> dict[str, float]:
    """Time both forms in turn, once more to warm up, and compare them.

    Args:
        generator: without noise and dropout.
        conditions: (n, D).
        primitives: (P, D).
        repeats: timed runs of each form.
    """
    forms: dict[str, Forward] = {
        "expanded": lambda conditions, primitives: expanded_forward(generator, conditions, primitives),
        "shared": generator,
    }
    inputs = (conditions.requires_grad_(), primitives.requires_grad_())
    probe = torch.randn_like(conditions)
    runs = {name: partial(run, forward, generator, inputs, probe) for name, forward in forms.items()}
    medians, results = time_in_turn(runs, repeats)
    (expected, expected_gradients), (output, gradients) = results["expanded"], results["shared"]
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients)
    differences = [(a - b).abs().max() for a, b in zip(expected_gradients, gradients, strict=True)]
    return {
        "ratio": round(medians["expanded"] / medians["shared"], 2),
        "max_difference": float((expected - output).abs().max()),
        "max_gradient_difference": float(max(differences)) / largest,
        **{f"{name}_ms": round(1e3 * median, 2) for name, median in medians.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description="primitives repeated per condition against one shared set, one thread")
    add_numbers(parser, conditions=130, primitives=400, channels=256, layers=3, heads=8, ffn_channels=1024, repeats=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = PrimitiveTransformer(
        args.channels,
        num_layers=args.layers,
        num_heads=args.heads,
        ffn_channels=args.ffn_channels,
        dropout=0.0,
        noise_std=0.0,
    )
    conditions = torch.randn(args.conditions, args.channels)
    primitives = torch.randn(args.primitives, args.channels)
    sizes = {"conditions": args.conditions, "primitives": args.primitives, "channels": args.channels}
    print(json.dumps({**sizes, **measure(generator, conditions, primitives, args.repeats)}))


if __name__ == "__main__":
    sys.exit(run_command(main))
