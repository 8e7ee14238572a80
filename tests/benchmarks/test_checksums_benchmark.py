# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from benchmarks import checksums


def test_checksums_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    checksums.main(["--megabytes", "3", "--images", "20", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["ratios"]) == 5
    assert min(result["ratios"].values()) > 0
