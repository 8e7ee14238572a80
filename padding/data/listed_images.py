# SPDX-License-Identifier: Apache-2.0
"""Loader of images with one semantic PNG each, listed by their ids in a text file or by what a folder holds.

Masks are not looked for here: unlabeled images need none, and a labeled one without is reported when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from padding.data.panoptic_json import check_files
from padding.data.sample import DatasetDict

__all__ = ["IMAGE_ENDINGS", "load_listed_images", "read_id_list"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_id_list(path: str | Path) -> tuple[str, ...]:
    """Ids of a text file, one a line; blank lines and lines that start with # are skipped.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: an id stands in it twice, or the list is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of image ids; datasets/README.md names those that exist")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    ids = tuple(line for line in lines if line and not line.startswith("#"))
    if not ids:
        raise ValueError(f"{path}: the list holds no image id; expected one a line")
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ValueError(f"{path}: image id {twice} stands more than once; remove the repetition")
    return ids


def load_listed_images(
    *,
    image_root: str | Path,
    label_root: str | Path,
    image_ids: str | Path | None = None,
    image_name: str = "{id}.jpg",
    label_name: str = "{id}.png",
    cure: str = "",
) -> list[DatasetDict]:
    """List the images of a semantic data set.

    Args:
        image_root: folder of the images.
        label_root: folder of the label PNGs; need not exist for images that are used without labels.
        image_ids: text file of ids, see ``read_id_list``; None: every image of the folder, in order of its name.
        image_name: path below ``image_root``; {id} is the id, {city} what stands before its first underscore.
        label_name: path below ``label_root``, likewise.
        cure: sentence for error messages: how the files are obtained.

    Returns:
        Entries with ``file_name``, ``sem_seg_file_name`` and ``image_id``, in the order of the list. Sizes are not
        listed, so that no image is opened.

    Raises:
        FileNotFoundError: the list, the image folder or an image is missing.
    """
    image_root, label_root = Path(image_root), Path(label_root)
    if image_ids is None:
        names = _images_in(image_root, cure)
        ids: Sequence[str] = [Path(name).stem for name in names]
    else:
        ids = read_id_list(image_ids)
        names = [image_name.format(id=i, city=i.split("_")[0]) for i in ids]
    entries: list[DatasetDict] = [
        {
            "file_name": str(image_root / name),
            "image_id": i,
            "sem_seg_file_name": str(label_root / label_name.format(id=i, city=i.split("_")[0])),
        }
        for i, name in zip(ids, names, strict=True)
    ]
    check_files(image_root, [entry["file_name"] for entry in entries], cure)
    return entries


def _images_in(folder: Path, cure: str) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images. {cure}".rstrip())
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
    stems = [Path(name).stem for name in names]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if not names or twice:
        why = f"{twice[0]} exists with two endings" if twice else f"no image ({', '.join(IMAGE_ENDINGS)})"
        raise ValueError(f"{folder}: {why}; give every image one file. {cure}".rstrip())
    return names
