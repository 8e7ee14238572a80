# SPDX-License-Identifier: Apache-2.0
"""Evaluation beside the model: predictions are reduced where they are, compared with the truth in other processes.

Results come back image by image and are added in the order of the images, so that sums are the same to the last bit
however many processes there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import cv2
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from padding.data.streams import leave_signals_to_trainer
from padding.errors import ConfigError

_AHEAD = 3  # images that wait for each process
_PARENT_SECONDS = 2.0


class StagedEvaluator(DatasetEvaluator):
    """An evaluator in three stages, of which the second may run in another process."""

    @abstractmethod
    def reduced(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Any:
        """What of a prediction is compared: small, on the CPU, pickled where it is sent."""

    @abstractmethod
    def counted(self, record: Mapping[str, Any], reduced: Any) -> Any:
        """Compare with the truth of one image; the evaluator stays as it is.

        Args:
            record: with ``file_name`` and ``image_id``.
            reduced: of the first stage.
        """

    @abstractmethod
    def add(self, counted: Any) -> None:
        """Take in what was counted."""

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch: all stages, here and now."""
        for record, output in zip(inputs, outputs, strict=True):
            self.add(self.counted(record, self.reduced(record, output)))


class ParallelEvaluators(DatasetEvaluators):
    """Several evaluators, those in stages with their second stage in other processes."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator], num_workers: int) -> None:
        """Start nothing yet.

        Args:
            evaluators: at least one.
            num_workers: processes, at least 1.
        """
        super().__init__(list(evaluators))
        self._num_workers = num_workers
        self._staged = [one for one in evaluators if isinstance(one, StagedEvaluator)]
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: deque[Future[list[Any]]] = deque()

    def reset(self) -> None:
        """Forget all images."""
        self.close()
        super().reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch; what an earlier image raises may be raised here.

        Raises:
            UserError: of an evaluator, or a process died.
        """
        for record, output in zip(inputs, outputs, strict=True):
            for evaluator in self._evaluators:
                if not isinstance(evaluator, StagedEvaluator):
                    evaluator.process([record], [output])
            named = {key: record[key] for key in ("file_name", "image_id") if key in record}
            reduced = [evaluator.reduced(record, output) for evaluator in self._staged]
            self._submit(named, reduced)
            while len(self._waiting) > _AHEAD * self._num_workers:
                self._add_first()

    def evaluate(self) -> Any:
        """Wait for the processes, end them and report."""
        while self._waiting:
            self._add_first()
        self.close()
        return super().evaluate()

    def close(self) -> None:
        """End the processes; what they have not finished is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._waiting.clear()

    def _submit(self, record: Mapping[str, Any], reduced: Sequence[Any]) -> None:
        if self._pool is None:
            # A fork has the evaluators without a copy, as loaders of data have their entries.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
            self._pool = ProcessPoolExecutor(
                self._num_workers, multiprocessing.get_context(method), _start, (self._staged, os.getpid())
            )
        try:
            self._waiting.append(self._pool.submit(_counted, record, reduced))
        except BrokenProcessPool as error:
            raise self._death() from error

    def _add_first(self) -> None:
        try:
            counted = self._waiting.popleft().result()
        except BrokenProcessPool as error:
            raise self._death() from error
        except Exception:
            self.close()
            raise
        for evaluator, result in zip(self._staged, counted, strict=True):
            evaluator.add(result)

    def _death(self) -> ConfigError:
        self.close()
        return ConfigError(
            f"one of the {self._num_workers} processes of the evaluation died, perhaps for want of memory; lower "
            "TEST.EVALUATION_WORKERS (0: this process compares)"
        )


@contextmanager
def ending_workers(evaluator: DatasetEvaluator) -> Iterator[DatasetEvaluator]:
    """Leave no process behind, whatever ends the block."""
    try:
        yield evaluator
    finally:
        if isinstance(evaluator, ParallelEvaluators):
            evaluator.close()


_evaluators: Sequence[StagedEvaluator] = ()


def _start(evaluators: Sequence[StagedEvaluator], parent: int) -> None:
    global _evaluators
    _evaluators = evaluators
    leave_signals_to_trainer()
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Outlive no parent that was killed: it can tell nobody."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(0)


def _counted(record: Mapping[str, Any], reduced: Sequence[Any]) -> list[Any]:
    return [evaluator.counted(record, one) for evaluator, one in zip(_evaluators, reduced, strict=True)]
