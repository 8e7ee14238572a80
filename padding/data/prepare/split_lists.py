# SPDX-License-Identifier: Apache-2.0
"""Lists of labeled and unlabeled images: checks against protocol, hash and folder, and the drawing of new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from padding.data.files import write_text
from padding.data.loaders.listed_images import images_by_id, read_id_list
from padding.data.readers import read_text
from padding.data.roots import splits_dir
from padding.data.semi_splits import LISTS, read_semi_split
from padding.errors import DataError, ExistingFileError, MissingFileError

TABLE = "lists.tsv"
_COLUMNS = 6


@dataclass(frozen=True)
class ListedFile:
    """One row of ``datasets/splits/lists.tsv``."""

    num_ids: int  # number of ids
    sha256: str  # first 16 digits of the file's SHA-256
    # What a split's lists add up to: a list, as its path below ``datasets/splits``, or a number of images; "-" for a
    # list that is no half of a split.
    pool: str


@dataclass(frozen=True)
class SplitReport:
    """What a check found."""

    name: str  # of the split
    labeled: int  # number of labeled images
    unlabeled: int  # number of unlabeled images
    digest: str  # see ``SemiSplit``; "" where a list cannot be read
    problems: tuple[str, ...]  # one sentence each; empty: all is well


def published_lists() -> dict[str, ListedFile]:
    """Rows of the table of lists by path below ``datasets/splits``.

    Raises:
        DataError: a row has another number of columns.
    """
    rows: dict[str, ListedFile] = {}
    path = splits_dir() / TABLE
    for line in read_text(path).splitlines():
        if not line or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != _COLUMNS:
            raise DataError(f"{path}: the row '{line}' has {len(fields)} columns instead of {_COLUMNS}; repair it")
        rows[fields[0]] = ListedFile(num_ids=int(fields[1]), sha256=fields[2], pool=fields[3])
    return rows


def check_shipped_split(name: str) -> SplitReport:
    """Compare a split of ``datasets/splits`` with its protocol: counts, hashes, no common id, the stated pool."""
    rows, problems, pool = published_lists(), [], "-"
    for file in LISTS:
        row = rows.get(f"{name}/{file}")
        if row is None:
            problems.append(f"{name}/{file} is not in {TABLE}")
            continue
        pool = row.pool
        problems += _list_problems(f"{name}/{file}", row)
    if pool.isdigit():
        return _report(name, tuple(problems), num_images=int(pool))
    return _report(name, tuple(problems), pool=None if pool == "-" else read_id_list(splits_dir() / pool))


def check_split(folder: str | Path, *, image_ids: Sequence[str] | None = None) -> SplitReport:
    """Check a user's lists: readable, no id twice, no common id and, if these are given, exactly the images there are.

    Args:
        folder: with ``labeled.txt`` and ``unlabeled.txt``.
        image_ids: ids of all images; None: not compared.
    """
    report = _report(str(Path(folder).resolve()), (), pool=image_ids)  # a shipped split may have the relative name
    return replace(report, name=str(folder))


def check_pools() -> list[str]:
    """Problems of the lists that are no half of a split: whole training and validation sets."""
    rows = {name: row for name, row in published_lists().items() if row.pool == "-"}
    missing = [f"{name} is missing" for name in rows if not (splits_dir() / name).is_file()]
    return [*missing, *(problem for name, row in rows.items() for problem in _list_problems(name, row))]


def _list_problems(name: str, row: ListedFile) -> list[str]:
    path = splits_dir() / name
    if not path.is_file():
        return []  # reported by what reads the list
    problems = []
    content = path.read_bytes()
    found, count = hashlib.sha256(content).hexdigest()[:16], len(content.split())
    if count != row.num_ids:
        problems.append(f"{name} holds {count} ids, published are {row.num_ids}")
    if found != row.sha256:
        problems.append(f"{name} has the hash {found}, published is {row.sha256}; restore the file")
    return problems


def _report(
    name: str, problems: tuple[str, ...], *, pool: Sequence[str] | None = None, num_images: int | None = None
) -> SplitReport:
    try:
        split = read_semi_split(name)
    except (ValueError, FileNotFoundError) as error:
        return SplitReport(name, 0, 0, "", (*problems, str(error)))
    listed = {*split.labeled, *split.unlabeled}
    if num_images is not None and len(listed) != num_images:
        problems = (*problems, f"the lists hold {len(listed)} images, the protocol has {num_images}")
    if pool is not None:
        problems = (
            *problems,
            *_difference(listed - set(pool), "are listed, but there is no such image"),
            *_difference(set(pool) - listed, "are in neither list"),
        )
    return SplitReport(name, len(split.labeled), len(split.unlabeled), split.digest, problems)


def _difference(ids: set[str], what: str) -> list[str]:
    return [f"{len(ids)} ids {what}, first {', '.join(sorted(ids)[:3])}"] if ids else []


def image_ids_in(folder: str | Path, *, subfolders: bool = False, label_suffix: str = "") -> tuple[str, ...]:
    """Sorted ids of all images of a folder, as DATASETS.FOLDERS has them: names without ending, folders in front.

    Args:
        folder: of the images.
        subfolders: the folders below count too, as with DATASETS.FOLDERS.SUBFOLDERS.
        label_suffix: of labels that lie beside the images and are none themselves; "": there are none.

    Raises:
        MissingFileError, DataError: see ``images_by_id``.
    """
    cure = "" if subfolders else "Folders below it count with --subfolders"
    labels = f"{{id}}{label_suffix}" if label_suffix else ""
    return tuple(sorted(images_by_id(Path(folder), cure, subfolders=subfolders, labels=labels)))


def draw_labeled(image_ids: Iterable[str], count: int, *, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the labeled images as the lists of CamVid and shapes were drawn.

    ``RandomState(seed).choice`` without replacement on the sorted ids: NumPy keeps what it draws for all time, and with
    one seed a small set is part of every larger one.

    Args:
        image_ids: ids of all images, in any order.
        count: number of labeled images, at least 1 and fewer than there are.
        seed: >= 0.

    Returns:
        Labeled and unlabeled ids, both sorted.

    Raises:
        DataError: the count is out of range.
    """
    pool = sorted(set(image_ids))
    if not 1 <= count < len(pool):
        raise DataError(f"cannot label {count} of {len(pool)} images; choose a number from 1 to {len(pool) - 1}")
    drawn = set(np.random.RandomState(seed).choice(pool, count, replace=False).tolist())
    return tuple(sorted(drawn)), tuple(one for one in pool if one not in drawn)


