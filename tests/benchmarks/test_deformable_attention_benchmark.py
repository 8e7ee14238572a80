# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs at a small size and its last line is what it promises."""

import json

import pytest

from benchmarks.deformable_attention import main


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--height", "64", "--width", "90", "--num-heads", "2", "--channels-per-head", "4", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tokens"] == 2 * 3 + 4 * 6 + 8 * 12
    assert result["forward_ratio"] > 0
    assert result["backward_ratio"] > 0
    assert 0 <= result["max_relative_error"] <= 1e-5
