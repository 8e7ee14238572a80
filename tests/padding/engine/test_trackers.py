# SPDX-License-Identifier: Apache-2.0
"""Numbers of a training in MLflow and Weights & Biases: the same as in metrics.json, one run also after a resume."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from padding.engine.trackers import IDS_FILE
from padding.errors import ConfigError
from tests.toy_training import losses_by_iteration, toy_cfg, train_toy


class FakeWandb(types.ModuleType):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.started: list[dict[str, Any]] = []
        self.logged: dict[int, dict[str, float]] = {}
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        log = lambda values, step: self.logged.setdefault(step, {}).update(values)  # noqa: E731
        return types.SimpleNamespace(id=options["id"] or "run1", log=log, finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_each_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    keys = ("ENGINE.WRITERS", ("wandb",), "ENGINE.EXPERIMENT", "mine")
    train_toy(toy_cfg(tmp_path / "run", *keys, "SOLVER.MAX_ITER", 4))
    assert not list((tmp_path / "run").glob("events.out.tfevents.*"))
    train_toy(toy_cfg(tmp_path / "run", *keys), resume=True)
    expected = {iteration: loss for iteration, (loss, _) in losses_by_iteration(tmp_path / "run").items()}
    assert {step: values["loss_colour"] for step, values in fake.logged.items()} == pytest.approx(expected)
    first, second = fake.started
    assert (first["project"], first["name"], first["id"]) == ("mine", "run", None)
    assert (second["id"], second["resume"]) == ("run1", "allow")
    assert first["config"]["SOLVER"]["MAX_ITER"] == 4
    assert fake.finished == 2


def test_mlflow_gets_each_iteration_in_its_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    keys = ("ENGINE.WRITERS", ("tensorboard", "mlflow"), "ENGINE.EXPERIMENT", "mine")
    train_toy(toy_cfg(tmp_path / "run", *keys, "SOLVER.MAX_ITER", 4))
    train_toy(toy_cfg(tmp_path / "run", *keys), resume=True)
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / IDS_FILE).read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss_colour")}
    expected = {iteration: loss for iteration, (loss, _) in losses_by_iteration(tmp_path / "run").items()}
    assert history == pytest.approx(expected)
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_writers_that_are_unknown_or_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ENGINE\.WRITERS is 'comet'; expected one of tensorboard, wandb, mlflow"):
        train_toy(toy_cfg(tmp_path, "ENGINE.WRITERS", ("comet",)))
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ENGINE\.WRITERS names 'wandb', which is not installed; pip install wandb"):
        train_toy(toy_cfg(tmp_path, "ENGINE.WRITERS", ("wandb",)))
    assert not list(tmp_path.iterdir())
