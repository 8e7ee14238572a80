# SPDX-License-Identifier: Apache-2.0
"""Readers of published scribbles: what is found, what it becomes, and which errors name which file."""

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.scribbles.polylines import AnnotatedImage, Scribble, draw_scribbles, scribble_xml
from padding.data.scribbles.sources import ScribbleReader, find_scribbles
from padding.data.scribbles.tags import ScribbleTags
from padding.errors import DataError, UserError

TAGS = ScribbleTags.of(ClassSplit(("background", "aeroplane"), (False, True), (0, 1)), {"aeroplane": "plane"})
SIZE = (12, 16)
LINES = (
    Scribble(1, np.array([[2.0, 3.0], [9.0, 5.0]])),
    Scribble(0, np.array([[3.0, 9.0], [8.0, 9.0], [8.0, 2.0]])),
)
IMAGE = AnnotatedImage(LINES, SIZE)
RASTER = draw_scribbles(LINES, SIZE, width=3)


def png(array: np.ndarray, *, palette: bool = False) -> bytes:
    image = Image.fromarray(array)
    if palette:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def files(kind: str) -> dict[str, bytes]:
    if kind == "xml":
        return {f"{key}.xml": scribble_xml(IMAGE, TAGS, image_name=f"{key}.jpg") for key in ("a", "b")}
    return {f"{key}.png": png(RASTER) for key in ("a", "b")}


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def read(source_path: Path, key: str = "a", **options) -> np.ndarray:
    return ScribbleReader(find_scribbles(source_path), TAGS, **options).label_map(key, SIZE)


@pytest.mark.parametrize("kind", ["xml", "png"])
@pytest.mark.parametrize("packed", [False, True])
def test_formats_are_found_out_and_give_the_same_labels(tmp_path: Path, kind: str, packed: bool) -> None:
    content = {f"deep/er/{name}": data for name, data in files(kind).items()}
    path = write_zip(tmp_path / "s.zip", content) if packed else write_folder(tmp_path / "s", content)
    source = find_scribbles(path)
    assert (source.format, sorted(source.members)) == (kind, ["a", "b"])
    for key in ("a", "b"):
        labels = ScribbleReader(source.only(key), TAGS).label_map(key, SIZE)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, RASTER)


def test_hidden_files_of_archives_are_skipped(tmp_path: Path) -> None:
    content = {**files("png"), "__MACOSX/._a.png": b"x", "read me.txt": b"x"}
    assert sorted(find_scribbles(write_zip(tmp_path / "s.zip", content)).members) == ["a", "b"]


def test_several_formats_or_folders_must_be_told_apart(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {**files("xml"), **files("png")})
    with pytest.raises(ValueError, match=r"expected scribble files of one format .*found 2 png, 2 xml"):
        find_scribbles(folder)
    assert find_scribbles(folder, wanted_format="xml").format == "xml"
    with pytest.raises(ValueError, match="found none"):
        find_scribbles(folder, wanted_format="hdf5")
    twice = write_zip(tmp_path / "two.zip", {f"{d}/{n}": c for d in ("v07", "v12") for n, c in files("xml").items()})
    with pytest.raises(ValueError, match=r"two\.zip: image a has the files v07/a\.xml and v12/a\.xml"):
        find_scribbles(twice)
    assert find_scribbles(twice, below="v12").members["a"] == "v12/a.xml"
    with pytest.raises(ValueError, match=r"below 'v1'.*found none"):
        find_scribbles(twice, below="v1")


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: no such folder or zip file"):
        find_scribbles(tmp_path / "nothing")
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(ValueError, match=r"a\.rar: neither a folder nor a zip file"):
        find_scribbles(tmp_path / "a.rar")
    folder = write_folder(tmp_path / "s", files("xml"))
    with pytest.raises(FileNotFoundError, match="no xml file for image c"):
        read(folder, "c")


def test_width_and_order_of_lines(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files("xml"))
    np.testing.assert_array_equal(read(folder, width=1), draw_scribbles(LINES, SIZE, width=1))
    np.testing.assert_array_equal(read(folder, first_label=0), draw_scribbles(LINES, SIZE, first_label=0))
    assert not np.array_equal(read(folder, first_label=0), read(folder))


def test_palette_is_ignored_and_padding_is_unlabelled(tmp_path: Path) -> None:
    labels = RASTER.copy()
    labels[:, -1] = 254
    write_folder(tmp_path, {"a.png": png(labels, palette=True)})
    expected = RASTER.copy()
    expected[:, -1] = 255
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_values_are_checked_and_translated(tmp_path: Path) -> None:
    labels = np.where(RASTER == 1, 7, RASTER).astype(np.uint8)
    write_folder(tmp_path, {"a.png": png(labels)})
    with pytest.raises(ValueError, match=r"a\.png: holds the values \[7\]; expected 0 to 1, 255"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, value_map={0: 0, 7: 1}), RASTER)
    # The label map of a generator that leaves 0 where nothing is drawn.
    hidden = read(tmp_path, value_map={0: 255, 7: 1})
    np.testing.assert_array_equal(hidden, np.where(RASTER == 1, 1, 255))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(np.zeros((*SIZE, 3), np.uint8)), r"a\.png: a label map holds one number per pixel.*mode RGB"),
        (png(RASTER)[:40], r"a\.png: cannot be decoded"),
        (png(RASTER[:-1]), r"a\.png: made for 11 x 16 \(height x width\), the image is 12 x 16"),
    ],
    ids=["colours", "cut", "size"],
)
def test_unusable_label_maps_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    write_folder(tmp_path, {"a.png": data})
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["xml", "png"])
def test_scribbles_of_another_size_are_an_error_or_rescaled(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path, files(kind))
    reader = ScribbleReader(find_scribbles(folder), TAGS)
    double = (2 * SIZE[0], 2 * SIZE[1])
    with pytest.raises(ValueError, match=r"made for 12 x 16 .*the image is 24 x 32"):
        reader.label_map("a", double)
    with caplog.at_level(logging.WARNING):
        labels = ScribbleReader(find_scribbles(folder), TAGS, rescale=True).label_map("a", double)
    assert "rescaled" in caplog.text
    assert labels.shape == double
    doubled = RASTER.repeat(2, 0).repeat(2, 1)
    if kind == "png":
        np.testing.assert_array_equal(labels, doubled)
    else:  # the lines moved with the image and kept their width
        assert (doubled[labels != 255] != 255).all()
        assert (labels != 255).sum() < 0.7 * (doubled != 255).sum()


