# SPDX-License-Identifier: Apache-2.0
"""The doctor on configurations of every kind of data."""

from pathlib import Path

import pytest

from padding.engine.doctor import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["shapes_zsp", "shapes_zsi_pretrain", "shapes_tcc", "shapes_psi", "shapes_salseg"])
def test_a_configuration_is_looked_over(
    name: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "configs" / "smoke" / f"{name}.yaml"
    more = ["--evaluate"] if name in ("shapes_tcc", "shapes_zsi_pretrain") else []
    status = main(["--config-file", str(file), *more, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "note: " in shown
    assert "0 errors" in shown
    assert not (tmp_path / "out").exists()
