# SPDX-License-Identifier: Apache-2.0
"""The benchmark of start-up times finds the scripts and counts the time of the process that it starts."""

import json
import subprocess

import pytest

from benchmarks import start_up


def test_all_scripts_are_measured() -> None:
    names = start_up.scripts()
    assert names[:2] == ["train_net.py", "demo.py"]
    assert "datasets/prepare_voc.py" in names
    assert all((start_up.ROOT / name).is_file() for name in names)


def test_help_is_compared_with_the_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_up, "REFERENCE", ("-c", "sum(range(3_000_000))"))
    start_up.main(["--only", "prepare_splits", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["reference_seconds"] > 0
    assert list(result["ratios"]) == ["datasets/prepare_splits.py"]
    assert result["ratios"]["datasets/prepare_splits.py"] > 0


def test_a_script_that_fails_is_no_fast_script() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        start_up.cpu_seconds(["-c", "raise SystemExit(2)"])
