# SPDX-License-Identifier: Apache-2.0
"""Readers of published scribbles, which find out the format: XML, index PNG or HDF5, in a folder or a zip file.

``xml``: ScribbleSup, one file an image. ``png``: label maps of rloss, BLPSeg, AGMM, ScribbleCOCO and our own; 255 is
unlabelled, 254 (rloss: padding) is read as 255. ``hdf5``: polylines of Scribbles4All; needs h5py.
"""

from __future__ import annotations

import io
import logging
import lzma
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.readers import read_label_map
from padding.data.sample import IGNORE_LABEL, SCRIBBLE_PADDING
from padding.data.scribbles.polylines import (
    DEFAULT_WIDTH,
    AnnotatedImage,
    Scribble,
    draw_scribbles,
    parse_scribble_xml,
    scaled_to,
)
from padding.data.scribbles.tags import ScribbleTags
from padding.errors import DataError, MissingFileError, UserError

logger = logging.getLogger(__name__)

FORMATS = ("xml", "png", "hdf5")
_FORMAT_OF_SUFFIX = {".xml": "xml", ".png": "png", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5"}
_SHOWN = 5
_MAX_BYTES = 1 << 25  # published files have some hundred kilobytes; a zip can make gigabytes of them
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    struct.error,
    OSError,
)
_NO_SCRIBBLES4ALL = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ScribbleSource:
    """Scribble files by image id."""

    path: Path  # folder or zip file
    format: str  # one of ``FORMATS``
    members: Mapping[str, str]  # image id -> path inside, relative

    def read(self, key: str) -> tuple[bytes, str]:
        """Content of an image's file, and its name for messages.

        Raises:
            MissingFileError: the image has none.
            DataError: it is damaged, or larger than any scribble file.
        """
        if key not in self.members:
            raise MissingFileError(f"{self.path}: no {self.format} file for image {key}; complete the download")
        name = self.members[key]
        if not self.path.is_dir():
            return _read_member(self.path, name), f"{self.path}:{name}"
        file = self.path / name
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file any more; complete the download")
        _check_length(file.stat().st_size, str(file))
        return file.read_bytes(), str(file)

    def only(self, key: str) -> ScribbleSource:
        """The source of this image alone, small enough to be sent to a worker."""
        return ScribbleSource(self.path, self.format, {key: self.members[key]} if key in self.members else {})


def _check_length(length: int, where: str) -> None:
    if length > _MAX_BYTES:
        raise DataError(
            f"{where}: unpacks to {length} bytes, a scribble file has at most {_MAX_BYTES}; obtain the file again"
        )


def _read_member(path: Path, name: str) -> bytes:
    with _archive(path, name) as archive:
        _check_length(archive.getinfo(name).file_size, f"{path}:{name}")
        return archive.read(name)


@contextmanager
def _archive(path: Path, name: str = "") -> Iterator[zipfile.ZipFile]:
    """The opened zip file; what goes wrong while it is read becomes an error that names it."""
    try:
        stat = path.stat()
        yield _opened_zip(path, os.getpid(), (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except UserError:
        raise
    except _BROKEN_ZIP as error:
        where = f"{path}:{name}" if name else f"{path}"
        raise DataError(
            f"{where}: cannot be unpacked ({error}); the zip file is damaged, was cut or is encrypted; obtain it again"
        ) from error


@lru_cache(maxsize=2)
def _opened_zip(path: Path, process: int, version: tuple[int, ...]) -> zipfile.ZipFile:
    # Reading the directory of ten thousand entries takes longer than one image; a worker keeps the file open.
    del process  # a forked child would share the position in the file with its parent
    del version  # a file that was replaced is another one
    return zipfile.ZipFile(path)


def find_scribbles(path: str | Path, *, below: str = "", wanted_format: str = "") -> ScribbleSource:
    """Look what scribble files a folder or a zip file holds, at any depth.

    Args:
        path: folder or zip file.
        below: only this folder inside it, such as "pascal_2012" in ScribbleSup's zip file.
        wanted_format: one of ``FORMATS`` where there are several; "" finds out.

    Raises:
        MissingFileError: there is no such folder or file.
        DataError: no scribble files, several formats, or two files for one image.
    """
    path = Path(path)
    names = [name for name in _names_in(path) if not below or f"/{name}".find(f"/{below.strip('/')}/") >= 0]
    formats = {
        name: _FORMAT_OF_SUFFIX[suffix]
        for name in names
        if (suffix := PurePosixPath(name).suffix.lower()) in _FORMAT_OF_SUFFIX
    }
    counts = Counter(formats.values())
    if wanted_format:
        counts = Counter({wanted_format: counts[wanted_format]})
    if len(counts) != 1 or not sum(counts.values()):
        found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "none"
        where = f"{path} below '{below}'" if below else f"{path}"
        raise DataError(
            f"{where}: expected scribble files of one format ({', '.join(FORMATS)}), found {found}; name the folder of "
            "the scribbles, or the format"
        )
    kind = next(iter(counts))
    members: dict[str, str] = {}
    for name in sorted(name for name, one in formats.items() if one == kind):
        key = PurePosixPath(name).stem
        if key in members:
            raise DataError(f"{path}: image {key} has the files {members[key]} and {name}; name one of the folders")
        members[key] = name
    return ScribbleSource(path, kind, members)


def _names_in(path: Path) -> list[str]:
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.rglob("[!.]*") if file.is_file()]
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such folder or zip file of scribbles; datasets/README.md says where to get it"
        )
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: neither a folder nor a zip file; unpack it first")
    # Archives made on a Mac carry a hidden twin of every file.
    with _archive(path) as archive:
        names = archive.namelist()
    return [name for name in names if not name.endswith("/") and not PurePosixPath(name).name.startswith(".")]


