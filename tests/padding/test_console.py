# SPDX-License-Identifier: Apache-2.0
"""Console commands: which script each runs, and what it says where something is missing; a wheel: test_wheel.py."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from padding import console

ROOT = Path(__file__).parents[2]


def test_each_console_command_exists() -> None:
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name for name in commands if name.startswith("mss-")} == set(commands)
    for target in commands.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_commands_are_the_scripts_and_modules(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = (
        (console.train_command, "--eval-only"),
        (console.demo_command, "--confidence"),
        (console.graph_command, "--post-processing"),
        (console.pack_command, "safetensors"),
    )
    for function, option in commands:
        monkeypatch.setattr(sys, "argv", ["command", "--help"])
        with pytest.raises(SystemExit) as stopped:
            function()
        assert stopped.value.code == 0
        assert option in capsys.readouterr().out


def test_prepare_runs_the_named_preparation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["mss-prepare", "shapes", "--root", str(tmp_path), "--num-train", "1", "--num-val", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stopped:
        console.prepare_command()
    assert stopped.value.code == 0
    assert (tmp_path / "shapes/manifest.json").is_file()


def test_an_unknown_preparation_is_named_beside_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"shapes", "coco_zsp", "scribbles", "class_embeddings"} <= set(console.preparations())
    monkeypatch.setattr(sys, "argv", ["mss-prepare", "coco"])
    with pytest.raises(SystemExit) as stopped:
        console.prepare_command()
    assert stopped.value.code == 1
    assert "'coco' is not known; NAME is one of camvid" in capsys.readouterr().err


def test_missing_detectron2_is_one_line_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "detectron2" else find(name))
    with pytest.raises(SystemExit) as stopped:
        console.train_command()
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    listed = message.rstrip().rpartition(" -r ")[2]
    assert "detectron2" in Path(listed).read_text()
