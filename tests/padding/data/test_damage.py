# SPDX-License-Identifier: Apache-2.0
"""Damage that libraries pass over is noticed, and what unpacks to too much is refused before it is unpacked."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from padding.data.damage import (
    DEFAULT_LIMIT_MB,
    check_stored_zip,
    checksum_of,
    plain_array,
    read_npz,
    set_unpacked_limit,
)
from padding.data.files import save_png
from padding.data.readers import (
    allow_truncated_jpegs,
    displayed_size,
    opened_image,
    read_label_map,
    read_panoptic_ids,
)
from padding.errors import ConfigError, DataError


@pytest.fixture
def limit_of_one_megabyte() -> Iterator[None]:
    set_unpacked_limit(1)
    yield
    set_unpacked_limit(DEFAULT_LIMIT_MB)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (60, 80), dtype=np.uint8)


@pytest.fixture
def png(tmp_path: Path, labels: np.ndarray) -> Path:
    save_png(labels, tmp_path / "x.png")
    return tmp_path / "x.png"


def flipped(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_png_checksums_are_verified(png: Path, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(read_label_map(png), labels)
    end = len(png.read_bytes())
    # The checksums of the pixels and of the end: Pillow opens both.
    for position in (end - 13, end - 1):
        content = png.read_bytes()
        flipped(png, position)
        with Image.open(png) as image:
            image.load()
        with pytest.raises(DataError, match=r"x\.png: cannot be decoded \(wrong checksum of its chunk I(DAT|END)\)"):
            read_label_map(png)
        png.write_bytes(content)


@pytest.mark.parametrize("kept", [-1, -4, -12, -13, -20])
def test_png_without_its_end_is_damaged(png: Path, kept: int) -> None:
    png.write_bytes(png.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"x\.png: cannot be decoded \(it ends before its last chunk\)"):
        read_label_map(png)
    with pytest.raises(DataError, match=r"x\.png"):
        read_label_map(io.BytesIO(png.read_bytes()), name="x.png")


def test_jpeg_that_ends_early(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "x.jpg"
    Image.fromarray(picture).save(path)
    with opened_image(path) as image:
        whole = np.asarray(image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"x\.jpg: cannot be decoded .*truncated"), opened_image(path) as image:
        image.load()
    allow_truncated_jpegs(True)
    try:
        with opened_image(path) as image:
            np.testing.assert_array_equal(np.asarray(image)[:8], whole[:8])
    finally:
        allow_truncated_jpegs(False)
    with pytest.raises(DataError), opened_image(path) as image:
        image.load()


@pytest.mark.parametrize("reader", [read_label_map, read_panoptic_ids, displayed_size])
def test_images_that_unpack_to_too_much_are_refused_undecoded(tmp_path: Path, reader: object) -> None:
    path = tmp_path / "bomb.png"
    rows = zlib.compressobj()
    pixels = b"".join([*(rows.compress(bytes(12_001)) for _ in range(12_000)), rows.flush()])
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    framed = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"bomb\.png \(12000 x 12000 pixels\): unpacks to 549 MB.*MAX_UNPACKED_MB \(256"
    ):
        reader(path)  # type: ignore[operator]
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_limit_is_a_key(png: Path, limit_of_one_megabyte: None) -> None:
    read_label_map(png)
    save_png(np.zeros((600, 600), np.uint8), png)
    with pytest.raises(DataError, match=r"x\.png \(600 x 600 pixels\): unpacks to 1 MB.*MAX_UNPACKED_MB \(1\)"):
        read_label_map(png)
    with pytest.raises(ConfigError, match="MAX_UNPACKED_MB is 0"):
        set_unpacked_limit(0)


def test_npz(tmp_path: Path, limit_of_one_megabyte: None) -> None:
    path = tmp_path / "a.npz"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "names": np.array(["x", "longer"]), "none": np.zeros((0, 2))}
    np.savez(path, **arrays)
    found = read_npz(path, cure="write it again")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    np.savez_compressed(path, a=np.zeros(1_000_000, np.uint8), b=np.zeros(100_000, np.uint8))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"a\.npz: unpacks to 1 MB, more than INPUT\.MAX_UNPACKED_MB \(1\)"):
        read_npz(path, cure="write it again")
    np.savez(path, a=np.array([None]))
    with pytest.raises(DataError, match=r"a\.npz is not a readable npz table .*array of object.*; write it again"):
        read_npz(path, cure="write it again")


def test_npz_header_must_account_for_its_bytes(tmp_path: Path) -> None:
    """A header asks for 8 TB; its checksum is right."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", array.getvalue() + bytes(16))
    with pytest.raises(DataError, match=r"a\.npz .*16 bytes for an array of shape \(1000000000000,\)"):
        read_npz(tmp_path / "a.npz", cure="")


def test_stored_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(3000.0)}, path)
    check_stored_zip(path)
    content = path.read_bytes()
    middle = bytearray(content)
    middle[6000:10_000] = bytes(4000)
    assert torch.load(io.BytesIO(middle), weights_only=True)["w"][1500] == 0  # torch takes it as it is
    path.write_bytes(middle)
    with pytest.raises(ValueError, match=r"wrong checksum of its entry a/data/0"):
        check_stored_zip(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10_000))
    with pytest.raises(ValueError, match="compressed"):
        check_stored_zip(path)
    path.write_bytes(b"<html>")
    check_stored_zip(path)  # another kind of file is another reader's


def test_checksum_covers_names_types_shapes_and_values() -> None:
    array = np.arange(6, dtype=np.int32)
    same = checksum_of({"a": array, "b": np.ones(1)}, "text")
    assert same == checksum_of({"b": np.ones(1), "a": array.copy()}, "text")
    others = [
        checksum_of({"a": array, "b": np.ones(1)}),
        checksum_of({"a": array, "c": np.ones(1)}, "text"),
        checksum_of({"a": array.view(np.uint32), "b": np.ones(1)}, "text"),
        checksum_of({"a": array.reshape(2, 3), "b": np.ones(1)}, "text"),
        checksum_of({"a": array + np.eye(6, dtype=np.int32)[3], "b": np.ones(1)}, "text"),
    ]
    assert len({same, *others}) == 6
    assert checksum_of({}) == "00000000"


def test_plain_array() -> None:
    assert plain_array(bytes([1, 2, 3, 4]), np.dtype("u1"), (2, 2), by_column=True).tolist() == [[1, 3], [2, 4]]
    for shape in ((3,), (-1,), (2**62, 4)):
        with pytest.raises(ValueError, match="4 bytes for an array of shape"):
            plain_array(bytes(4), np.dtype("u1"), shape)
