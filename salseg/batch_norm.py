# SPDX-License-Identifier: Apache-2.0
"""Whose statistics the shared encoder's batch norm keeps when images of two domains pass through it.

Running statistics of a mixture match neither domain, so that a network that learns well is evaluated badly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from padding.errors import check_choice

POLICIES = ("seg_only", "per_task", "shared")
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class SaliencyStatistics(nn.Module):
    """Batch norm of some modules in a pass over images with saliency labels alone.

    "seg_only" normalizes with the batch's statistics and leaves the running ones untouched, "per_task" keeps running
    statistics of its own (buffers of this module), "shared" does nothing. In evaluation only "per_task" differs from
    the plain pass.
    """

    def __init__(self, policy: str, shared: Sequence[nn.Module]) -> None:
        """Find the batch norms.

        Args:
            policy: one of ``POLICIES``.
            shared: the modules that both tasks pass through; not owned.

        Raises:
            ConfigError: for another policy.
        """
        super().__init__()
        check_choice("MODEL.SALSEG.SALIENCY.BN_STATS", policy, POLICIES)
        self.policy = policy
        # In a tuple, so that they do not become children of this module.
        self._norms = tuple(
            m for part in shared for m in part.modules() if isinstance(m, _BATCH_NORM) and m.track_running_stats
        )
        if policy == "per_task":
            for index, norm in enumerate(self._norms):
                for name in _RUNNING:
                    self.register_buffer(f"{name}_{index}", norm.get_buffer(name).clone())

    @contextmanager
    def saliency_pass(self) -> Iterator[None]:
        """Apply the policy to what passes meanwhile."""
        if self.policy == "seg_only":
            # Without tracking a norm in training mode uses the batch's statistics and stores nothing.
            active = [norm for norm in self._norms if norm.training]
            for norm in active:
                norm.track_running_stats = False
            try:
                yield
            finally:
                for norm in active:
                    norm.track_running_stats = True
        elif self.policy == "per_task":
            kept = self._swap()
            try:
                yield
            finally:
                self._restore(kept)
        else:
            yield

    def _swap(self) -> list[dict[str, Tensor]]:
        # Buffers change places, no value is copied: the norm updates the task's own in the pass.
        before = []
        for index, norm in enumerate(self._norms):
            before.append({name: norm.get_buffer(name) for name in _RUNNING})
            for name in _RUNNING:
                setattr(norm, name, self.get_buffer(f"{name}_{index}"))
        return before

    def _restore(self, before: list[dict[str, Tensor]]) -> None:
        for index, (norm, buffers) in enumerate(zip(self._norms, before, strict=True)):
            for name, buffer in buffers.items():
                # Counting in place or not is the norm's business: what it holds now is ours to keep.
                setattr(self, f"{name}_{index}", norm.get_buffer(name))
                setattr(norm, name, buffer)

    def reset(self) -> None:
        """Start the task's own statistics from those of the norms, which loaded weights may have changed."""
        if self.policy == "per_task":
            with torch.no_grad():
                for index, norm in enumerate(self._norms):
                    for name in _RUNNING:
                        self.get_buffer(f"{name}_{index}").copy_(norm.get_buffer(name))
