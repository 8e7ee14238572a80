# SPDX-License-Identifier: Apache-2.0
"""Hooks that Detectron2 lacks: several schedulers, and checkpoints in which every rank takes part."""

from detectron2.engine import HookBase

from padding.engine.checkpointer import TrainingCheckpointer
from padding.errors import ConfigError


class ScheduleHook(HookBase):
    """Log the rate of every optimiser's first group of the base rate, then step every schedule."""

    def after_step(self) -> None:
        """Log ``lr`` for the first optimiser and ``lr_<name>`` for those with names; then advance."""
        for place, (name, optimizer) in enumerate(self.trainer.optimizers.items()):
            # The largest rate is the base rate: multipliers such as the backbone's are at most 1.
            rate = max(group["lr"] for group in optimizer.param_groups)
            if place == 0:  # what Detectron2 prints
                self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
            if name != "main":
                self.trainer.storage.put_scalar(f"lr_{name}", rate, smoothing_hint=False)
            self.trainer.schedulers[name].step()


class CheckpointHook(HookBase):
    """Save every ``period`` iterations and after the last one, on all ranks together.

    Args:
        checkpointer: of the training.
        period: iterations between two checkpoints.
        complete: so many of them can be resumed from, of older ones only the weights stay; 0: all.
    """

    def __init__(self, checkpointer: TrainingCheckpointer, period: int, complete: int = 0) -> None:
        if period < 1:
            raise ConfigError(f"SOLVER.CHECKPOINT_PERIOD must be at least 1, got {period}")
        self._checkpointer = checkpointer
        self._period = period
        self._complete = complete

    def after_step(self) -> None:
        """Write ``model_<iteration>.pth``, and ``model_final.pth`` at the end."""
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            if self._complete:
                self._checkpointer.keep_weights_alone(iteration - self._complete * self._period)
        if iteration == self.trainer.max_iter - 1:
            self._checkpointer.save("model_final", iteration=iteration)


class CpuSecondsHook(HookBase):
    """Puts ``cpu_seconds/NAME``, those of this process by stage, into the storage at the end of a training.

    Args:
        evaluates: whether an evaluation follows the last iteration; they then stand beside its results, else beside the
            losses of that iteration.
    """

    def __init__(self, *, evaluates: bool) -> None:
        self._evaluates = evaluates

    def after_step(self) -> None:
        """After the last one."""
        if not self._evaluates and self.trainer.iter == self.trainer.max_iter - 1:
            self._put()

    def after_train(self) -> None:
        """After the evaluation; a training that was broken off has none."""
        if self._evaluates and not (self.trainer.failing or self.trainer.stopping):
            self._put()

    def _put(self) -> None:
        for name, seconds in self.trainer.cpu_seconds.so_far().items():
            self.trainer.storage.put_scalar(f"cpu_seconds/{name}", seconds, smoothing_hint=False)
