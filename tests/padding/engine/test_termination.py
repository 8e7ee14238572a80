# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends a training with a checkpoint, from which it goes on as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from padding.engine import termination
from padding.engine.records import METRICS
from padding.engine.termination import STATUS, Terminated, Termination, passed_on_to_children
from padding.errors import WriteError
from tests.toy_training import ToyTrainer, losses_by_iteration, toy_cfg, train_toy


def signal_self(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class SignalAt(HookBase):
    def __init__(self, iteration: int, when: str) -> None:
        self.iteration, self.when = iteration, when

    def before_step(self) -> None:
        if self.when == "before" and self.trainer.iter == self.iteration:
            signal_self()

    def after_step(self) -> None:
        if self.when == "after" and self.trainer.iter == self.iteration:
            signal_self()


class SignalledTrainer(ToyTrainer):
    def __init__(self, cfg: CfgNode, iteration: int, when: str = "before") -> None:
        super().__init__(cfg)
        self.register_hooks([SignalAt(iteration, when)])


def end(trainer: ToyTrainer) -> None:
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143 == STATUS
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("when", "iteration", "last"), [("before", 4, 4), ("before", 5, 5), ("after", 3, 4), ("before", 7, 7)]
)
def test_the_iteration_is_finished_and_saved(tmp_path: Path, when: str, iteration: int, last: int) -> None:
    train_toy(toy_cfg(tmp_path / "whole"))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    trainer = SignalledTrainer(toy_cfg(tmp_path / "cut"), iteration, when)
    with pytest.raises(SystemExit):
        trainer.train()
    name = "model_final.pth" if last == 7 else f"model_{last:07d}.pth"
    assert (tmp_path / "cut" / "last_checkpoint").read_text() == name
    resumed = train_toy(toy_cfg(tmp_path / "cut"), resume=True)
    assert resumed.start_iter == last + 1
    assert losses_by_iteration(tmp_path / "cut") == losses_by_iteration(tmp_path / "whole")
    lines = (tmp_path / "cut" / METRICS).read_text().splitlines()
    assert len(lines) == 8


class EvaluatedTrainer(ToyTrainer):
    """Whose evaluation is interrupted once, by itself."""

    evaluations: int

    @classmethod
    def test(cls, cfg: CfgNode, model: Any) -> dict[str, Any]:
        cls.evaluations += 1
        signal_self()
        time.sleep(5)
        return {"never": 1.0}


@pytest.mark.parametrize(("period", "last"), [(2, "model_0000001.pth"), (0, "model_final.pth")])
def test_an_evaluation_is_broken_off(tmp_path: Path, period: int, last: str) -> None:
    EvaluatedTrainer.evaluations = 0
    end(EvaluatedTrainer(toy_cfg(tmp_path, "DATASETS.TEST", ("any",), "TEST.EVAL_PERIOD", period)))
    assert EvaluatedTrainer.evaluations == 1
    assert (tmp_path / "last_checkpoint").read_text() == last


class SlowTrainer(ToyTrainer):
    def run_step(self) -> None:
        if self.iter == 4:
            signal_self()
            time.sleep(30)
        super().run_step()


def test_what_takes_too_long_is_broken_off_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(termination, "GRACE_SECONDS", 1)
    end(SlowTrainer(toy_cfg(tmp_path)))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


class SlowlySavingTrainer(ToyTrainer):
    def run_step(self) -> None:
        if self.iter == 4:
            signal_self()
        super().run_step()

    def state_dict(self) -> dict[str, Any]:
        if self.iter == 4:
            time.sleep(2)
        return super().state_dict()


def test_the_checkpoint_is_not_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "GRACE_SECONDS", 1)
    end(SlowlySavingTrainer(toy_cfg(tmp_path)))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"


class FailingTrainer(EvaluatedTrainer):
    def after_step(self) -> None:
        super().after_step()
        if self.iter == self.max_iter - 1:
            raise WriteError("the disk is full")


def test_after_an_error_nothing_is_evaluated(tmp_path: Path) -> None:
    EvaluatedTrainer.evaluations = 0
    trainer = FailingTrainer(toy_cfg(tmp_path, "DATASETS.TEST", ("any",), "SOLVER.MAX_ITER", 2))
    with pytest.raises(WriteError, match="the disk is full"):
        trainer.train()
    assert EvaluatedTrainer.evaluations == 0


def test_interrupt_leaves_a_folder_to_go_on_from(tmp_path: Path) -> None:
    train_toy(toy_cfg(tmp_path / "whole"))

    class Interrupted(ToyTrainer):
        def run_step(self) -> None:
            if self.iter == 4:
                signal_self(signal.SIGINT)
            super().run_step()

    trainer = Interrupted(toy_cfg(tmp_path / "cut"))
    trainer.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not list((tmp_path / "cut").glob(".*.tmp"))
    assert train_toy(toy_cfg(tmp_path / "cut"), resume=True).start_iter == 3


def test_workers_end_as_they_would_without_it() -> None:
    with Termination() as noted:
        child = os.fork()
        if child == 0:
            signal_self()
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not noted.requested
        with pytest.raises(Terminated), noted.interruptible(True):
            signal_self()
        with noted.interruptible(False):
            signal_self()
        assert noted.requested


def finish_after_sigterm(ready: Any, done: Path) -> None:
    with Termination() as termination:
        ready.set()
        while not termination.requested:
            time.sleep(0.01)
        time.sleep(0.2)
        done.write_text("saved")


def test_a_launcher_passes_it_on_and_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    events = [context.Event() for _ in range(2)]
    children = [
        context.Process(target=finish_after_sigterm, args=(event, tmp_path / str(rank)))
        for rank, event in enumerate(events)
    ]
    with passed_on_to_children():
        for child, event in zip(children, events, strict=True):
            child.start()
            assert event.wait(30)
        signal_self()
        for child in children:
            child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["saved", "saved"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_launcher_without_processes_ends() -> None:
    with passed_on_to_children(), pytest.raises(Terminated):
        signal_self()
