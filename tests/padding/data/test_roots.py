# SPDX-License-Identifier: Apache-2.0
"""Where data lie."""

from pathlib import Path

import pytest

from padding.data import roots
from padding.data.roots import data_root, find_config, project_dir, splits_dir
from padding.engine.commands import load_config

ROOT = Path(__file__).parents[3]


def test_data_root_follows_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    assert data_root() == Path("/somewhere")
    assert data_root("here") == Path("here")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert data_root() == Path("datasets")


def test_shipped_files_lie_in_the_checkout_or_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (splits_dir() / "shapes_zsp.txt").is_file()
    assert not (ROOT / "padding/shipped").exists()
    shipped = tmp_path / "padding/shipped"
    shipped.mkdir(parents=True)
    monkeypatch.setattr(roots, "__file__", str(tmp_path / "padding/data/roots.py"))
    assert project_dir() == shipped
    assert splits_dir() == shipped / "datasets/splits"


def test_shipped_configurations_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("configs/smoke/shapes_zsp.yaml")
    assert find_config(name) == ROOT / name
    assert load_config(str(name)).OUTPUT_DIR == "output/smoke/shapes_zsp"
    assert find_config("pyproject.toml") == Path("pyproject.toml")  # nothing but configurations
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("OUTPUT_DIR: mine\n")
    assert load_config(str(name)).OUTPUT_DIR == "mine"
