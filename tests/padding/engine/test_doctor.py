# SPDX-License-Identifier: Apache-2.0
"""The doctor: findings of a configuration and of a COCO file, exit status, JSON."""

import json
from pathlib import Path

import pytest

from padding.engine.doctor import main
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic


@pytest.fixture
def panoptic(tmp_path: Path) -> TinyPanoptic:
    return write_tiny_panoptic(tmp_path)


def words(data: TinyPanoptic, *more: str) -> list[str]:
    folders = ["--images", str(data.root / "images"), "--panoptic", str(data.root / "panoptic")]
    return ["--json", str(data.root / "panoptic.json"), *folders, *more]


def test_a_sound_panoptic_file_passes(panoptic: TinyPanoptic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(panoptic)) == 0
    shown = capsys.readouterr().out
    assert "note: " in shown
    assert shown.endswith("0 errors, 0 warnings\n")


def test_errors_are_all_shown_and_written(
    panoptic: TinyPanoptic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = panoptic.read_panoptic_json()
    content["images"][0]["width"] += 1
    content["annotations"][1]["segments_info"][0]["id"] = 12345
    panoptic.write_panoptic_json(content)
    assert main(words(panoptic, "--output", str(tmp_path / "found.json"))) == 1
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    errors = [finding["text"] for finding in written["findings"] if finding["level"] == "error"]
    assert written["error"] == len(errors) >= 2
    assert any("its annotations say" in text for text in errors)
    assert all(text in shown for text in errors)


def test_a_file_that_cannot_be_used_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    assert main(["--json", str(tmp_path / "a.json"), "--images", str(tmp_path)]) == 1


def test_wrong_arguments_have_status_two(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", "a.json"])
    assert main(["--config-file", str(tmp_path / "nowhere.yaml")]) == 2