@dataclass(frozen=True)
class ScribbleReader:
    """Turns the files of a source into label maps."""

    source: ScribbleSource  # the files
    tags: ScribbleTags  # what tags mean (XML), and how many classes there are
    width: int = DEFAULT_WIDTH  # pixels across a line (XML, HDF5)
    first_label: int | None = None  # class drawn below all others (XML, HDF5); None: in the order of the file
    # Value in the file -> class id or 255 (PNG, HDF5); None: the values are class ids.
    value_map: Mapping[int, int] | None = None
    rescale: bool = False  # whether scribbles made on another size of the image are fitted to it; else that is an error

    def label_map(self, key: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Scribbles of an image as (h, w) uint8 labels: class ids, 255 where nothing is labelled.

        Args:
            key: image id.
            size: (h, w) of the image.

        Raises:
            MissingFileError: the image has no file.
            ValueError: the file cannot be read, has another size, an unknown tag or a value that is no class.
        """
        content, where = self.source.read(key)
        if self.source.format == "png":
            return self._from_png(content, where, size)
        if self.source.format == "xml":
            image = parse_scribble_xml(content, self.tags, where=where)
        else:
            image = self._from_hdf5(content, where)
        if image.size is not None:
            self._check_size(image.size, size, where)
        image = scaled_to(image, size)
        _check_points(image, where)
        return draw_scribbles(image.scribbles, size, width=self.width, first_label=self.first_label)

    def _from_png(self, content: bytes, where: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        labels = self._as_classes(read_label_map(io.BytesIO(content), name=where), where).astype(np.uint8)
        self._check_size(labels.shape, size, where)
        if labels.shape != size:
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
        return labels

    def _from_hdf5(self, content: bytes, where: str) -> AnnotatedImage:
        points, values, size = _read_hdf5(content, where)
        labels = self._as_classes(values, where)
        return AnnotatedImage(tuple(Scribble(int(n), line) for n, line in zip(labels, points, strict=True)), size)

    def _as_classes(self, values: npt.NDArray[np.integer], where: str) -> npt.NDArray[np.integer]:
        """Translate values to class ids and check that they are some."""
        num_classes = len(self.tags.names)
        table = {i: i for i in range(num_classes)} if self.value_map is None else dict(self.value_map)
        table = {IGNORE_LABEL: IGNORE_LABEL, SCRIBBLE_PADDING: IGNORE_LABEL, **table}
        distinct = np.unique(values)
        wrong = [
            n for n in distinct.tolist() if not (0 <= table.get(n, -1) < num_classes or table.get(n) == IGNORE_LABEL)
        ]
        if wrong:
            raise DataError(
                f"{where}: holds the values {wrong[:_SHOWN]}; expected 0 to {num_classes - 1}, {IGNORE_LABEL} "
                f"(unlabelled) and {SCRIBBLE_PADDING} (padding). Is it of this data set, and does it need a label map?"
            )
        lookup = np.zeros(max(table) + 1, np.int64)
        lookup[distinct] = [table[n] for n in distinct.tolist()]
        return lookup[values]

    def _check_size(self, found: tuple[int, ...], size: tuple[int, int], where: str) -> None:
        if tuple(found) == size:
            return
        text = f"{where}: made for {found[0]} x {found[1]} (height x width), the image is {size[0]} x {size[1]}"
        if not self.rescale:
            raise DataError(f"{text}; use the images that belong to the scribbles, or allow rescaling")
        logger.warning("%s; rescaled", text)


def _read_hdf5(
    content: bytes, where: str
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.int64], tuple[int, int]]:
    """Points (x, y) and value of every line, and the (h, w) of the image, of a Scribbles4All file."""
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{where}: HDF5 files need the package h5py: pip install h5py, or use the data set's XML or PNG files"
        ) from error
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            lines, values, dims = (file[name][()] for name in ("scribble", "scribble_values", "image_dims"))
        values = np.asarray(values, np.float64).reshape(len(lines), -1)
        points = [np.asarray(line, np.float64).reshape(-1, 2) for line in lines]
        size = (int(dims[0]), int(dims[1]))
    except _NO_SCRIBBLES4ALL as error:
        raise DataError(
            f"{where}: no Scribbles4All file ({error}); it needs scribble, scribble_values and image_dims"
        ) from error
    if not (values == values[:, :1]).all() or not np.isin(values, np.arange(256)).all():
        raise DataError(f"{where}: lines have colours instead of class ids; translate them first")
    if min(size) < 1:
        raise DataError(f"{where}: says that the image is {size[0]} x {size[1]} (height x width); obtain it again")
    return points, values[:, 0].astype(np.int64), size


def _check_points(image: AnnotatedImage, where: str) -> None:
    """Refuse points that lie farther from the image than it is large; nearer ones are moved to its border."""
    assert image.size is not None
    reach = max(image.size)
    for scribble in image.scribbles:
        # Not a number fails the comparison, too.
        if not ((scribble.points >= -reach) & (scribble.points <= 2 * reach)).all():
            raise DataError(
                f"{where}: a line leaves the image of {image.size[0]} x {image.size[1]} (height x width) by more than "
                "its size, or has a point that is no number; correct the file"
            )
