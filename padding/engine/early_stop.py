# SPDX-License-Identifier: Apache-2.0
"""End a training that has stopped to gain: TEST.PATIENCE evaluations without a better TEST.BEST_METRIC."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from padding.errors import ConfigError


class EndOfTraining(BaseException):
    """Leaves the loop of a training whose work is done; no error."""


class EarlyStop(HookBase):
    """Ends the training on all ranks together; comes after the evaluation and the records."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read TEST.PATIENCE, which needs TEST.BEST_METRIC and TEST.EVAL_PERIOD.

        Raises:
            ConfigError: one of them is missing, or the number is negative.
        """
        self._patience, self._period = cfg.TEST.PATIENCE, cfg.TEST.EVAL_PERIOD
        if self._patience < 0:
            raise ConfigError(f"TEST.PATIENCE is {self._patience}; expected a number of evaluations, or 0 for none")
        if self._patience and not (self._period and cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST):
            raise ConfigError(
                f"TEST.PATIENCE is {self._patience}, but there is nothing to wait for; set DATASETS.TEST, "
                "TEST.BEST_METRIC and TEST.EVAL_PERIOD, or PATIENCE to 0"
            )

    def is_over(self, last_iteration: int) -> bool:
        """Whether the best evaluation lies ``TEST.PATIENCE`` evaluations behind. Collective.

        Args:
            last_iteration: the last one that is done; -1 before the first.
        """
        best = getattr(self.trainer.best, "record", None)  # on rank 0
        # Counted by iterations, so that a resumed training knows as much as one that was not stopped.
        behind = 0 if best is None else (last_iteration + 1) // self._period - (best.iteration + 1) // self._period
        return any(comm.all_gather(best is not None and behind >= self._patience))

    def after_step(self) -> None:
        """Look after each evaluation.

        Raises:
            EndOfTraining: after ``model_final.pth`` is written.
        """
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter  # ends by itself, and evaluates after this
        if not self._patience or (iteration + 1) % self._period or last or not self.is_over(iteration):
            return
        self.trainer.checkpointer.save("model_final", iteration=iteration)
        logging.getLogger(__name__).info(
            "No gain in %d evaluations: the training ends after iteration %d", self._patience, iteration
        )
        self.trainer.ended_early = True
        raise EndOfTraining
