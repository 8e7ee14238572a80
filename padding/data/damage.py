# SPDX-License-Identifier: Apache-2.0
"""Damage that the libraries behind a format do not notice, and files that unpack to more than they should.

Pillow does not look at the checksums of a PNG's pixels, torch not at those of the zip file that a ``.pth`` is, and
numpy allocates whatever an npz asks for. A checksum is a CRC-32, that of PNG and zip: 3 GB/s, and no burst of 32 bits
passes it.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from padding.errors import ConfigError, DataError

LIMIT_KEY = "INPUT.MAX_UNPACKED_MB"
DEFAULT_LIMIT_MB = 256
_BYTES_PER_PIXEL = 4  # of an image with alpha, or of the ids of a label map
_CHUNK = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)
_limit = DEFAULT_LIMIT_MB << 20


def set_unpacked_limit(megabytes: int) -> None:
    """Set INPUT.MAX_UNPACKED_MB for this process and the workers that it forks from now on.

    Raises:
        ConfigError: it is not positive.
    """
    global _limit
    if megabytes < 1:
        raise ConfigError(f"{LIMIT_KEY} is {megabytes}; expected at least 1")
    _limit = megabytes << 20
    # Pillow has a limit of its own, which must not be the lower one.
    Image.MAX_IMAGE_PIXELS = 16 * _limit // _BYTES_PER_PIXEL


def check_unpacked(size: int, name: object) -> None:
    """Refuse what would unpack to more than INPUT.MAX_UNPACKED_MB, before it is unpacked.

    Args:
        size: in bytes, as a header states it.
        name: of the file.

    Raises:
        DataError: it is too large.
    """
    if size > _limit:
        raise DataError(
            f"{name}: unpacks to {size / 2**20:.0f} MB, more than {LIMIT_KEY} ({_limit >> 20}); raise that key if the "
            "file is meant to be so large"
        )


def check_image_size(image: Image.Image, name: object) -> None:
    """Refuse an image whose pixels would take more than INPUT.MAX_UNPACKED_MB, four bytes each.

    Raises:
        DataError: it is too large.
    """
    check_unpacked(image.width * image.height * _BYTES_PER_PIXEL, f"{name} ({image.width} x {image.height} pixels)")


def check_png(file: IO[bytes]) -> None:
    """Verify the checksum of every chunk of a PNG, up to its end; the position in the file stays.

    Args:
        file: open PNG.

    Raises:
        ValueError: a checksum is wrong, or the file ends too early.
    """
    position = file.tell()
    file.seek(len(_PNG))
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        checksum = zlib.crc32(kind)
        while length and (part := file.read(min(length, _CHUNK))):
            checksum, length = zlib.crc32(part, checksum), length - len(part)
        stored = file.read(4)
        if length or len(stored) < 4:
            raise ValueError("it ends before its last chunk")
        if int.from_bytes(stored, "big") != checksum:
            raise ValueError(f"wrong checksum of its chunk {kind.decode('latin1')}")
    file.seek(position)


def read_npz(path: str | Path, *, cure: str) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an npz file; nothing in it is executed.

    Args:
        path: the file.
        cure: end of the messages.

    Raises:
        DataError: it is no npz file of numbers and strings, is damaged, or unpacks to more than INPUT.MAX_UNPACKED_MB.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(sum(entry.file_size for entry in archive.infolist()), path)
            for member in archive.namelist():
                # The whole member is read, so that its checksum covers the header as well.
                content = io.BytesIO(archive.read(member))
                arrays[member.removesuffix(".npy")] = _read_npy(content)
    except DataError:
        raise
    except (*_DAMAGED_ZIP, KeyError, TypeError, SyntaxError, MemoryError, AttributeError) as error:
        raise DataError(f"{path} is not a readable npz table ({type(error).__name__}: {error}); {cure}") from error
    return arrays


def _read_npy(content: io.BytesIO) -> npt.NDArray[Any]:
    """One array; its header must account for every byte, so that a wrong shape allocates nothing."""
    version = np.lib.format.read_magic(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the npy format")
    shape, by_column, dtype = read_header(content)
    if dtype.kind not in "biufcSU":
        raise ValueError(f"an array of {dtype}; expected numbers or strings")
    return plain_array(content.read(), dtype, shape, by_column=by_column).copy()


def plain_array(
    content: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], *, by_column: bool = False
) -> npt.NDArray[Any]:
    """A view of bytes as an array of numbers.

    Args:
        content: all of its bytes.
        dtype: without fields.
        shape: sizes >= 0.
        by_column: Fortran's order.

    Raises:
        ValueError: the bytes are not as many as dtype and shape say.
    """
    sizes = [int(size) for size in shape]
    count = 1
    for size in sizes:
        count *= size  # Python's integers: no overflow
    if min(sizes, default=0) < 0 or count * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes for an array of shape {tuple(sizes)} and type {dtype}")
    if not len(content):
        return np.zeros(sizes, dtype)
    return np.frombuffer(content, dtype).reshape(sizes, order="F" if by_column else "C")


def check_stored_zip(path: str | Path) -> None:
    """Verify the checksum of every file in a zip archive that is not compressed, as ``.pth`` files are.

    Args:
        path: of the archive; another kind of file passes.

    Raises:
        ValueError: something in it is damaged, compressed, or counted twice.
    """
    with Path(path).open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
        size = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise ValueError("it holds compressed entries, which torch does not write")
                if sum(entry.file_size for entry in entries) > size:
                    raise ValueError("its entries overlap")
                damaged = archive.testzip()
        except _DAMAGED_ZIP as error:
            raise ValueError(str(error) or type(error).__name__) from error
    if damaged:
        raise ValueError(f"wrong checksum of its entry {damaged}")


def checksum_of(arrays: Mapping[str, npt.NDArray[Any]], text: str = "") -> str:
    """Checksum over names, types, shapes and values of arrays, and a text; eight hexadecimal digits.

    Args:
        arrays: contiguous.
        text: what else is stored beside them.
    """
    checksum = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return f"{checksum:08x}"