def labeled_by_files(
    image_ids: Iterable[str], label_folder: str | Path, *, suffix: str = ".png"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labeled are the images with a label file of their name in a folder, unlabeled the others.

    Args:
        image_ids: ids of all images.
        label_folder: of the label files.
        suffix: what their names have behind the id, as DATASETS.FOLDERS.LABEL_SUFFIX.

    Returns:
        Labeled and unlabeled ids, both sorted.

    Raises:
        MissingFileError: there is no such folder.
        DataError: it holds labels of no image, or of every image.
    """
    folder = Path(label_folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of labels")
    pool = sorted(set(image_ids))
    labeled = tuple(one for one in pool if (folder / f"{one}{suffix}").is_file())
    if not 1 <= len(labeled) < len(pool):
        raise DataError(
            f"{folder} holds labels (ID{suffix}) of {len(labeled)} of the {len(pool)} images; lists of labeled and "
            "unlabeled images need some of both"
        )
    return labeled, tuple(sorted(set(pool) - set(labeled)))


def write_split(folder: str | Path, labeled: Sequence[str], unlabeled: Sequence[str]) -> None:
    """Write the two lists.

    Raises:
        ExistingFileError: one of them is there already, perhaps that of a finished training.
    """
    folder = Path(folder)
    for file in LISTS:
        if (folder / file).exists():
            raise ExistingFileError(f"{folder / file} exists; choose another folder, or delete both lists")
    for file, ids in zip(LISTS, (labeled, unlabeled), strict=True):
        write_text(folder / file, "".join(f"{one}\n" for one in ids))
