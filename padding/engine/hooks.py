# SPDX-License-Identifier: Apache-2.0
"""Hooks that Detectron2 lacks: several schedulers, and checkpoints in which every rank takes part."""

from detectron2.engine import HookBase

from padding.engine.checkpointer import TrainingCheckpointer
from padding.errors import ConfigError


class ScheduleHook(HookBase):
    """Log the rate of every optimiser's first group of the base rate, then step every schedule."""

    def after_step(self) -> None:
        """Log ``lr`` for the optimiser "main" and ``lr_<name>`` for any other; then advance."""
        for name, optimizer in self.trainer.optimizers.items():
            # The largest rate is the base rate: multipliers such as the backbone's are at most 1.
            rate = max(group["lr"] for group in optimizer.param_groups)
            self.trainer.storage.put_scalar("lr" if name == "main" else f"lr_{name}", rate, smoothing_hint=False)
            self.trainer.schedulers[name].step()


class CheckpointHook(HookBase):
    """Save every ``period`` iterations and after the last one, on all ranks together."""

    def __init__(self, checkpointer: TrainingCheckpointer, period: int) -> None:
        if period < 1:
            raise ConfigError(f"SOLVER.CHECKPOINT_PERIOD must be at least 1, got {period}")
        self._checkpointer = checkpointer
        self._period = period

    def after_step(self) -> None:
        """Write ``model_<iteration>.pth``, and ``model_final.pth`` at the end."""
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if iteration == self.trainer.max_iter - 1:
            self._checkpointer.save("model_final", iteration=iteration)
