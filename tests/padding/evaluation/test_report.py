# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from padding.data.files import write_json, write_text
from padding.evaluation.grouping import ClassGroups, grouped_results
from padding.evaluation.report import Report, build_report, publish

GROUPS = ClassGroups(("cat", "dog", "sea"), (0, 1), (2,), frozenset({0, 1}), (1, 2, 11))


@pytest.fixture
def report() -> Report:
    per_class = {"PQ": np.array([50.0, 0.0, np.nan])}
    counted = np.array([True, True, False])
    results = {**grouped_results(per_class, counted, GROUPS), "PQ_things": 25.0}
    columns = {**per_class, "TP": np.array([4, 0, 0])}
    return build_report("panoptic_seg", results, ("PQ",), columns, counted, GROUPS)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_group_table(report: Report) -> None:
    lines = [cells(line) for line in report.group_table().splitlines()]
    assert lines[0] == ["classes", "PQ", "counted"]
    assert lines[2:] == [
        ["all", "25.00", "2 of 3"],
        ["seen", "25.00", "2 of 2"],
        ["unseen", "–", "0 of 1"],
        ["harmonic mean", "–", "–"],
    ]


def test_class_table(report: Report) -> None:
    lines = [cells(line) for line in report.class_table().splitlines()]
    assert lines[0] == ["id", "name", "group", "counted", "PQ", "TP"]
    assert lines[2] == ["0", "cat", "seen", "yes", "50.00", "4"]
    assert lines[4] == ["2", "sea", "unseen", "no", "–", "0"]


def test_json_is_strict(report: Report) -> None:
    content = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert content["results"]["PQ_unseen"] is None
    assert content["results"]["PQ_seen"] == 25.0
    assert content["absent_classes"] == ["sea"]
    assert content["per_class"][0] == {"id": 0, "name": "cat", "group": "seen", "counted": True, "PQ": 50.0, "TP": 4}


def test_markdown_lists_what_the_tables_do_not(report: Report) -> None:
    text = report.to_markdown()
    assert "- PQ_things: 25.00" in text
    assert "- PQ_seen" not in text
    assert "1 absent classes: sea." in text


def test_publish_logs_and_writes(report: Report, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        publish(report, tmp_path / "new" / "folder")
    assert "harmonic mean" in caplog.text
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["panoptic_seg_per_class.json", "panoptic_seg_per_class.md"]
    publish(report, None)  # logs only


def test_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError, match="taken"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    write_text(tmp_path / "file", "old")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_json_of_any_content_is_strict(tmp_path: Path) -> None:
    content = {"a": float("nan"), "b": [1.5, (float("nan"), "x")], "c": {"d": True, "e": None}}
    write_json(tmp_path / "new" / "a.json", content)
    text = (tmp_path / "new" / "a.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"a": None, "b": [1.5, [None, "x"]], "c": {"d": True, "e": None}}
