# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from benchmarks import panoptic_quality, semantic_iou


def test_panoptic_quality_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    panoptic_quality.main(["--pairs", "6", "--height", "60", "--width", "80"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["pairs"] == 6
    assert result["ratio"] > 0
    assert result["max_difference"] < 1e-9


def test_semantic_iou_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    semantic_iou.main(["--images", "2", "--height", "32", "--width", "64", "--classes", "7"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["size"] == [32, 64, 7]
    assert result["ratio"] > 0
    assert result["max_difference"] < 1e-9
