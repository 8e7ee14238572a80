# SPDX-License-Identifier: Apache-2.0
"""The run behind `make photos`, on the photographs that ship."""

import json
from pathlib import Path

import pytest

from benchmarks import photographs


@pytest.mark.smoke
@pytest.mark.usefixtures("restored_catalogs", "_lite0")
def test_samples_are_trained_on_and_drawn_where_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGMENTATION_TEST_DATA", "")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert photographs.main(["--preset", "smoke", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("$ python train_net.py") == 2
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["trained_on"] == "coco_samples"
    assert 0 <= last["mIoU_unseen"] <= 100
    assert (tmp_path / "smoke" / "photographs.png").stat().st_size > 0
    assert photographs.main(["--preset", "smoke", "--output", str(tmp_path)]) == 0
    assert "train_net.py" not in capsys.readouterr().out


def test_more_photographs_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco128_panoptic").mkdir()
    for variable, other in (
        ("SEGMENTATION_TEST_DATA", "DETECTRON2_DATASETS"),
        ("DETECTRON2_DATASETS", "SEGMENTATION_TEST_DATA"),
    ):
        monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.setenv(other, str(tmp_path / "nowhere"))
        assert photographs.find_photographs() == ("coco128", tmp_path)
