# SPDX-License-Identifier: Apache-2.0
"""Tables of class embeddings, found by class name (PADing, section 3: the semantic embeddings a_c).

A table is an npz file with ``names`` (K,) unicode, ``embeddings`` (K, E) float32 and, optionally, ``source``, a line
that says where the numbers come from. Rows are always selected by name, so that the order in the file never matters.
Letters: K classes, E width of the embeddings.
"""

import difflib
import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.damage import read_npz
from padding.data.files import write_bytes
from padding.errors import ConfigError, DataError, MissingFileError

FloatArray = npt.NDArray[np.float32]

# The earliest time a zip entry can hold: equal tables give equal bytes whenever they are written.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_SHOWN = 10
_NEIGHBOURS = 3


@dataclass(frozen=True)
class EmbeddingTable:
    """A validated table."""

    names: tuple[str, ...]  # K different class names
    embeddings: FloatArray  # (K, E) float32, finite, no row all zero
    source: str = ""  # where the numbers come from; may be empty


def nearest_names(name: str, candidates: Sequence[str], count: int = 3) -> list[str]:
    """Candidates whose spelling comes closest to ``name``, best first; case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.5)]


def normalise_rows(embeddings: npt.ArrayLike) -> FloatArray:
    """Divide every row of a (K, E) array by its L2 norm, computed in float64.

    Raises:
        ValueError: if a row is all zero.
    """
    wide = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError(
            f"rows {np.flatnonzero(norms[:, 0] <= 0)[:_SHOWN].tolist()} are all zero and have no direction"
        )
    return (wide / norms).astype(np.float32)


def validate_table(names: Sequence[str], embeddings: npt.ArrayLike, where: str) -> FloatArray:
    """Check a table and return its numbers as float32.

    Args:
        names: K class names.
        embeddings: (K, E) numbers.
        where: file or command named in the errors.

    Raises:
        DataError: naming the classes whose name is doubled or whose row is not finite or all zero.
    """
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise DataError(f"{where}: class names occur more than once: {_listed(doubled)}. Keep one row for each name.")
    numbers = np.asarray(embeddings)
    if numbers.ndim != 2 or numbers.shape[0] != len(names) or numbers.shape[1] == 0:
        raise DataError(
            f"{where}: embeddings of shape {numbers.shape}, expected ({len(names)}, E): one row for each of the "
            f"{len(names)} names. Write the table with save_class_embeddings."
        )
    if not np.issubdtype(numbers.dtype, np.floating):
        raise DataError(f"{where}: embeddings of type {numbers.dtype}, expected floating point numbers.")
    # An overflow in the cast shows as a non-finite row just below.
    with np.errstate(over="ignore"):
        table = numbers.astype(np.float32)
    broken = [name for name, row in zip(names, table, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise DataError(f"{where}: NaN or infinite numbers in the rows of {_listed(broken)}. Compute the table again.")
    zero = [name for name, row in zip(names, table, strict=True) if not row.any()]
    if zero:
        raise DataError(f"{where}: all-zero rows: {_listed(zero)}. A class without embedding cannot be generated.")
    return table


def read_class_embeddings(path: str | Path) -> EmbeddingTable:
    """Read and validate a whole npz table; nothing in the file is executed.

    Raises:
        MissingFileError: with the command that writes a table.
        DataError: naming the file and what is wrong in it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"No table of class embeddings at {path}. Write one (`python datasets/prepare_class_embeddings.py --help`) "
            "or point MODEL.PADING.EMBEDDINGS.PATH to an existing one; embeddings/glove_50.npz is shipped and knows "
            "the names of all data sets here, though published numbers need CLIP's."
        )
    arrays = read_npz(
        path,
        cure="expected plain arrays `names` and `embeddings`; write it again with datasets/prepare_class_embeddings.py",
    )
    missing = {"names", "embeddings"} - arrays.keys()
    if missing:
        raise DataError(
            f"{path}: missing {sorted(missing)}, found {sorted(arrays)}. Write it with save_class_embeddings."
        )
    if arrays["names"].ndim != 1 or arrays["names"].dtype.kind != "U":
        raise DataError(f"{path}: `names` must be a one-dimensional unicode array, got {arrays['names'].dtype}.")
    names = tuple(str(name) for name in arrays["names"])
    source = str(arrays["source"]) if "source" in arrays else ""
    return EmbeddingTable(names, validate_table(names, arrays["embeddings"], str(path)), source)


