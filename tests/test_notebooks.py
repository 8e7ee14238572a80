# SPDX-License-Identifier: Apache-2.0
"""The notebooks: stored without outputs, code that parses and imports what exists; run as they stand by a slow test."""

import ast
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
FIRST_PARTY = ("padding", "tcc", "psi", "salseg")


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_is_one_for_each_method() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["saliency", "scribbles", "semi_supervised", "zero_shot"]
    page = (ROOT / "docs/notebooks.md").read_text()
    assert all(f"notebooks/{path.name}" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_have_no_outputs_and_import_what_exists(path: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imported if node.module and node.module.split(".")[0] in FIRST_PARTY]
    assert ours
    for node in ours:
        spec = importlib.util.find_spec(node.module or "")
        assert spec is not None, node.module
        text = Path(spec.origin or "").read_text()
        assert all(alias.name in text for alias in node.names), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(pictures) == 1
    assert (tmp_path / "output/notebooks" / path.stem).is_dir()
