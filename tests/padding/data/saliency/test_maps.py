# SPDX-License-Identifier: Apache-2.0
"""Reading saliency: grey maps of every kind that is published, and saliency derived from class labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from padding.data.readers import read_label_map
from padding.data.saliency.maps import has_saliency, read_grey_map, read_saliency, saliency_target, saliency_to_bytes

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def saved(path: Path, image: Any) -> str:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return str(path)


def test_grey_map_is_scaled_to_one_and_known_everywhere(tmp_path: Path) -> None:
    saliency, known = read_saliency({"file_name": "x", "saliency_file_name": saved(tmp_path / "a.png", RAMP)})
    assert (saliency.dtype, known.dtype) == (np.float32, np.bool_)
    np.testing.assert_array_equal(saliency, RAMP.astype(np.float32) / np.float32(255))
    assert known.all()
    np.testing.assert_array_equal(saliency_to_bytes(saliency), RAMP)


def test_all_bytes_survive_the_way_to_floats_and_back() -> None:
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(saliency_to_bytes(grey.astype(np.float32) / np.float32(255)), grey)


def test_black_and_white_in_every_mode_of_image(tmp_path: Path) -> None:
    """A mask may have one bit, a palette whose indices are 0 and 1, three equal channels, or an alpha channel."""
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:] = True
    grey = mask.astype(np.uint8) * 255
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    files = {
        "bit": saved(tmp_path / "bit.png", Image.fromarray(mask)),
        "palette": saved(tmp_path / "palette.png", palette),
        "rgb": saved(tmp_path / "rgb.png", Image.fromarray(grey).convert("RGB")),
        "alpha": saved(tmp_path / "alpha.png", Image.fromarray(grey).convert("LA")),
    }
    for path in files.values():
        np.testing.assert_array_equal(read_grey_map(path), grey)
    assert read_label_map(files["palette"]).max() == 1, "the reader of labels takes the indices"


def test_jpeg_map_is_accepted(tmp_path: Path) -> None:
    grey = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((8, 8), np.uint8))
    for mode in ("L", "RGB"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(grey).convert(mode).save(path, quality=95)
        assert np.abs(read_grey_map(path).astype(int) - grey).max() <= 8


def test_files_that_are_no_saliency_map(tmp_path: Path) -> None:
    colors = np.zeros((4, 5, 3), np.uint8)
    colors[1] = (200, 30, 30)
    with pytest.raises(ValueError, match=r"colors\.png: a saliency map is a grey image, this one has colours"):
        read_grey_map(saved(tmp_path / "colors.png", colors))
    with pytest.raises(ValueError, match=r"deep\.png: a saliency map is an 8-bit grey image, this one has mode I;16"):
        read_grey_map(saved(tmp_path / "deep.png", np.full((4, 5), 3000, np.uint16)))
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file; obtain or generate it again"):
        read_grey_map(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: cannot be decoded .*obtain or generate it again"):
        read_grey_map(tmp_path / "text.png")


def test_derived_saliency_takes_the_salient_classes_and_keeps_void(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
    entry = {"file_name": "x", "sem_seg_file_name": saved(tmp_path / "l.png", labels), "salient_classes": (2, 0)}
    saliency, known = read_saliency(entry)
    np.testing.assert_array_equal(saliency, [[1, 0, 1, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(known, [[True, True, True, False], [True, True, True, True]])


def test_derived_saliency_translates_the_values_of_the_file(tmp_path: Path) -> None:
    """Value 9 is class 1, value 4 class 0, value 11 void."""
    labels = np.array([[9, 4, 11]], np.uint8)
    entry: dict[str, Any] = {
        "file_name": "x",
        "sem_seg_file_name": saved(tmp_path / "l.png", labels),
        "salient_classes": (1,),
        "sem_seg_label_map": {4: 0, 9: 1, 11: 255},
    }
    saliency, known = read_saliency(entry)
    assert (saliency.tolist(), known.tolist()) == ([[1, 0, 0]], [[True, True, False]])
    with pytest.raises(ValueError, match=r"l\.png: holds the values \[9\], which the sem_seg_label_map"):
        read_saliency({**entry, "sem_seg_label_map": {4: 0, 11: 255}})


def test_a_map_of_its_own_goes_before_labels(tmp_path: Path) -> None:
    entry = {"sem_seg_file_name": "nowhere", "salient_classes": (1,)}
    both = {**entry, "file_name": "x", "saliency_file_name": saved(tmp_path / "a.png", RAMP)}
    assert read_saliency(both)[0].shape == RAMP.shape


def test_entries_without_saliency(tmp_path: Path) -> None:
    for entry in ({}, {"sem_seg_file_name": "l.png"}, {"salient_classes": (1,)}):
        assert not has_saliency(entry)
        with pytest.raises(ValueError, match=r"street\.png: has no saliency, .* name a saliency set in DATASETS"):
            read_saliency({"file_name": "street.png", **entry})
    assert has_saliency({"saliency_file_name": "a.png"})
    assert has_saliency({"sem_seg_file_name": "a.png", "salient_classes": ()})


def test_another_size_than_the_image_is_an_error(tmp_path: Path) -> None:
    entry = {"file_name": "x", "saliency_file_name": saved(tmp_path / "a.png", RAMP), "height": 6, "width": 8}
    read_saliency(entry)
    with pytest.raises(ValueError, match=r"a\.png: the file is 6 x 8 .*say 6 x 9"):
        read_saliency({**entry, "width": 9})


def test_target_is_one_above_128() -> None:
    grey = np.array([[0, 127, 128, 129, 255]], np.uint8)
    assert saliency_target(grey, binarize=True).tolist() == [[0, 0, 0, 1, 1]]
    np.testing.assert_allclose(saliency_target(grey, binarize=False), grey / 255, rtol=1e-6)
