# SPDX-License-Identifier: Apache-2.0
"""Tables of colors in the forms tools write, and pictures read by them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.prepare.color_labels import color_label_pairs, read_color_labels, read_color_table
from padding.errors import DataError

COLORS = ((0, 0, 0), (128, 64, 128), (255, 0, 9))
NAMES = ("background", "road way", "car, parked")
FORMS = {
    "CVAT": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad way:128,64,128::\ncar, parked:255,0,9:a:b\n",
    "table with a header": "name,r,g,b\nbackground,0,0,0\nroad way,128,64,128\n\ncar, parked, 255, 0, 9\n",
    "numbers first": "0 0 0 background\r\n128 64 128\troad way\r\n255 0 9\t\tcar, parked\r\n",
    "hexadecimal": "background #000000\nroad way,#804080\ncar, parked;#FF0009\n",
}


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "labelmap.txt"
    path.write_text(FORMS["CVAT"])
    return path


@pytest.mark.parametrize("form", FORMS)
def test_tables_in_every_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "colors.txt"
    path.write_bytes(FORMS[form].encode())
    table = read_color_table(path)
    assert (table.names, table.colors) == (NAMES, COLORS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("road:1,2", "line 2: 'road:1,2' is no class with a color"),
        ("1,2,3,4", "may be read in two ways"),
        ("road,256,0,0", "a channel above 255"),
        ("road,0,0,0", "background has this color too"),
        ("background,1,0,0", "background stands there twice"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "colors.txt"
    path.write_text(f"background,0,0,0\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_color_table(path)


def test_void_names_must_be_there_and_leave_a_class(table_file: Path) -> None:
    with pytest.raises(DataError, match="does not list sky"):
        read_color_table(table_file, ["sky"])
    with pytest.raises(DataError, match="0 classes"):
        read_color_table(table_file, NAMES)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_labels_are_those_of_the_colors(table_file: Path, tmp_path: Path, mode: str) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (7, 11))
    picture = Image.fromarray(np.array(COLORS, np.uint8)[ids])
    path = tmp_path / "a.png"
    # A palette of another order: indices mean nothing.
    (picture.quantize(16) if mode == "P" else picture.convert(mode)).save(path)
    np.testing.assert_array_equal(read_color_labels(path, table=read_color_table(table_file)), ids)
    without = read_color_labels(path, table=read_color_table(table_file, ["background"]))
    np.testing.assert_array_equal(without, np.array([255, 0, 1])[ids])
    assert without.dtype == np.uint8


def test_colors_that_are_not_listed_are_named(table_file: Path, tmp_path: Path) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[2, 3:] = (1, 2, 3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"2 of 20 pixels .* first 1,2,3 in row 2, column 3"):
        read_color_labels(tmp_path / "a.png", table=read_color_table(table_file))


def test_transparent_pixels_have_no_class(table_file: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (5, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="transparent"):
        read_color_labels(tmp_path / "a.png", table=read_color_table(table_file))


def test_folders_below_are_kept(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.bmp"):
        path = tmp_path / "colors" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    pairs = color_label_pairs(tmp_path / "colors", tmp_path / "ids")
    assert [pair.target.relative_to(tmp_path / "ids").as_posix() for pair in pairs] == ["a.png", "sub/b.png"]
