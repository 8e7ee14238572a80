# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the look over the data measures every check on sound data."""

import pytest

from benchmarks import start_check
from padding.data import checks


def test_every_check_is_measured_on_sound_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_check, "_SIZE", (64, 96))
    result = start_check.measure(40)
    assert result["images"] == 40
    assert all(value >= 0 for value in result.values())
    assert 0 < result["ratio"] <= 1


def test_data_with_faults_are_not_measured() -> None:
    with pytest.raises(RuntimeError, match=r"the generated data have faults: .*no\.jpg.* do not exist"):
        start_check.seconds(lambda: checks.check_files("set", [{"file_name": "nowhere/no.jpg"}], ("file_name",)))
