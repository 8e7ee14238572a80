# SPDX-License-Identifier: Apache-2.0
"""What a training writes down beside its checkpoints: the log, metrics.json and trackers, each iteration once."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter

from padding.data.files import naming_unwritable, set_aside, write_text
from padding.engine.trackers import check_writers, open_writers

METRICS = "metrics.json"


class RecordsHook(HookBase):
    """Writes the event storage every ``period`` iterations and at the end; of use on the main process only.

    Nothing is opened before training starts, so that a training that is refused leaves no trace.
    """

    def __init__(
        self, folder: str | Path, period: int, writers: Sequence[str] = ("tensorboard",), experiment: str = ""
    ) -> None:
        """Remember where to write.

        Args:
            folder: OUTPUT_DIR.
            period: SOLVER.LOG_PERIOD.
            writers: ENGINE.WRITERS.
            experiment: ENGINE.EXPERIMENT.

        Raises:
            ConfigError: a writer is unknown, or its package is missing.
        """
        check_writers(writers)
        self._names = tuple(writers)
        self._experiment = experiment
        self._folder = Path(folder)
        self._period = period
        self._writers: list[EventWriter] = []

    def before_train(self) -> None:
        """Take back what an interrupted training wrote beyond its checkpoint, and open the files."""
        start, folder = self.trainer.start_iter, self._folder
        folder.mkdir(parents=True, exist_ok=True)
        forget_from(folder / METRICS, start)
        self._writers = [
            CommonMetricPrinter(self.trainer.max_iter, window_size=self._period),
            JSONWriter(str(folder / METRICS), window_size=self._period),
            *open_writers(self._names, folder, window=self._period, start_iter=start, experiment=self._experiment),
        ]

    def after_step(self) -> None:
        """Write if it is time."""
        iteration = self.trainer.iter + 1
        if iteration % self._period == 0 or iteration == self.trainer.max_iter:
            self._write(self._writers)

    def after_train(self) -> None:
        """Write what came since, and close."""
        failing = self.trainer.failing
        # Detectron2's printer divides by the iterations since it was called last, which may be none before the end.
        before_the_end = failing or self.trainer.ended_early
        try:
            self._write([one for one in self._writers if not (before_the_end and isinstance(one, CommonMetricPrinter))])
        except OSError as error:
            if not failing:
                raise
            logging.getLogger(__name__).warning("%s", error)  # what ended the training is the message to be seen
        for writer in self._writers:
            writer.close()

    def _write(self, writers: Sequence[EventWriter]) -> None:
        with naming_unwritable(self._folder / METRICS):
            for writer in writers:
                writer.write()


def forget_from(path: Path, start: int) -> None:
    """Reduce a file of metrics to what was written before an iteration; lines that were cut are left out.

    Results of an evaluation after the last iteration of a training that now goes on join the line of that iteration.

    Args:
        path: JSON lines with ``iteration``; may be missing.
        start: first iteration that will be written again; 0 keeps the file under another name.
    """
    if not path.is_file():
        return
    if start == 0:
        if path.stat().st_size:
            set_aside(path)
        return
    content = path.read_text(encoding="utf-8", errors="replace")
    kept: list[dict[str, Any]] = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            iteration = int(entry["iteration"])
        except (ValueError, TypeError, KeyError):
            continue  # the process was killed while it wrote
        if iteration < start:
            kept.append(entry)
        elif iteration == start and "lr" not in entry and kept and kept[-1]["iteration"] == start - 1:
            kept[-1] = {**entry, **kept[-1]}
    text = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in kept)
    if text != content:
        write_text(path, text)


def mean_losses(of_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each loss over the ranks that have it, ``total_loss`` first where there are several.

    Args:
        of_rank: losses by name.
    """
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for losses in of_rank for name in losses):
        present = [losses[name] for losses in of_rank if name in losses]
        means[name] = sum(present) / len(present)
    if len(means) > 1:  # first, because the log shows losses in the order in which they came
        means = {"total_loss": sum(value for name, value in means.items() if "loss" in name), **means}
    return means
