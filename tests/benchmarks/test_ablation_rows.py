# SPDX-License-Identifier: Apache-2.0
"""Rows of an ablation table: which there are, what makes a run the same, and what is not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation_rows
from benchmarks.ablation_rows import (
    find_rows,
    headroom_shares,
    identity_of,
    metric_of,
    run_row,
    summarise,
    to_table,
)
from padding.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "row.yaml"
    path.write_text("SOLVER: {MAX_ITER: 3}\n")
    return path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def main(args: Any) -> dict[str, Any]:
        calls.append(args)
        return {"sem_seg": {"mIoU": 40.0 + len(calls)}}

    monkeypatch.setattr(ablation_rows.train_net, "main", main)
    return calls


def test_rows_are_the_ablations_of_the_data_and_the_method_last(tmp_path: Path) -> None:
    folder = tmp_path / "ablations" / "tcc"
    folder.mkdir(parents=True)
    for name in ("shapes_cps", "shapes_ccd", "voc_cps"):
        (folder / f"{name}.yaml").touch()
    (tmp_path / "shapes_tcc.yaml").touch()
    assert list(find_rows("tcc", "shapes", configs=tmp_path)) == ["ccd", "cps", "tcc"]
    assert list(find_rows("tcc", "shapes", ["tcc", "ccd"], configs=tmp_path)) == ["tcc", "ccd"]
    with pytest.raises(FileNotFoundError, match=r"no row cpss.*ccd, cps, tcc"):
        find_rows("tcc", "shapes", ["cpss"], configs=tmp_path)


def test_a_finished_run_is_not_repeated(config: Path, tmp_path: Path, trainings: list[Any]) -> None:
    first = run_row(config, tmp_path / "out", ["SEED", "1"])
    assert run_row(config, tmp_path / "out", ["SEED", "1"]) == first
    assert len(trainings) == 1
    assert trainings[0].resume
    assert json.loads((tmp_path / "out" / "row_result.json").read_text())["metrics"] == {"sem_seg": {"mIoU": 41.0}}


def test_a_folder_of_another_configuration_is_refused(config: Path, tmp_path: Path, trainings: list[Any]) -> None:
    run_row(config, tmp_path / "out", ["SEED", "1"])
    with pytest.raises(ValueError, match="another configuration"):
        run_row(config, tmp_path / "out", ["SEED", "2"])
    assert len(trainings) == 1


def test_identity_ignores_place_and_rhythm_only(config: Path) -> None:
    base = identity_of(config, [])
    assert identity_of(config, ["SOLVER.LOG_PERIOD", "7", "OUTPUT_DIR", "elsewhere"]) == base
    assert identity_of(config, ["SOLVER.MAX_ITER", "4"]) != base


def test_table_holds_mean_and_spread_and_leaves_out_what_a_row_lacks() -> None:
    runs = [{"metrics": {"sem_seg": {"mIoU": v}}, "cpu_seconds": 1.0} for v in (40.0, 42.0)]
    assert metric_of(runs[0]["metrics"], "sem_seg/mIoU") == 40.0
    assert metric_of(runs[0]["metrics"], "sem_seg_cnn/mIoU") is None
    names = ["sem_seg/mIoU", "sem_seg_cnn/mIoU"]
    table = to_table(summarise({"ccd": runs}, names), names)
    assert "41.0 ± 1.4" in table
    assert table.splitlines()[-1].split("|")[3].strip() == "-"


def test_a_task_is_found_below_the_data_set_that_has_it() -> None:
    several = {"a": {"sem_seg": {"mIoU": 40.0}}, "b": {"saliency": {"MAE": 0.1}}, "best": {"sem_seg": {"mIoU": 41.0}}}
    assert metric_of(several, "sem_seg/mIoU") == 40.0
    assert metric_of(several, "saliency/MAE") == 0.1
    assert metric_of(several, "best/sem_seg/mIoU") == 41.0
    assert metric_of({"best": several["best"]}, "sem_seg/mIoU") is None


def test_fractions_have_three_decimals() -> None:
    runs = [{"metrics": {"saliency": {"MAE": v, "max_F": 90.0}}, "cpu_seconds": 1.0} for v in (0.0312, 0.0334)]
    names = ["saliency/MAE", "saliency/max_F"]
    table = to_table(summarise({"uniform": runs}, names), names)
    assert "0.032 ± 0.002" in table
    assert "90.0 ± 0.0" in table


def test_share_of_the_headroom() -> None:
    rows = {
        "supervised": {"mIoU": [40.0, 42.0], "cpu_seconds": [60.0, 60.0]},
        "method": {"mIoU": [44.0], "cpu_seconds": [90.0]},
        "all_labels": {"mIoU": [50.0, 52.0], "cpu_seconds": [60.0]},
        "unfinished": {"mIoU": [], "cpu_seconds": [30.0]},
    }
    shares = headroom_shares(rows, "mIoU", "supervised", "all_labels")
    assert shares == pytest.approx({"supervised": 0.0, "method": 30.0, "all_labels": 100.0})
    lines = to_table(rows, ["mIoU"], shares).splitlines()
    assert "of the headroom" in lines[0]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["method", "44.0", "30 %", "1", "1.5"]
    assert [cell.strip() for cell in lines[5].strip("|").split("|")][2] == "-"
    with pytest.raises(ConfigError, match="the row dense, which has no mIoU; rows: supervised, method"):
        headroom_shares(rows, "mIoU", "supervised", "dense")
    with pytest.raises(ConfigError, match=r"method has 44.0 mIoU and all_labels 51.0, so nothing can be gained"):
        headroom_shares(rows, "mIoU", "all_labels", "method")
