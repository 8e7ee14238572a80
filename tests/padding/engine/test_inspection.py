# SPDX-License-Identifier: Apache-2.0
"""The frame of the methods' plots: images by number or id, curves of named folders, numbers beside the picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from padding.data.class_split import ClassSplit
from padding.engine.inspection import Curves, Inspection, Strip, choose_entries, draw_plots
from tests.tiny_data import tiny_split

STRIP = ["strip", "--config-file", "c.yaml", "--weights", "w.pth", "--output", "x.png"]


class Named:
    def __init__(self, folder: Path, name: str) -> None:
        self.content = {"folder": str(folder), "name": name}

    def to_json(self) -> dict[str, Any]:
        return self.content


class Stems(Inspection[str]):
    architecture = "Stems"

    @classmethod
    def open(cls, config_file: str | Path, weights: str, opts: Sequence[str] = (), **chosen: Any) -> "Stems":
        assert (config_file, weights) == ("c.yaml", "w.pth")
        return cls(CfgNode(), None, **chosen)

    def prepare(self, cfg: CfgNode, model: None) -> tuple[ClassSplit, list[dict[str, Any]]]:
        return tiny_split(), [{"file_name": f"{name}.png", "image_id": name} for name in "abcdef"]

    def inspect(self, entry: dict[str, Any]) -> str:
        return Path(entry["file_name"]).stem


def run(words: list[str]) -> tuple[Path, list[Any]]:
    drawn: list[Any] = []

    strip = Strip("images", Stems, lambda path, images, inspection: drawn.extend([*images, len(inspection)]))
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


# --------------------------------------------------------------------------------------------- choosing entries

ENTRIES: list[dict[str, Any]] = [{"file_name": f"a/{name}.png", "image_id": i} for i, name in enumerate("pqrstuvwxy")]


def ids(entries: list[dict[str, Any]]) -> list[int]:
    return [entry["image_id"] for entry in entries]


@pytest.mark.parametrize(("number", "chosen"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (0, [*range(10)])])
def test_spread_from_the_first_to_the_last(number: int, chosen: list[int]) -> None:
    assert ids(choose_entries(ENTRIES, number=number)) == chosen
    assert choose_entries(ENTRIES, number=99) == ENTRIES


def test_by_id_or_stem_in_the_order_asked_for() -> None:
    assert ids(choose_entries(ENTRIES, ids=["s", "0"], number=5)) == [3, 0]
    twice = [*ENTRIES, {"file_name": "b/s.png", "image_id": 77}]
    assert ids(choose_entries(twice, ids=["s"])) == [3, 77]
    with pytest.raises(ValueError, match="no test image is called z, 44; the first ones are 0, p, 1, q"):
        choose_entries(ENTRIES, ids=["z", "p", "44"], what="test image")
