# SPDX-License-Identifier: Apache-2.0
"""metrics.json holds each iteration once, whatever interrupted the training."""

import json
from pathlib import Path
from typing import Any

import pytest

from padding.engine.records import METRICS, forget_from, mean_losses
from tests.toy_training import ToyTrainer, toy_cfg, train_toy


def line(iteration: int, **values: float) -> dict[str, Any]:
    return {"iteration": iteration, **values}


def write(path: Path, *lines: dict[str, Any] | str) -> None:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text().splitlines()]


def test_what_will_be_written_again_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    before = [line(i, lr=0.1, loss=float(i)) for i in range(6)]
    write(path, *before)
    forget_from(path, 4)
    assert read(path) == before[:4]
    forget_from(path, 4)
    assert read(path) == before[:4]
    forget_from(tmp_path / "absent.json", 4)


def test_a_line_that_was_cut_goes_and_the_next_does_not_join_it(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(line(0, lr=0.1)) + '\n{"iteration": 1, "lr"')
    forget_from(path, 2)
    assert read(path) == [line(0, lr=0.1)]
    write(path, line(0, lr=0.1), "[]", "7", '{"iteration": null}', line(1, lr=0.2))
    forget_from(path, 9)
    assert read(path) == [line(0, lr=0.1), line(1, lr=0.2)]


def test_results_after_the_last_iteration_stay_when_a_training_is_lengthened(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write(path, line(3, lr=0.1, loss=1.0), line(4, **{"sem_seg/mIoU": 50.0}))
    forget_from(path, 4)
    assert read(path) == [line(3, lr=0.1, loss=1.0, **{"sem_seg/mIoU": 50.0})]


def test_a_new_training_keeps_the_old_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write(path, line(0, lr=0.1))
    forget_from(path, 0)
    assert not path.exists()
    assert read(tmp_path / "m.json.previous") == [line(0, lr=0.1)]


@pytest.mark.parametrize("name", ["model_0000002.pth", "model_0000005.pth"])
def test_a_resumed_training_repeats_no_iteration(tmp_path: Path, name: str) -> None:
    train_toy(toy_cfg(tmp_path))
    whole = read(tmp_path / METRICS)
    (tmp_path / "last_checkpoint").write_text(name)
    train_toy(toy_cfg(tmp_path), resume=True)
    again = read(tmp_path / METRICS)
    assert [entry["iteration"] for entry in again] == list(range(8))
    assert [entry["total_loss"] for entry in again] == [entry["total_loss"] for entry in whole]


def test_nothing_is_opened_before_training_starts(tmp_path: Path) -> None:
    ToyTrainer(toy_cfg(tmp_path))
    assert not list(tmp_path.iterdir())


def test_means_over_the_ranks_that_have_a_loss() -> None:
    found = mean_losses([{"loss_a": 1.0, "loss_b": 4.0, "norm": 9.0}, {"loss_a": 3.0}])
    assert found == {"total_loss": 6.0, "loss_a": 2.0, "loss_b": 4.0, "norm": 9.0}
    assert next(iter(found)) == "total_loss"
    assert mean_losses([{"loss_a": 1.0}]) == {"loss_a": 1.0}
