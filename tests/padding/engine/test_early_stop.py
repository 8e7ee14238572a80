# SPDX-License-Identifier: Apache-2.0
"""A training that gains no more ends, and stays ended; the best is the highest or the lowest."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from padding.data.files import write_json
from padding.engine.checkpointer import read_training_checkpoint
from padding.engine.distributed import torchrun_process_group
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import ConfigError
from tests.toy_training import ToyTrainer, free_port, losses_by_iteration, toy_cfg, train_toy

SCORES = [1.0, 3.0, 2.0, 2.5, 4.0, 0.5, 5.0]
"""Of evaluations after iterations 1, 3, 5, 7, 9, 11 and 12."""


@TRAINER_REGISTRY.register()
class ScriptedTrainer(ToyTrainer):
    """The toy loop with evaluations whose scores are known beforehand."""

    evaluated: int

    def _evaluate(self) -> dict[str, Any]:
        type(self).evaluated = min(self.iter // 2, len(SCORES) - 1) if self.iter < 13 else len(SCORES) - 1
        return super()._evaluate()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        results = {"toy": {"score": SCORES[cls.evaluated]}}
        write_json(Path(cfg.OUTPUT_DIR) / "inference" / "metrics.json", {"toy_set": results})
        return results


def scripted_cfg(output: Path, *opts: Any) -> CfgNode:
    keys = ("TRAINER", "ScriptedTrainer", "DATASETS.TEST", ("toy_set",), "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 13)
    return toy_cfg(output, *keys, "TEST.BEST_METRIC", "toy/score", *opts)


@pytest.mark.parametrize(
    ("patience", "best_is", "last", "best"),
    [(2, "highest", 7, 3.0), (3, "highest", 12, 5.0), (2, "lowest", 5, 1.0), (0, "lowest", 12, 0.5)],
)
def test_training_ends_after_so_many_evaluations_without_gain(
    tmp_path: Path, patience: int, best_is: str, last: int, best: float
) -> None:
    trainer = train_toy(scripted_cfg(tmp_path, "TEST.PATIENCE", patience, "TEST.BEST_IS", best_is))
    assert max(losses_by_iteration(tmp_path)) == last
    assert trainer.ended_early == (last < 12)
    assert trainer._last_results["best"]["value"] == best
    assert read_training_checkpoint(tmp_path / "model_final.pth")["iteration"] == last
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert read_training_checkpoint(tmp_path / "model_best.pth")["best"]["value"] == best
    written = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("toy/score" in line for line in written) == (last + 1) // 2 + (last == 12)


def test_what_ended_early_is_not_trained_on(tmp_path: Path) -> None:
    train_toy(scripted_cfg(tmp_path, "TEST.PATIENCE", 2))
    before = losses_by_iteration(tmp_path)
    again = train_toy(scripted_cfg(tmp_path, "TEST.PATIENCE", 2), resume=True)
    assert again.start_iter == 8
    assert losses_by_iteration(tmp_path) == before
    # With more patience it goes on, and equals a training that was never stopped.
    train_toy(scripted_cfg(tmp_path, "TEST.PATIENCE", 3), resume=True)
    train_toy(scripted_cfg(tmp_path / "straight"))
    assert losses_by_iteration(tmp_path) == losses_by_iteration(tmp_path / "straight")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.BEST_METRIC", ""), "TEST.PATIENCE is 2, but there is nothing to wait for"),
        (("TEST.EVAL_PERIOD", 0), "TEST.PATIENCE is 2, but there is nothing to wait for"),
        (("TEST.PATIENCE", -1), "TEST.PATIENCE is -1; expected a number of evaluations"),
        (("TEST.BEST_IS", "large"), "TEST.BEST_IS is 'large'; expected one of highest, lowest"),
    ],
)
def test_keys_that_mean_nothing_are_refused(tmp_path: Path, opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScriptedTrainer(scripted_cfg(tmp_path, "TEST.PATIENCE", 2, *opts))


def train_rank(rank: int, port: int, output: Path) -> None:
    """One of two processes, as torchrun starts it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with torchrun_process_group("cpu"):
        trainer = train_toy(scripted_cfg(output, "TEST.PATIENCE", 2))
        (output / f"rank_{rank}").write_text(f"{trainer.iter} {trainer.ended_early}")


def test_all_processes_end_together(tmp_path: Path) -> None:
    """The best is known to the first process alone."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    children = [fork.Process(target=train_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in range(2)] == ["7 True"] * 2
