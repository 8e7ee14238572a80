# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from benchmarks import packed_model


def test_packed_model_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    packed_model.main(["--config-file", "configs/smoke/shapes_tcc.yaml", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["megabytes"]["one file"] == pytest.approx(result["megabytes"]["checkpoint"], rel=0.2)
    assert result["ratio"] > 0
