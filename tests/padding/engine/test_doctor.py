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


def test_every_problem_of_the_file_is_shown(panoptic: TinyPanoptic, capsys: pytest.CaptureFixture[str]) -> None:
    content = panoptic.read_panoptic_json()
    content["images"][1]["id"] = content["images"][0]["id"]
    content["annotations"][2]["segments_info"][1]["id"] = content["annotations"][2]["segments_info"][0]["id"]
    panoptic.write_panoptic_json(content)
    assert main(words(panoptic)) == 1
    shown = capsys.readouterr().out
    assert "image id 1 stands 2 times, first for 000000000001.png and 000000000002.png" in shown
    assert "more than once; give every segment its own id" in shown


def test_areas_are_compared_with_pixels(panoptic: TinyPanoptic, capsys: pytest.CaptureFixture[str]) -> None:
    content = panoptic.read_panoptic_json()
    segment = content["annotations"][0]["segments_info"][0]
    segment["area"] += 1
    content["annotations"][1]["segments_info"][0]["area"] = -5
    panoptic.write_panoptic_json(content)
    assert main(words(panoptic)) == 0
    text = f"segment {segment['id']} of 000000000001.png has {segment['area']} for {segment['area'] - 1}; pixels count"
    assert f"warning: {panoptic.root / 'panoptic.json'}: 2 segments have another 'area' than pixels, first: {text}" in (
        capsys.readouterr().out
    )


def test_a_file_that_cannot_be_used_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    assert main(["--json", str(tmp_path / "a.json"), "--images", str(tmp_path)]) == 1


def test_wrong_arguments_have_status_two(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", "a.json"])
    assert main(["--config-file", str(tmp_path / "nowhere.yaml")]) == 2
