# SPDX-License-Identifier: Apache-2.0
"""Files of a preparation: complete or not there, and their summaries."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from padding.data.prepare.annotation_file import read_summary, replacing, write_annotation_file, write_summary


@dataclass
class Count:
    kept: int
    names: list[str]


def write_three(entries: TextIO) -> Mapping[str, Any]:
    entries.write(", ".join(json.dumps({"id": i}) for i in range(3)))
    return {"images": [], "info": {"name": "ä"}}


def write_half(target: Path) -> None:
    with replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")


def test_entries_follow_the_other_keys(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    size = write_annotation_file(target, write_three)
    content = json.loads(target.read_text())
    assert content == {"images": [], "info": {"name": "ä"}, "annotations": [{"id": 0}, {"id": 1}, {"id": 2}]}
    assert list(content)[-1] == "annotations"
    assert size == target.stat().st_size
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_nothing_but_entries_and_nothing_at_all(tmp_path: Path) -> None:
    write_annotation_file(tmp_path / "a.json", lambda _: {})
    assert json.loads((tmp_path / "a.json").read_text()) == {"annotations": []}


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_annotation_file(target, write_three)
    old = target.read_bytes()

    def fail(entries: TextIO) -> Mapping[str, Any]:
        entries.write("{}")
        raise RuntimeError("source is damaged")

    with pytest.raises(RuntimeError, match="damaged"):
        write_annotation_file(target, fail)
    with pytest.raises(TypeError):  # what JSON cannot hold
        write_annotation_file(target, lambda _: {"images": {1, 2}})
    with pytest.raises(RuntimeError, match="killed"):
        write_half(target)
    assert target.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_summary_belongs_to_a_file(tmp_path: Path) -> None:
    target, summary = tmp_path / "a.json", Count(3, ["cow"])
    write_summary(target, summary)
    assert read_summary(target, Count) is None  # no file yet
    target.write_text("{}")
    assert read_summary(target, Count) == summary
    file = tmp_path / "a.summary.json"
    for damaged in ('{"kept": 3}', "[]", "{"):
        file.write_text(damaged)
        assert read_summary(target, Count) is None
