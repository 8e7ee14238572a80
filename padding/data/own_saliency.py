# SPDX-License-Identifier: Apache-2.0
"""A user's own images with saliency maps: ``own_train_saliency`` and ``own_val_saliency`` by DATASETS.FOLDERS."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from padding.data.loaders.listed_images import load_listed_images
from padding.data.own_data import KEY, OWN_SALIENCY, OwnData
from padding.data.registration import register_data_set
from padding.data.sample import DatasetDict
from padding.data.sets.saliency import saliency_split
from padding.errors import MissingFileError

_CURE = f"The folders are those of {KEY}"


def register_own_saliency(own: OwnData) -> None:
    """Register the images that have a map; those for tests are VAL_LIST's, or in folders of their own.

    Args:
        own: checked keys, SALIENCY among them.
    """
    train, val = OWN_SALIENCY
    shared = not own.saliency_images  # with the class labels
    listed = own.val_list if shared else ""
    _register(train, own.saliency_images or own.images, own.saliency, own, excluded_ids=listed or None)
    test_images = own.val_saliency_images or own.val_images
    if own.val_saliency and test_images:
        _register(val, test_images, own.val_saliency, own)
    elif listed:
        _register(val, own.images, own.val_saliency or own.saliency, own, image_ids=listed)


def _register(
    name: str,
    images: str,
    maps: str,
    own: OwnData,
    *,
    image_ids: str | None = None,
    excluded_ids: str | None = None,
) -> None:
    loader = partial(
        load_saliency_folders,
        images,
        maps,
        suffix=own.saliency_suffix,
        subfolders=own.subfolders,
        image_ids=image_ids,
        excluded_ids=excluded_ids,
    )
    files = {"saliency_folder": maps}
    register_data_set(name, loader, saliency_split(), "saliency", unseen_only=False, files=files)


def load_saliency_folders(
    images: str | Path,
    maps: str | Path,
    *,
    suffix: str = ".png",
    subfolders: bool = False,
    image_ids: str | Path | None = None,
    excluded_ids: str | Path | None = None,
) -> list[DatasetDict]:
    """Entries of the images that have a saliency map.

    Args:
        images: folder of the images.
        maps: folder of the maps.
        suffix: what stands in the name of a map in place of the image's ending.
        subfolders: images of the folders below count too; their maps lie in folders of the same names.
        image_ids: text file of ids, file names without ending; None: every image.
        excluded_ids: likewise, of images that are left out.

    Raises:
        MissingFileError: a folder or list is missing, or no image has a map.
        DataError: two images share an id, or the folder has none.
    """
    listed = load_listed_images(
        image_root=images,
        label_root=maps,
        image_ids=image_ids,
        excluded_ids=excluded_ids,
        label_name=f"{{id}}{suffix}",
        subfolders=subfolders,
        cure=_CURE,
    )
    entries: list[DatasetDict] = [
        {"file_name": entry["file_name"], "image_id": entry["image_id"], "saliency_file_name": path}
        for entry in listed
        if Path(path := entry["sem_seg_file_name"]).is_file()
    ]
    if not entries:
        raise MissingFileError(
            f"{maps}: holds a map of none of the {len(listed)} images, such as "
            f"{Path(listed[0]['sem_seg_file_name']).name}; {KEY}.SALIENCY is the folder and SALIENCY_SUFFIX the end "
            "of their names"
        )
    return entries
