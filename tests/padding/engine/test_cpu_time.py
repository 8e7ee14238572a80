# SPDX-License-Identifier: Apache-2.0
"""CPU time is counted once, for the innermost stage; a training writes it down at its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from padding.engine import cpu_time
from padding.engine.cpu_time import counted_stages, process_cpu_seconds, stage
from tests.toy_training import ToyTrainer, toy_cfg


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [100.0]
    monkeypatch.setattr(cpu_time, "process_cpu_seconds", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    return work


def test_a_stage_inside_another_counts_for_itself_alone(clock: Any) -> None:
    with counted_stages() as seconds:
        clock(50)  # belongs to no stage
        with stage("training"):
            clock(1)
            with stage("evaluation"):
                clock(2)
                with counted_stages() as inner:
                    clock(3)
                assert inner.so_far() == {"evaluation": 3}
            clock(4)
            assert seconds.so_far() == {"training": 5, "evaluation": 5}
            with pytest.raises(ZeroDivisionError), stage("evaluation"):
                _ = clock(6), 1 / 0
        clock(70)
        with stage("training"):
            clock(7)
    with stage("training"):
        clock(80)  # nobody counts any more
    assert seconds.so_far() == {"training": 12, "evaluation": 11}
    assert inner.so_far() == {"evaluation": 3}


def test_work_takes_time() -> None:
    before = process_cpu_seconds()
    sum(range(3_000_000))
    assert process_cpu_seconds() > before


@pytest.mark.parametrize("tests", [(), ("any",)])
def test_a_training_writes_its_stages_once(tmp_path: Path, tests: tuple[str, ...]) -> None:
    class Evaluated(ToyTrainer):
        @classmethod
        def test(cls, cfg: Any, model: Any) -> dict[str, Any]:
            sum(range(300_000))
            return {"sem_seg": {"mIoU": 1.0}}

    Evaluated(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", tests)).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    spent = [{k: v for k, v in line.items() if k.startswith("cpu_seconds/")} for line in lines]
    names = {"cpu_seconds/training", *(["cpu_seconds/evaluation"] if tests else [])}
    assert [set(one) for one in spent] == [set()] * (len(spent) - 1) + [names]
    assert all(seconds > 0 for seconds in spent[-1].values())
    assert ("sem_seg/mIoU" in lines[-1]) == bool(tests)