def flip(path: Path, position: int) -> Path:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_flipped_bit_in_an_archive_gives_the_right_labels_or_names_it(tmp_path: Path, method: int) -> None:
    """Every eighth byte of the archive: checksums, lengths, names, methods and content."""
    path, errors, same = tmp_path / "s.zip", {}, 0
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.xml", files("xml")["a.xml"])
    sound = path.read_bytes()
    for position in range(0, len(sound), 8):
        path = tmp_path / f"{position}.zip"
        path.write_bytes(sound)
        try:
            labels = read(flip(path, position))
        except UserError as error:
            errors[path] = str(error)
        else:
            np.testing.assert_array_equal(labels, RASTER)
            same += 1
    assert len(errors) > same
    assert [message for path, message in errors.items() if str(path) not in message] == []


def test_an_archive_cut_anywhere_is_named(tmp_path: Path) -> None:
    sound = write_zip(tmp_path / "s.zip", files("xml")).read_bytes()
    for length in range(0, len(sound), 97):
        path = tmp_path / f"{length}.zip"
        path.write_bytes(sound[:length])
        with pytest.raises(DataError, match=rf"{length}\.zip: "):
            read(path)


def test_a_file_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", b" " * (1 << 26))
    with pytest.raises(DataError, match=r"s\.zip:a\.xml: unpacks to 67108864 bytes, a scribble file has at most"):
        read(path)


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", files("xml"))
    np.testing.assert_array_equal(read(path), RASTER)
    path.unlink()
    write_zip(path, {"a.xml": scribble_xml(AnnotatedImage(LINES[:1], SIZE), TAGS, image_name="a.jpg")})
    np.testing.assert_array_equal(read(path), draw_scribbles(LINES[:1], SIZE))


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", files("xml"))
    content = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):  # the flags of each entry
        at = content.find(sign)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(sign, at + 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"s\.zip:a\.xml: cannot be unpacked .*encrypted"):
        read(path)


def test_points_far_from_the_image_are_named(tmp_path: Path) -> None:
    far = Scribble(1, np.array([[2.0, 3.0], [3e9, 5.0]]))
    content = scribble_xml(AnnotatedImage((far,), SIZE), TAGS, image_name="a.jpg")
    with pytest.raises(DataError, match=r"a\.xml: a line leaves the image of 12 x 16 .* by more than its size"):
        read(write_folder(tmp_path, {"a.xml": content}))


def write_hdf5(path: Path, values: np.ndarray, **extra: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 scribbles are optional")
    lines = np.stack([LINES[0].points, LINES[1].points[:2]])
    content = {"scribble": lines, "scribble_values": values, "image_dims": np.array([*SIZE, 3]), **extra}
    with h5py.File(path, "w") as file:
        for name, data in content.items():
            if data is not None:
                file.create_dataset(name, data=data)


def test_hdf5_polylines(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", np.array([[1, 1, 1], [0, 0, 0]]))
    source = find_scribbles(tmp_path)
    assert source.format == "hdf5"
    lines = (LINES[0], Scribble(0, LINES[1].points[:2]))
    np.testing.assert_array_equal(read(tmp_path), draw_scribbles(lines, SIZE, width=3))
    np.testing.assert_array_equal(read(tmp_path, value_map={0: 255, 1: 1}) == 1, draw_scribbles(lines[:1], SIZE) == 1)


def test_unusable_hdf5_is_named(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", np.array([[1, 1, 1], [0, 3, 0]]))
    with pytest.raises(ValueError, match=r"a\.h5: lines have colours instead of class ids"):
        read(tmp_path)
    write_hdf5(tmp_path / "a.h5", np.array([1, 9]))
    with pytest.raises(ValueError, match=r"a\.h5: holds the values \[9\]"):
        read(tmp_path)
    write_hdf5(tmp_path / "a.h5", np.array([1, 0]), image_dims=None)
    with pytest.raises(ValueError, match=r"a\.h5: no Scribbles4All file"):
        read(tmp_path)
    write_hdf5(tmp_path / "a.h5", np.array([1, 0]), image_dims=np.array([0, 16, 3]))
    with pytest.raises(ValueError, match=r"a\.h5: says that the image is 0 x 16"):
        read(tmp_path)
    write_hdf5(tmp_path / "a.h5", np.array([1, 0]), scribble=np.array([["x", "y"]], "S1"))
    with pytest.raises(ValueError, match=r"a\.h5: no Scribbles4All file"):
        read(tmp_path)
    (tmp_path / "a.h5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"a\.h5: no Scribbles4All file"):
        read(tmp_path)


def test_hdf5_without_h5py_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    write_folder(tmp_path, {"a.h5": b""})
    with pytest.raises(ValueError, match=r"a\.h5: HDF5 files need the package h5py: pip install h5py"):
        read(tmp_path)
