# SPDX-License-Identifier: Apache-2.0
"""Command line of the embedded data set."""

import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import pytest

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_shapes.py"
SMALL = ["--num-train", "4", "--num-val", "2", "--size", "64", "--workers", "1"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_shapes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_write_then_check_then_damage(script: ModuleType, tmp_path: Path, capsys):
    root = ["--root", str(tmp_path)]
    assert script.main([*root, *SMALL]) == 0
    assert "6 rendered, 0 kept" in capsys.readouterr().out
    assert script.main([*root, "--check"]) == 0
    assert "complete and sound" in capsys.readouterr().out
    (tmp_path / "shapes/images/val/000000000002.png").unlink()
    assert script.main([*root, "--check"]) == 1
    out = capsys.readouterr().out
    assert "000000000002.png: missing" in out
    assert "2 problems" in out
    assert script.main([*root, *SMALL]) == 0
    assert "1 rendered, 5 kept" in capsys.readouterr().out


def test_other_seed_needs_overwrite(script: ModuleType, tmp_path: Path, capsys):
    arguments = ["--root", str(tmp_path), *SMALL]
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--seed", "1"]) == 2
    assert "seed 0 -> 1" in capsys.readouterr().err
    assert script.main([*arguments, "--seed", "1", "--overwrite"]) == 0


def test_default_root_is_detectron2s(script: ModuleType, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    assert script.parse_args([]).root == Path("elsewhere")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert script.parse_args([]).root == Path("datasets")


def test_preview_and_bad_numbers(script: ModuleType, tmp_path: Path, capsys):
    target = tmp_path / "new" / "sheet.png"
    assert script.main(["--root", str(tmp_path), "--size", "64", "--preview", str(target)]) == 0
    assert cv2.imread(str(target)).shape == (4 * 68, 6 * 68, 3)
    assert not (tmp_path / "shapes").exists()
    assert script.main(["--root", str(tmp_path), "--num-train", "-3"]) == 2
    assert "num_train" in capsys.readouterr().err
