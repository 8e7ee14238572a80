# SPDX-License-Identifier: Apache-2.0
"""The frame of the methods' plots: images by number or id, curves of named folders, numbers beside the picture."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from padding.engine.inspection import Curves, Inspection, Strip, draw_plots
from tests.tiny_data import tiny_split

STRIP = ["strip", "--config-file", "c.yaml", "--weights", "w.pth", "--output", "x.png"]


class Named:
    def __init__(self, folder: Path, name: str) -> None:
        self.content = {"folder": str(folder), "name": name}

    def to_json(self) -> dict[str, Any]:
        return self.content


class Stems(Inspection[str]):
    def inspect(self, entry: dict[str, Any]) -> str:
        return Path(entry["file_name"]).stem


def run(words: list[str]) -> tuple[Path, list[Any]]:
    drawn: list[Any] = []

    def inspect(args: Namespace) -> Stems:
        entries = [{"file_name": f"{name}.png", "image_id": name} for name in "abcdef"]
        return Stems(entries, tiny_split(), number=args.images, ids=args.ids, what="image")

    strip = Strip("images", inspect, lambda path, images, inspection: drawn.extend([*images, len(inspection)]))
    curves = Curves(
        "curves",
        "numbers",
        lambda folder, name, args: [Named(folder, name + args.suffix)],
        lambda path, found, args: drawn.extend(found),
        {"--suffix": {"default": "!"}},
    )
    return draw_plots(words, "text", strip, curves), drawn


def test_strip_takes_a_number_of_images_or_their_ids() -> None:
    assert run([*STRIP, "--images", "3"])[1][-1] == 3
    assert run(STRIP)[1][-1] == 4
    assert run([*STRIP, "--ids", "f", "b"])[1][-1] == 2
    for wrong in (["--images", "2", "--ids", "a"], ["--images", "0"], ["--images", "two"]):
        with pytest.raises(SystemExit):
            run([*STRIP, *wrong])
    with pytest.raises(ValueError, match="no image is called z"):
        run([*STRIP, "--ids", "z"])


def test_curves_are_named_and_their_numbers_written(tmp_path: Path) -> None:
    words = ["curves", "--results", "one=a/b", "c", "--output", str(tmp_path / "x.png")]
    output, drawn = run(words)
    assert output == tmp_path / "x.png"
    expected = [{"folder": "a/b", "name": "one!"}, {"folder": "c", "name": "!"}]
    assert [curve.content for curve in drawn] == json.loads((tmp_path / "x.json").read_text()) == expected
