# SPDX-License-Identifier: Apache-2.0
"""Numbers of a training for Weights & Biases and MLflow, where these are installed (ENGINE.WRITERS).

Where they go is said by their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI); without them MLflow writes
to OUTPUT_DIR/mlruns. A training that is resumed goes on in its run, whose id is kept in OUTPUT_DIR/trackers.json;
what it had sent beyond its checkpoint, MLflow holds twice and Weights & Biases once, the older.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from padding.data.files import write_json
from padding.data.readers import read_json
from padding.errors import ConfigError, check_choice

WRITERS = ("tensorboard", "wandb", "mlflow")
IDS_FILE = "trackers.json"
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def check_writers(names: Sequence[str]) -> None:
    """Refuse names that are none of ``WRITERS``, and those whose package is missing.

    Raises:
        ConfigError: names the key and the remedy.
    """
    for name in names:
        check_choice("ENGINE.WRITERS", name, WRITERS)
        if name in _PACKAGES and importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"ENGINE.WRITERS names '{name}', which is not installed; pip install {_PACKAGES[name]}")


def open_writers(
    names: Sequence[str], folder: Path, *, window: int, start_iter: int, experiment: str = ""
) -> list[EventWriter]:
    """Open what ENGINE.WRITERS names.

    Args:
        names: of ``WRITERS``.
        folder: OUTPUT_DIR, which names the run.
        window: iterations over which losses are smoothed.
        start_iter: first iteration; what was written from there on is written again.
        experiment: project or experiment; "": the name of the folder above ``folder``.

    Raises:
        ConfigError: see ``check_writers``.
    """
    check_writers(names)
    experiment = experiment or folder.resolve().parent.name or "training"
    opened: list[EventWriter] = []
    for name in names:
        if name == "tensorboard":
            opened.append(TensorboardXWriter(str(folder), window_size=window, purge_step=start_iter or None))
        else:
            kind = WandbWriter if name == "wandb" else MlflowWriter
            opened.append(kind(folder, window=window, experiment=experiment, resume=start_iter > 0))
    return opened


class _Tracker(EventWriter):
    """Hands on each number once, smoothed as Detectron2's writers do."""

    name = ""

    def __init__(self, folder: Path, *, window: int) -> None:
        self._folder = folder
        self._window = window
        self._last = -1

    def write(self) -> None:
        """Send what is new in the event storage, iteration by iteration."""
        by_iteration: dict[int, dict[str, float]] = {}
        newest = self._last
        for key, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[key] = float(value)
                newest = max(newest, iteration)
        self._last = newest
        for iteration, values in sorted(by_iteration.items()):
            self.send(values, iteration)

    def send(self, values: Mapping[str, float], iteration: int) -> None:
        """Send the numbers of one iteration."""
        raise NotImplementedError

    def _run_id(self, resume: bool) -> str:
        """Id of the run that is resumed; "" for a new one."""
        path = self._folder / IDS_FILE
        return str(read_json(path).get(self.name, "")) if resume and path.is_file() else ""

    def _keep_run_id(self, run_id: str) -> None:
        path = self._folder / IDS_FILE
        write_json(path, {**(read_json(path) if path.is_file() else {}), self.name: run_id})

    def _configuration(self) -> dict[str, Any]:
        path = self._folder / "config.yaml"
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


class WandbWriter(_Tracker):
    """Writes to a run of Weights & Biases."""

    name = "wandb"

    def __init__(self, folder: Path, *, window: int, experiment: str, resume: bool) -> None:
        """Start a run, or go on with the one of ``folder``."""
        super().__init__(folder, window=window)
        import wandb

        run_id = self._run_id(resume) or None
        self._run = wandb.init(
            project=experiment,
            name=folder.name,
            dir=str(folder),
            id=run_id,
            resume="allow" if run_id else None,
            config=self._configuration(),
        )
        self._keep_run_id(str(self._run.id))

    def send(self, values: Mapping[str, float], iteration: int) -> None:
        """See the base class."""
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MlflowWriter(_Tracker):
    """Writes to a run of MLflow."""

    name = "mlflow"

    def __init__(self, folder: Path, *, window: int, experiment: str, resume: bool) -> None:
        """Start a run, or go on with the one of ``folder``."""
        super().__init__(folder, window=window)
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not place:
            place = (folder / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # new versions ask for it
        self._client = MlflowClient(tracking_uri=place)
        self._id = self._run_id(resume)
        if not self._id:
            known = self._client.get_experiment_by_name(experiment)
            key = known.experiment_id if known is not None else self._client.create_experiment(experiment)
            self._id = self._client.create_run(key, run_name=folder.name).info.run_id
            self._client.log_dict(self._id, self._configuration(), "config.yaml")
            self._keep_run_id(self._id)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def send(self, values: Mapping[str, float], iteration: int) -> None:
        """See the base class."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, iteration) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)
