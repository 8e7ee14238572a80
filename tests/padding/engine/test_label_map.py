# SPDX-License-Identifier: Apache-2.0
"""Index images: the labels come back from the file, colours are those of the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from PIL import Image

from padding.data.readers import read_label_map
from padding.engine.label_map import UNLABELED, class_colors, label_map_of, scored_labels, write_label_map


def test_labels_come_back_from_the_file_with_their_colors(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [UNLABELED, 2, 1]], dtype=np.uint8)
    colors = [(0, 0, 0), (128, 0, 0), (1, 2, 3)]
    write_label_map(tmp_path / "a.png", labels, colors)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        seen = np.array(image.convert("RGB"))
    assert seen.tolist() == [[[0, 0, 0], [128, 0, 0], [1, 2, 3]], [[224, 224, 192], [1, 2, 3], [128, 0, 0]]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_best_class_and_what_was_not_segmented() -> None:
    scores = torch.zeros(3, 2, 2)
    scores[:, 0, 0] = torch.tensor([0.2, 0.3, 0.5])
    scores[:, 0, 1] = torch.tensor([0.0, 1.0, 0.0])
    scores[:, 1, 1] = torch.tensor([0.9, 0.1, 0.0])
    found = label_map_of({"sem_seg": scores})
    assert found.dtype == np.uint8
    assert found.tolist() == [[2, 1], [UNLABELED, 0]]


def test_what_gives_no_label_map_is_named() -> None:
    with pytest.raises(ValueError, match=r"predicts \['instances'\]; switch MODEL\.MASK_FORMER\.TEST\.SEMANTIC_ON on"):
        label_map_of({"instances": None})
    assert scored_labels(torch.zeros(256, 1, 1)).tolist() == [[256]]
    with pytest.raises(ValueError, match="256 classes do not fit an index image, which has room for 255"):
        label_map_of({"sem_seg": torch.zeros(256, 1, 1)})


def test_colors_are_the_data_sets_own_where_it_has_them() -> None:
    names = [str(index) for index in range(100)]
    own = [[index, 0, 255] for index in range(100)]
    assert class_colors(Metadata(stuff_classes=names, stuff_colors=own))[7] == (7, 0, 255)
    made = class_colors(Metadata(stuff_classes=names))
    assert len(made) == 100
    assert len(set(made[:20])) == 20
    assert all(0 <= value <= 255 for color in made for value in color)