def select_rows(table: EmbeddingTable, names: Sequence[str], where: str) -> FloatArray:
    """Rows of ``names`` in the given order, (len(names), E).

    Raises:
        DataError: listing every name without a row, with the nearest spelling in the table.
    """
    # Whatever the order of the table, rows follow the names: a wrong order would train without an error.
    row_of = {name: row for row, name in enumerate(table.names)}
    missing = [name for name in names if name not in row_of]
    if missing:
        hints = [f"{name!r} (nearest: {', '.join(nearest_names(name, table.names)) or 'none'})" for name in missing]
        raise DataError(
            f"{where}: no embedding for {len(missing)} of {len(names)} classes: {_listed(hints)}. "
            "Add the rows, or use the table's spelling in the class list."
        )
    return table.embeddings[[row_of[name] for name in names]]


def identical_rows(names: Sequence[str], rows: npt.ArrayLike) -> list[tuple[str, ...]]:
    """Groups of classes whose rows in (K, E) are equal, each in the order of ``names``."""
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(names, np.asarray(rows) + 0.0, strict=True):  # -0.0 equals 0.0, but not in bytes
        groups.setdefault(row.tobytes(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def combine_tables(
    tables: Sequence[EmbeddingTable], names: Sequence[str], weights: Sequence[float] | None = None
) -> FloatArray:
    """Rows of several tables side by side, each part without its table's mean and of a chosen norm.

    Vectors of one model share a large common direction, and models differ in scale; without both, one part would
    dominate every cosine.

    Args:
        tables: of widths E_1, ..., E_n; the mean is that of all rows of a table, whatever ``names`` selects.
        names: K classes that every table holds.
        weights: norm of each part, > 0; None: 1 each.

    Returns:
        (K, E_1 + ... + E_n) float32.

    Raises:
        ConfigError: another number of weights than of tables, or a weight that is not positive.
        DataError: a table lacks a class, or the row of a class is the mean of its table.
    """
    weights = [1.0] * len(tables) if weights is None else list(weights)
    if len(weights) != len(tables) or not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(f"{len(tables)} tables need as many weights > 0, got {weights}")
    parts = []
    for number, (table, weight) in enumerate(zip(tables, weights, strict=True), start=1):
        where = f"table {number} of {len(tables)}"
        centred = select_rows(table, names, where) - table.embeddings.mean(axis=0, dtype=np.float64)
        parts.append(weight * normalise_rows(validate_table(names, centred, f"{where}, without its mean")))
    return np.concatenate(parts, axis=1, dtype=np.float32)


def load_class_embeddings(
    path: str | Path,
    names: Sequence[str],
    *,
    l2_normalize: bool,
    width: int | None = None,
    allow_identical: bool = False,
) -> FloatArray:
    """Embeddings of the named classes, in the order of ``names``.

    Args:
        path: npz table; it may hold more classes than asked for.
        names: class names, all different.
        l2_normalize: divide every row by its norm.
        width: width E the caller is built for; None accepts any.
        allow_identical: accept classes with equal rows, which no generator or projection can tell apart.

    Returns:
        (len(names), E) float32.

    Raises:
        MissingFileError: no such file.
        ValueError: unreadable or invalid table, missing or doubled names, equal rows, another width.
    """
    return rows_of_classes(
        read_class_embeddings(path),
        names,
        str(path),
        l2_normalize=l2_normalize,
        width=width,
        allow_identical=allow_identical,
    )


def rows_of_classes(
    table: EmbeddingTable,
    names: Sequence[str],
    where: str,
    *,
    l2_normalize: bool,
    width: int | None = None,
    allow_identical: bool = False,
) -> FloatArray:
    """What ``load_class_embeddings`` does with its table, which lies at ``where``."""
    if width is not None and table.embeddings.shape[1] != width:
        raise DataError(
            f"{where}: embeddings are {table.embeddings.shape[1]} wide, expected {width}. "
            "Set the configured width to the table's, or prepare the table with the other model."
        )
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise ValueError(
            f"Embeddings were asked twice for the same class: {_listed(doubled)}. Class names must differ."
        )
    rows = select_rows(table, names, where)
    rows = normalise_rows(rows) if l2_normalize else rows
    same = [] if allow_identical else identical_rows(names, rows)
    if same:
        raise DataError(
            f"{where}: identical embeddings: {_listed([' = '.join(group) for group in same])}. Nothing can tell these "
            "classes apart; take another table, or accept it with MODEL.PADING.EMBEDDINGS.ALLOW_IDENTICAL True."
        )
    return rows


def save_class_embeddings(path: str | Path, names: Sequence[str], embeddings: npt.ArrayLike, source: str = "") -> None:
    """Write a table; a killed process leaves the old file or none, equal tables give equal bytes.

    Args:
        path: target, ``*.npz``; missing folders are made.
        names: K class names, all different.
        embeddings: (K, E) numbers, stored as float32.
        source: one line that says where the numbers come from.

    Raises:
        DataError: if the table is invalid.
        ConfigError: if the name does not end in ``.npz``.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"{path}: a table of class embeddings is an .npz file; add the suffix.")
    table = validate_table(names, embeddings, str(path))
    arrays: dict[str, npt.NDArray[np.generic]] = {"names": np.array(list(names), dtype=np.str_), "embeddings": table}
    if source:
        arrays["source"] = np.array(source)
    write_bytes(path, _npz_bytes(arrays))


def random_class_embeddings(names: Sequence[str], width: int, seed: int) -> FloatArray:
    """Unit vectors drawn for each name on its own, for trials without text embeddings.

    The row of a class depends on its name, the width and the seed only, not on the other classes.

    Args:
        names: class names.
        width: E >= 1.
        seed: added to the CRC-32 of the name; >= 0.

    Returns:
        (len(names), width) float32, rows of norm 1.
    """
    if width < 1 or seed < 0:
        raise ConfigError(f"width must be >= 1 and seed >= 0, got width={width}, seed={seed}")
    # CRC-32 of the name, not Python's hash, which differs from process to process.
    rows = [np.random.default_rng(zlib.crc32(name.encode()) + seed).standard_normal(width) for name in names]
    return normalise_rows(np.stack(rows)) if rows else np.zeros((0, width), np.float32)


def read_word2vec_csv(path: str | Path, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Read the comma-separated word vectors that zero-shot instance segmentation passes around.

    The file has E rows and 1 + K columns; column 0 is the background, the others follow the class list, seen classes
    first. Nothing in the file names the columns, so their number is all that can be checked here.

    Args:
        path: text file.
        names: K class names in the order of the columns.

    Returns:
        Embeddings (K, E) and the background vector (E,), float32.

    Raises:
        MissingFileError: no such file.
        DataError: text that is not numbers, rows of unequal length, or another number of columns.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"No word vectors at {path}; give the path of a word_w2v_withbg_*.txt file.")
    try:
        columns = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: expected rows of comma-separated numbers of equal length ({error}).") from error
    if columns.shape[1] != len(names) + 1:
        raise DataError(
            f"{path}: {columns.shape[1]} columns, expected {len(names) + 1} (background, then {len(names)} classes). "
            "Give the class lists that belong to this file, seen classes first."
        )
    # Column 0 is the background, the others are classes: (E, 1 + K) -> (K, E).
    table = validate_table(list(names), columns[:, 1:].T, str(path))
    return table, columns[:, 0].astype(np.float32)


def nearest_known_classes(
    embeddings: npt.ArrayLike, names: Sequence[str], known_names: Sequence[str]
) -> dict[str, list[tuple[str, float]]]:
    """For every class that is not known, the three known classes of highest cosine similarity.

    Args:
        embeddings: (K, E) in the order of ``names``.
        names: K class names.
        known_names: the seen classes, each one of ``names``.

    Returns:
        Class name to (known class, cosine in [-1, 1]), best first.
    """
    unit = normalise_rows(embeddings)
    row_of = {name: row for row, name in enumerate(names)}
    known = [name for name in known_names if name in row_of]
    bank = unit[[row_of[name] for name in known]]
    report: dict[str, list[tuple[str, float]]] = {}
    for name in names:
        if name in set(known):
            continue
        cosine = bank @ unit[row_of[name]]
        order = np.argsort(-cosine, kind="stable")[:_NEIGHBOURS]
        report[name] = [(known[i], float(cosine[i])) for i in order]
    return report


def _npz_bytes(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """An npz archive whose bytes depend on the arrays alone (np.savez stores the time of writing)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=_ZIP_TIME)
            # Permissions and system are part of the bytes.
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


def _listed(items: Sequence[str]) -> str:
    """Items joined by commas, cut after a few so that an error stays readable."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
