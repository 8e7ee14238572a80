# SPDX-License-Identifier: Apache-2.0
"""The run behind `make demo`: every stage, the table, the pictures; finished stages are not repeated."""

import json
from pathlib import Path

import pytest

from benchmarks import shapes_zsp
from padding.study import seen_bias


@pytest.mark.smoke
def test_whole_run_and_second_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert shapes_zsp.main(["--preset", "smoke", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for quantity in ("PQ", "SQ", "RQ"):
        for group in ("seen", "unseen", "hm"):
            assert 0 <= metrics["panoptic_seg"][f"{quantity}_{group}"] <= 100
    assert {"AUSUC", "best_hm"} <= set(metrics["panoptic_seg"])
    assert list(metrics["rows"]) == ["supervised", "projection", "PADing"]
    assert metrics["rows"]["supervised"][0]["panoptic_seg"]["PQ_unseen"] == 0
    for name in ("contact_sheet.png", "seen_unseen_curve.png", "table.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads(printed.strip().splitlines()[-1])["PQ_seen"] == metrics["panoptic_seg"]["PQ_seen"]
    assert printed.count("$ python train_net.py") == 4

    weights = sorted(tmp_path.glob("*/model_final.pth"))
    times = [path.stat().st_mtime_ns for path in weights]
    assert len(weights) == 4
    assert shapes_zsp.main(["--preset", "smoke", "--output", str(tmp_path)]) == 0
    assert "train_net.py" not in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in weights] == times
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["panoptic_seg"] == metrics["panoptic_seg"]
    trained = ("backbone", "segmentor", "second_stage", "extraction")
    assert set(metrics["cpu_seconds"]) == {"data", "setup", "evaluation", *trained}
    assert all(seconds > 0 for seconds in metrics["cpu_seconds"].values())
    assert sum(again["cpu_seconds"].get(name, 0.0) for name in trained) < metrics["cpu_seconds"]["backbone"]

    # The command line of the sweep reports the same numbers.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    options = ["MODEL.WEIGHTS", str(next(tmp_path.glob("padding_seed0_*/model_final.pth")))]
    swept = seen_bias.main(["--config-file", shapes_zsp.SECOND_STAGE, "--output", str(tmp_path / "swept"), *options])
    assert swept["PQ"]["AUSUC"] == pytest.approx(metrics["panoptic_seg"]["AUSUC"])
    assert json.loads((tmp_path / "swept/seen_unseen_curve.json").read_text())["PQ"] == swept["PQ"]
    assert (tmp_path / "swept/seen_unseen_curve.png").stat().st_size > 0


def test_missed_floor_is_named() -> None:
    preset = shapes_zsp.PRESETS["demo"]
    metrics = {"rows": {"PADing": [{"panoptic_seg": {"PQ_seen": 31.0, "PQ_unseen": 9.0, "PQ_hm": 14.0}}]}}
    assert shapes_zsp.shortfalls(metrics, preset) == ["PQ_unseen is 9.0, expected at least 10"]


def test_a_number_that_does_not_exist_misses_its_floor() -> None:
    preset = shapes_zsp.PRESETS["demo"]
    metrics = {"rows": {"PADing": [{"panoptic_seg": {"PQ_seen": 31.0, "PQ_unseen": float("nan"), "PQ_hm": 14.0}}]}}
    assert len(shapes_zsp.shortfalls(metrics, preset)) == 1
