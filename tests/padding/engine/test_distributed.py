# SPDX-License-Identifier: Apache-2.0
"""Recognising torchrun and its restarts (training with several processes is in test_trainer.py)."""

from pathlib import Path

import pytest
import torch

from padding.engine import distributed
from padding.engine.distributed import launched_by_torchrun, restarted_by_torchrun, torchrun_process_group
from tests.toy_training import ToyTrainer, toy_cfg, train_toy


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that torchrun gives to a single process."""
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_plain_python_is_no_restart(tmp_path: Path) -> None:
    assert not launched_by_torchrun()
    assert not restarted_by_torchrun(tmp_path)
    assert not list(tmp_path.iterdir())


def test_restart_count_and_the_same_agent_are_restarts(torchrun: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert launched_by_torchrun()
    assert not restarted_by_torchrun(tmp_path / "a")  # first start
    assert restarted_by_torchrun(tmp_path / "a")  # same agent again: the set of machines changed
    torchrun.setattr(distributed.os, "getppid", lambda: 1)
    assert not restarted_by_torchrun(tmp_path / "a")  # the user started torchrun anew
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted_by_torchrun(tmp_path / "b")


def test_a_restart_resumes_by_itself(torchrun: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train_toy(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 4))
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 4


def test_a_restart_never_resumes_an_older_training(torchrun: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first start is fresh; it fails before its first checkpoint; the restart must be fresh too."""
    torchrun.delenv("RANK")
    train_toy(toy_cfg(tmp_path))
    torchrun.setenv("RANK", "0")
    for count in ("0", "1"):
        torchrun.setenv("TORCHELASTIC_RESTART_COUNT", count)
        trainer = ToyTrainer(toy_cfg(tmp_path))
        trainer.resume_or_load(resume=False)
        assert trainer.start_iter == 0


def test_more_processes_than_gpus_is_an_error(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    torchrun.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(RuntimeError, match=r"process 1 on a machine with 1 GPU.*--nproc-per-node"),
        torchrun_process_group("cuda"),
    ):
        pass
