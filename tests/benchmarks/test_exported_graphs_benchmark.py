# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from benchmarks import exported_graphs


@pytest.mark.slow
def test_exported_graphs_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported_graphs.main(["--config-file", "configs/smoke/shapes_salseg.yaml", "--size", "64", "--repeats", "1"])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"].values()
    assert row["differences"]["logits"] < 1e-3
    assert row["ratio"] > 0
