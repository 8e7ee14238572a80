# SPDX-License-Identifier: Apache-2.0
"""One file of a feature bank: 8 bytes with the header's length, a JSON header, the arrays (safetensors).

Rows of some images one after the other: ``embeddings`` (n, D), ``labels`` (n,), ``weights`` (n,), and ``offsets``
(images + 1,), the first row of each image. The header holds a checksum of all of it.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from padding.data.damage import checksum_of
from padding.data.files import write_bytes
from padding.errors import DataError, MissingFileError

# Mapped pages count as memory of the process until they are given back, which this many bytes of reading brings about.
RELEASE_BYTES = 1 << 26
_CHECKSUM = "crc32"
_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
_NAMES = ("embeddings", "labels", "offsets", "weights")
_CURE = "delete that file, and the next training writes it again"
_EXPONENT = np.uint16(0x7C00)  # all ones in a float16 that is infinite or NaN


def write_shard(path: Path, content: Mapping[str, npt.NDArray[Any]], *, num_classes: int) -> None:
    """Write a shard that readers see either whole or not at all.

    Args:
        path: of the file.
        content: the four arrays.
        num_classes: K, the label of no-object.

    Raises:
        DataError: a feature is not finite, or a label or offset cannot be.
    """
    if wrong := _what_is_wrong(content, num_classes) or _not_finite(content["embeddings"]):
        raise DataError(
            f"{path} is not written, it would hold {wrong}: the segmentor of MODEL.WEIGHTS gives them, or they are "
            "too large for float16 (set MODEL.PADING.FEATURE_BANK.DTYPE to float32)"
        )
    write_bytes(path, save(dict(content), {_CHECKSUM: checksum_of(content)}))


class Shard:
    """A shard, memory-mapped and verified.

    Attributes:
        arrays: views of the file; pages are read when rows are.
    """

    def __init__(self, path: Path, *, num_classes: int) -> None:
        """Open a file and read it once.

        Args:
            path: of the file.
            num_classes: K, the label of no-object.

        Raises:
            MissingFileError: there is none.
            DataError: it is damaged or no shard, a feature is not finite, or a label is no class.
        """
        if not path.is_file():
            raise MissingFileError(f"{path}: no such shard of a feature bank; the next training writes it again")
        try:
            checksum = self._map_arrays(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            raise DataError(
                f"{path} is no shard of a feature bank, or damaged ({type(error).__name__}: {error}); {_CURE}"
            ) from error
        if self._verified() != checksum:
            raise DataError(f"{path} is damaged: its content does not have the checksum that was written; {_CURE}")
        if wrong := _what_is_wrong(self.arrays, num_classes) or self._strange_features():
            raise DataError(f"{path} holds {wrong}; {_CURE}")

    def _map_arrays(self, path: Path) -> str:
        """Make a view of each array; returns the checksum that was written."""
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        checksum = str(header.pop("__metadata__")[_CHECKSUM])
        if tuple(sorted(header)) != _NAMES:
            raise ValueError(f"it holds {', '.join(sorted(header))}; expected {', '.join(_NAMES)}")
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        end = 0
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            if first != end or last < first:
                raise ValueError(f"{name} does not begin where the array before it ends")
            # Only the view is made here; pages are read when rows are.
            flat = np.frombuffer(self._map, dtype, (last - first) // dtype.itemsize, 8 + length + first)
            self.arrays[name] = flat.reshape(entry["shape"])
            end = last
        if 8 + length + end != len(self._map):
            raise ValueError(f"{len(self._map)} bytes, its header describes {8 + length + end}")
        return checksum

    def _verified(self) -> str:
        """Checksum of what is there, as ``checksum_of`` computes it, without keeping the pages."""
        checksum = zlib.crc32(b"")
        for name, array in sorted(self.arrays.items()):
            checksum = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), checksum)
            content = array.reshape(-1).view(np.uint8)
            for start in range(0, len(content), RELEASE_BYTES):
                checksum = zlib.crc32(content[start : start + RELEASE_BYTES].data, checksum)
                self.release()
        return f"{checksum:08x}"

    def _strange_features(self) -> str:
        embeddings = self.arrays["embeddings"]
        rows = max(RELEASE_BYTES // max(embeddings[:1].nbytes, 1), 1)
        for start in range(0, len(embeddings), rows):
            if wrong := _not_finite(embeddings[start : start + rows]):
                return wrong
            self.release()
        return ""

    def release(self) -> None:
        """Give back the pages that were read; they come again from the file when needed."""
        if hasattr(self._map, "madvise"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)


def _not_finite(embeddings: npt.NDArray[Any]) -> str:
    if embeddings.dtype == np.float16:  # three times as fast as isfinite
        strange = bool(((embeddings.view(np.uint16) & _EXPONENT) == _EXPONENT).any())
    else:
        strange = not bool(np.isfinite(embeddings).all())
    return "features that are NaN or infinite" if strange else ""


def _what_is_wrong(arrays: Mapping[str, npt.NDArray[Any]], num_classes: int) -> str:
    """What cannot be in the small arrays; "" if they are right."""
    embeddings, labels, offsets, weights = (arrays[name] for name in _NAMES)
    integers = labels.dtype == offsets.dtype == np.int64
    if embeddings.ndim != 2 or not integers or any(array.ndim != 1 for array in (labels, offsets, weights)):
        return "arrays of another type or number of dimensions"
    rows = len(embeddings)
    if len(labels) != rows or len(weights) != rows:
        return f"{rows} features, {len(labels)} labels and {len(weights)} weights"
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        return f"offsets of images that do not lead from row 0 to row {rows}"
    if rows and (labels.min() < 0 or labels.max() > num_classes):
        return f"labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes}"
    if not np.isfinite(weights).all() or (weights < 0).any():
        return "weights that are negative, NaN or infinite"
    return ""
