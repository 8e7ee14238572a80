# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of a network's blocks: activations are computed again in the backward pass, not kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(network: nn.Module, block_types: tuple[type[nn.Module], ...]) -> int:
    """Make blocks keep only their inputs while they are trained, in place.

    Gradients, random numbers (dropout, stochastic depth) and running statistics are those of the network without it;
    names of parameters do not change.

    Args:
        network: holds the blocks, which are not nested in each other.
        block_types: what is a block.

    Returns:
        Number of blocks found.
    """
    blocks = [module for module in network.modules() if isinstance(module, block_types)]
    for block in blocks:
        # On the instance, so that names, types and deep copies stay what they were.
        setattr(block, "forward", partial(_forward, block, block.forward))  # noqa: B010  (mypy refuses assignment)
    return len(blocks)


def _forward(block: nn.Module, original: Any, *args: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return original(*args)
    return checkpoint(original, *args, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_untouched(block)


@contextmanager
def _statistics_untouched(block: nn.Module) -> Iterator[None]:
    """Batch norms write to copies of their running statistics: the batch was counted in the forward pass."""
    norms = [
        (module, dict(module.named_buffers(recurse=False)))
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm, buffers in norms:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in norms:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
