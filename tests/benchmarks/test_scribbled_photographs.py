# SPDX-License-Identifier: Apache-2.0
"""The run behind `make scribbles`, on the photographs that ship."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scribbled_photographs
from padding.data.class_split import read_name_list
from padding.data.readers import read_label_map


@pytest.mark.usefixtures("restored_catalogs")
def test_samples_become_a_folder_of_ones_own(tmp_path: Path) -> None:
    scribbled_photographs.write_folder(tmp_path)
    names = read_name_list(tmp_path / "classes.txt")
    assert {"giraffe", "bus", "horse", "sky-other-merged"} <= set(names)
    images = sorted((tmp_path / "images").iterdir())
    assert len(images) == 14
    for image in images:
        labels = read_label_map(tmp_path / "labels" / f"{image.stem}.png")
        scribbles = read_label_map(tmp_path / "scribbles" / f"{image.stem}.png")
        drawn = scribbles != 255
        assert 0.005 < drawn.mean() < 0.2
        assert np.array_equal(scribbles[drawn], labels[drawn]), "a stroke leaves its object"
        assert set(np.unique(labels)) <= {*range(len(names)), 255}


@pytest.mark.slow
@pytest.mark.usefixtures("restored_catalogs", "_lite0")
def test_strokes_are_learned_from_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "smoke", "--output", str(tmp_path)]
    assert scribbled_photographs.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("$ python train_net.py") == 1
    last = json.loads(printed.strip().splitlines()[-1])
    assert 0 < last["drawn"] < last["labeled"] <= 100
    assert (tmp_path / "smoke" / "scribbles.png").stat().st_size > 0
    assert scribbled_photographs.main(words) == 0
    assert "train_net.py" not in capsys.readouterr().out
