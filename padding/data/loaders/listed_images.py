# SPDX-License-Identifier: Apache-2.0
"""Loader of images with one semantic PNG each, listed by their ids in a text file or by what a folder holds.

Masks are not looked for here: unlabeled images need none, and a labeled one without is reported when it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from padding.data.loaders.panoptic_json import require_files
from padding.data.photographs import IMAGE_ENDINGS
from padding.data.readers import read_text
from padding.data.sample import DatasetDict
from padding.errors import DataError, MissingFileError


def read_id_list(path: str | Path) -> tuple[str, ...]:
    """Ids of a text file, one a line; blank lines and lines that start with # are skipped.

    Raises:
        MissingFileError: there is no such list.
        DataError: an id stands in it twice, or the list is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such list of image ids; datasets/README.md names those that exist")
    lines = (line.strip() for line in read_text(path).splitlines())
    ids = tuple(line for line in lines if line and not line.startswith("#"))
    if not ids:
        raise DataError(f"{path}: the list holds no image id; expected one a line")
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: image id {twice} stands {count} times; remove the repetitions")
    return ids


def load_listed_images(
    *,
    image_root: str | Path,
    label_root: str | Path,
    image_ids: str | Path | None = None,
    excluded_ids: str | Path | None = None,
    image_name: str = "",
    label_name: str = "{id}.png",
    subfolders: bool = False,
    cure: str = "",
) -> list[DatasetDict]:
    """List the images of a semantic data set.

    Args:
        image_root: folder of the images.
        label_root: folder of the label PNGs; need not exist for images that are used without labels.
        image_ids: text file of ids, see ``read_id_list``; None: every image of the folder, in order of its name.
        excluded_ids: text file of ids of the folder's images that are left out; only without ``image_ids``.
        image_name: path below ``image_root``; {id} is the id, {city} what stands before its first underscore. "": the
            file with this stem and one of ``photographs.IMAGE_ENDINGS``.
        label_name: path below ``label_root``, likewise.
        subfolders: images of the folders below count too; an id is then a path without its ending, "night/a".
        cure: sentence for error messages: how the files are obtained.

    Returns:
        Entries with ``file_name``, ``sem_seg_file_name`` and ``image_id``, in the order of the list. Sizes are not
        listed, so that no image is opened.

    Raises:
        MissingFileError: the list, the image folder or an image is missing.
        ValueError: two images share a stem, or the folder has none.
    """
    image_root, label_root = Path(image_root), Path(label_root)
    if image_name and image_ids is not None:
        files = {i: _place(image_name, i) for i in read_id_list(image_ids)}
        require_files(image_root, [str(image_root / name) for name in files.values()], cure)
    else:
        # Roboflow puts a.jpg and its label a_mask.png into one folder.
        labels = label_name if image_root.resolve() == label_root.resolve() else ""
        files = images_by_id(image_root, cure, subfolders=subfolders, labels=labels)
        if image_ids is not None:
            files = _only(files, read_id_list(image_ids), folder=image_root, listed_in=image_ids)
        elif excluded_ids is not None:
            left_out = _only(files, read_id_list(excluded_ids), folder=image_root, listed_in=excluded_ids)
            files = {i: name for i, name in files.items() if i not in left_out}
    return [
        {
            "file_name": str(image_root / name),
            "image_id": i,
            "sem_seg_file_name": str(label_root / _place(label_name, i)),
        }
        for i, name in files.items()
    ]


def _place(pattern: str, image_id: str) -> str:
    return pattern.format(id=image_id, city=image_id.split("_")[0])


def _id_of(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def images_by_id(folder: Path, cure: str, *, subfolders: bool = False, labels: str = "") -> dict[str, str]:
    """File name of every image of a folder (and of those below) by its id, in order of the names.

    Args:
        folder: of the images.
        cure: sentence for error messages.
        subfolders: the folders below count too.
        labels: ``label_name`` of labels that lie beside the images; such files of other images are none themselves.

    Raises:
        MissingFileError: there is no such folder.
        DataError: it has no image, or two of one id.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of images. {cure}".rstrip())
    found = folder.rglob("[!.]*") if subfolders else folder.glob("[!.]*")
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in IMAGE_ENDINGS)
    if labels:
        of_others = {label for name in names if (label := _place(labels, _id_of(name))) != name}
        names = [name for name in names if name not in of_others]
    files = {_id_of(name): name for name in names}
    if not names:
        raise DataError(f"{folder}: holds no image ({', '.join(IMAGE_ENDINGS)}). {cure}".rstrip())
    if len(files) < len(names):
        by_id = {name: files[_id_of(name)] for name in names}
        twice = next(name for name in names if by_id[name] != name)
        raise DataError(f"{folder}: {twice} and {by_id[twice]} have one id; give every image one file")
    return files


def _only(files: Mapping[str, str], ids: Sequence[str], *, folder: Path, listed_in: str | Path) -> dict[str, str]:
    missing = [i for i in ids if i not in files]
    if missing:
        raise MissingFileError(
            f"{folder}: has no image {missing[0]}, nor {len(missing) - 1} others of the {len(ids)} that {listed_in} "
            "lists; ids are file names without their ending"
        )
    return {i: files[i] for i in ids}
