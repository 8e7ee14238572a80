# SPDX-License-Identifier: Apache-2.0
"""The best weights of a training by one metric, beside the last ones.

Detectron2's ``BestCheckpointer`` forgets its record when a training is resumed, and names its file as the one to resume
from. Here weights and record are one file, ``model_best.pth``, written atomically: it is always clear which evaluation
the weights belong to, and a resumed training goes on from what the file says.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

from padding.data.files import set_aside
from padding.engine.checkpointer import read_training_checkpoint, write_checkpoint
from padding.errors import CheckpointError, ConfigError, check_choice

BEST_FILE = "model_best.pth"
BEST_IS = ("highest", "lowest")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestRecord:
    """The best evaluation so far.

    Attributes:
        metric: TEST.BEST_METRIC.
        value: of the metric.
        iteration: last iteration before the evaluation, as checkpoints count; -1 for untrained weights.
        results: all results of that evaluation, nested, floats only.
    """

    metric: str
    value: float
    iteration: int
    results: dict[str, Any]

    def as_results(self) -> dict[str, Any]:
        """The record as a task of an evaluation's results: ``value``, ``iteration``, and those results."""
        return {"value": self.value, "iteration": float(self.iteration), **self.results}


class BestCheckpoint:
    """Keeps the weights of the best evaluation; of use on the main process only, nothing here is collective.

    Attributes:
        record: the best evaluation so far, None before the first.
    """

    def __init__(self, model: nn.Module, folder: str | Path, metric: str, best_is: str = "highest") -> None:
        """Remember what is to be kept.

        Args:
            model: without DistributedDataParallel.
            folder: OUTPUT_DIR.
            metric: keys of nested results joined by "/", for example "sem_seg/mIoU".
            best_is: which value is the best, the "highest" or the "lowest".

        Raises:
            ConfigError: it is neither.
        """
        check_choice("TEST.BEST_IS", best_is, BEST_IS)
        self.path = Path(folder) / BEST_FILE
        self.record: BestRecord | None = None
        self._model = model
        self._metric = metric
        self._sign = 1 if best_is == "highest" else -1

    def begin(self, start_iter: int) -> None:
        """Take up the record of a training that goes on; what belongs to another training is set aside.

        A record from beyond the checkpoint that is resumed from is set aside too: the training comes there again.

        Args:
            start_iter: first iteration to train; 0 for a new training.
        """
        self.record = None
        if not self.path.is_file():
            return
        try:
            record = BestRecord(**read_training_checkpoint(self.path)["best"])
        except (CheckpointError, KeyError, TypeError) as error:
            self._set_aside(f"cannot be read as the best checkpoint of a training ({error})")
            return
        if start_iter == 0:
            self._set_aside("belongs to another training")
        elif record.metric != self._metric:
            self._set_aside(f"is the best by {record.metric}, TEST.BEST_METRIC is {self._metric}")
        elif record.iteration >= start_iter:
            self._set_aside(f"is of iteration {record.iteration}, the training goes on from {start_iter}")
        else:
            self.record = record
            logger.info("Best %s so far: %.4f at iteration %d", record.metric, record.value, record.iteration)

    def update(self, results: Mapping[str, Any], iteration: int) -> BestRecord | None:
        """Look at an evaluation and keep the weights if it is the best; of equal ones the first stays.

        Args:
            results: nested, of ``padding.engine.evaluation_loop.evaluate``.
            iteration: last iteration before the evaluation.

        Returns:
            The best evaluation so far; None if the metric has not been a number yet.

        Raises:
            ConfigError: if the results do not hold the metric; names those they hold.
        """
        flat = flatten_results_dict(results)
        if self._metric not in flat:
            raise ConfigError(
                f"TEST.BEST_METRIC is {self._metric!r}, which is none of this evaluation's results: {', '.join(flat)}"
            )
        value = float(flat[self._metric])
        best = self.record
        if best is not None:
            logger.info("%s: last %.4f, before best %.4f at %d", self._metric, value, best.value, best.iteration)
        # A NaN compares as False with everything, and would never be replaced.
        if math.isfinite(value) and (best is None or self._sign * value > self._sign * best.value):
            self.record = BestRecord(self._metric, value, iteration, _floats(results))
            state = {"model": self._model.state_dict(), "iteration": iteration, "best": asdict(self.record)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(self.path, state)
            logger.info("%s %.4f is the best so far: weights kept in %s", self._metric, value, self.path)
        return self.record

    def _set_aside(self, reason: str) -> None:
        logger.warning("%s %s; it is kept as %s", self.path, reason, set_aside(self.path).name)


def _floats(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested results with plain keys and floats, which a checkpoint can hold."""
    return {str(key): _floats(value) if isinstance(value, Mapping) else float(value) for key, value in results.items()}
