# SPDX-License-Identifier: Apache-2.0
"""Sums over the processes of a training; in a single process, what is given."""

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(sums: Tensor) -> Tensor:
    """Mean of local sums, any shape, over all processes: the divisor that undoes the averaging of gradients.

    Collective; without gradient.
    """
    if world_size() == 1:
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of all processes, any shape, with gradient. Collective."""
    if world_size() == 1:
        return values
    from torch.distributed.nn.functional import all_reduce  # imports a tree of RPC modules

    return all_reduce(values)
