# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs at a small size and its last line is what it promises; at the real size it keeps the promise."""

import json

import pytest

from benchmarks.pattern_propagation import main, peak_of


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sizes", "6", "17", "--channels", "8", "--batch", "1", "--repeats", "1", "--all"])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert {"time_ratio", "memory_ratio", "time_ratio_6", "memory_ratio_6"} <= set(result)
    assert (result["backend_6"], result["backend"]) == ("dense", "banded")
    assert result["time_ratio"] > 0
    assert 0 <= result["max_difference"] <= 1e-5
    assert sum(line.startswith("17 ") for line in lines) == 4


def test_memory_is_less_than_half_of_unfold() -> None:
    peaks = {name: peak_of(name, 64, 256, 1) for name in ("banded", "dense", "shift", "unfold")}
    assert all(peaks[name] < 0.5 * peaks["unfold"] for name in ("banded", "dense", "shift")), peaks
