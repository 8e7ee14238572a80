# SPDX-License-Identifier: Apache-2.0
"""The pass that makes targets: batch-norm policy of a forward without gradient, moving averages of networks.

Needed where targets come from another view or other weights than those that are trained: CutMix, strong augmentation,
moving averages (CPS and UniMatch differ in the policy; their users' questions are why it is explicit).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from padding.errors import check_choice

BatchNormPolicy = Literal["batch_no_update", "batch", "running"]
BATCH_NORM_POLICIES = get_args(BatchNormPolicy)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@contextmanager
def target_pass(
    student: nn.Module, policy: BatchNormPolicy, *, key: str = "the policy of batch norms"
) -> Iterator[None]:
    """Forward without gradient, dropout and stochastic depth; training mode is restored afterwards.

    Args:
        student: in training mode.
        policy: batch norm uses the batch's statistics and leaves the running ones alone ("batch_no_update"), or moves
            them ("batch"), or uses the running ones ("running").
        key: of the configuration, for the error.

    Raises:
        ConfigError: for another policy.
    """
    check_choice(key, policy, BATCH_NORM_POLICIES)
    training = {module: module.training for module in student.modules()}
    # Frozen batch norms and those set to evaluation mode by their owner keep using running statistics.
    active = [m for m in student.modules() if isinstance(m, _BATCH_NORM) and m.training and m.track_running_stats]
    # eval() turns dropout and stochastic depth off; batch norms that were training are turned on again.
    student.eval()
    if policy != "running":
        for norm in active:
            norm.train()
            norm.track_running_stats = policy == "batch"
    try:
        with torch.no_grad():
            yield
    finally:
        # Modes one by one, since parts may have been in evaluation mode before.
        for module, mode in training.items():
            module.training = mode
        for norm in active:
            norm.track_running_stats = True


def warmed_up(decay: float, iteration: int) -> float:
    """Decay min(1 - 1/(t + 1), decay) after iteration t >= 0.

    While it grows, the average is the plain mean of the students since t = 0: nothing is left of the initial values.
    """
    return min(1.0 - 1.0 / (iteration + 1), decay)


@torch.no_grad()
def update_average(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move every parameter and floating-point buffer of ``average`` towards the student's; copy other buffers.

    Buffers take part because an average without batch-norm statistics fails in evaluation mode.

    Args:
        average: changed in place.
        student: the same architecture.
        decay: share that is kept, in [0, 1).
    """
    state = student.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(state[name].to(value.dtype), 1.0 - decay)
        else:
            value.copy_(state[name])
