# SPDX-License-Identifier: Apache-2.0
"""The best evaluation and its weights: kept apart from the last ones, and the same after a resume."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from padding.data.files import write_json
from padding.engine.best_checkpoint import BestCheckpoint
from padding.engine.checkpointer import read_training_checkpoint
from padding.engine.trainer import TRAINER_REGISTRY
from padding.modeling.weights.checkpoint import read_checkpoint
from tests.toy_training import ToyTrainer, toy_cfg, train_toy


def score_of(weights: dict[str, torch.Tensor]) -> float:
    """A number that jumps up and down while the weights move a little."""
    return math.sin(1e4 * float(weights["head.bias"].double().sum()))


@TRAINER_REGISTRY.register()
class ScoredTrainer(ToyTrainer):
    """The toy loop with an evaluation that costs nothing."""

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        results = {"toy": {"score": score_of(model.state_dict()), "other": 2.0}}
        write_json(Path(cfg.OUTPUT_DIR) / "inference" / "metrics.json", {"toy_set": results})
        return results


def scored_cfg(output: Path, *opts: Any) -> CfgNode:
    keys = ("TRAINER", "ScoredTrainer", "DATASETS.TEST", ("toy_set",), "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 13)
    return toy_cfg(output, *keys, "TEST.BEST_METRIC", "toy/score", *opts)


def scores_by_iteration(output: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    # The evaluation after the last iteration is logged one later.
    return {min(line["iteration"], 12): line["toy/score"] for line in lines if "toy/score" in line}


def test_best_and_last_are_kept_apart(tmp_path: Path) -> None:
    trainer = train_toy(scored_cfg(tmp_path))
    scores = scores_by_iteration(tmp_path)
    assert sorted(scores) == [1, 3, 5, 7, 9, 11, 12]
    best = max(scores, key=scores.__getitem__)
    assert best != 12  # or the test would show nothing
    results = trainer._last_results
    assert results["toy"]["score"] == scores[12]
    assert results["best"] == {
        "value": scores[best],
        "iteration": best,
        "toy": {"score": scores[best], "other": 2.0},
    }
    written = json.loads((tmp_path / "inference" / "metrics.json").read_text())
    assert written["toy_set"]["toy"]["score"] == scores[12]
    assert written["best"] == {"metric": "toy/score", "file": "model_best.pth", **results["best"]}
    assert score_of(read_checkpoint(tmp_path / "model_best.pth")) == scores[best]
    assert score_of(read_checkpoint(tmp_path / "model_final.pth")) == scores[12]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("end", [6, 9, 12])
def test_resume_keeps_the_record(tmp_path: Path, end: int) -> None:
    straight = train_toy(scored_cfg(tmp_path / "straight"))
    train_toy(scored_cfg(tmp_path / "cut", "SOLVER.MAX_ITER", 13, "SOLVER.CHECKPOINT_PERIOD", end))
    # As if killed after the evaluation that follows the checkpoint: the record may be of a later iteration.
    (tmp_path / "cut" / "last_checkpoint").write_text(f"model_{end - 1:07d}.pth")
    resumed = train_toy(scored_cfg(tmp_path / "cut"), resume=True)
    assert resumed.start_iter == end
    assert resumed._last_results == straight._last_results
    first, second = (read_training_checkpoint(tmp_path / run / "model_best.pth") for run in ("straight", "cut"))
    assert first["best"] == second["best"]
    for name, value in first["model"].items():
        assert torch.equal(second["model"][name], value), name


def test_finished_training_reports_its_record_again(tmp_path: Path) -> None:
    done = train_toy(scored_cfg(tmp_path))
    again = train_toy(scored_cfg(tmp_path), resume=True)
    assert again._last_results == done._last_results


def keeper(folder: Path, metric: str = "task/score") -> BestCheckpoint:
    torch.manual_seed(0)
    return BestCheckpoint(nn.Linear(1, 1), folder, metric)


def test_record_is_the_first_of_equal_ones_and_no_number_is_none(tmp_path: Path) -> None:
    best = keeper(tmp_path)
    best.begin(0)
    assert best.update({"task": {"score": float("nan")}}, 1) is None
    assert not (tmp_path / "model_best.pth").exists()
    values = {3: 2.0, 5: 4.0, 7: 4.0, 9: 1.0, 11: float("nan")}
    records = [best.update({"task": {"score": value}}, iteration) for iteration, value in values.items()]
    assert [record.iteration for record in records if record is not None] == [3, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("start", "metric", "message"),
    [
        (0, "task/score", "belongs to another training"),
        (9, "task/other", r"is the best by task/score, TEST\.BEST_METRIC is task/other"),
        (5, "task/score", "is of iteration 7, the training goes on from 5"),
    ],
)
def test_what_belongs_elsewhere_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: int, metric: str, message: str
) -> None:
    keeper(tmp_path).update({"task": {"score": 3.0}}, 7)
    best = keeper(tmp_path, metric)
    with caplog.at_level(logging.WARNING):
        best.begin(start)
    assert best.record is None
    assert re.search(f"{message}; it is kept as", caplog.text)
    assert [path.name for path in tmp_path.iterdir()] == ["model_best.pth.previous"]


def test_damaged_file_does_not_stop_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model_best.pth").write_bytes(b"cut")
    best = keeper(tmp_path)
    best.begin(4)
    assert "cannot be read as the best checkpoint" in caplog.text
    assert best.update({"task": {"score": 3.0}}, 5).value == 3.0
    torch.save({"model": {}}, tmp_path / "model_best.pth")
    keeper(tmp_path).begin(4)
    assert (tmp_path / "model_best.pth.previous").exists()


def test_unknown_metric_names_the_known_ones(tmp_path: Path) -> None:
    results = {"first": {"sem_seg": {"mIoU": 1.0}}, "second": {"sem_seg": {"mIoU": 2.0}}}
    with pytest.raises(ValueError, match=r"'sem_seg/mIoU'.*: first/sem_seg/mIoU, second/sem_seg/mIoU"):
        keeper(tmp_path, "sem_seg/mIoU").update(results, 0)
    assert keeper(tmp_path, "second/sem_seg/mIoU").update(results, 0).value == 2.0


def test_without_the_key_nothing_is_kept(tmp_path: Path) -> None:
    trainer = train_toy(scored_cfg(tmp_path, "TEST.BEST_METRIC", ""))
    assert "best" not in trainer._last_results
    assert not (tmp_path / "model_best.pth").exists()
