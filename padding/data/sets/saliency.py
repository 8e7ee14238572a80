# SPDX-License-Identifier: Apache-2.0
"""The table of saliency sets: published ones with a map for each image, ``shapes``, and those derived from labels.

Published sets lie below the data root as their archives unpack, or in one of the usual other layouts. Every set has the
two classes of ``saliency_split`` and the evaluator "saliency".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from padding.data.class_split import ClassSplit, class_split_of
from padding.data.loaders.listed_images import images_by_id
from padding.data.registration import register_data_set, registered_names
from padding.data.sample import IGNORE_LABEL, DatasetDict
from padding.data.sets.voc import VOC_NAMES
from padding.errors import DataError, MissingFileError

# In order of preference, compared without regard to case; the archives' own names first.
_IMAGES = ("images", "image", "imgs", "img", "dut-omron-image")
_MASKS = ("masks", "mask", "ground_truth_mask", "gt", "pixelwisegt-new-png", "annotations")
_CURE = "datasets/README.md lists sources and layouts; python datasets/prepare_saliency.py --check looks at a folder."
_SHAPES_CURE = "Generate the data with: python datasets/prepare_shapes.py"

SALIENT_CLASSES: Mapping[str, tuple[str, ...]] = {
    # What a road scene is about: those who take part in the traffic, and the signs they look for.
    "camvid": ("sign", "car", "pedestrian", "bicyclist"),
    # The "thing" classes.
    "cityscapes": ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "voc_2012": VOC_NAMES[1:],
}
"""Names of the classes that are salient, for each family of data sets."""

DERIVED_SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    f"{family}_{part}_saliency": (f"{family}_{part}_sem_seg", SALIENT_CLASSES[family])
    for family, parts in (
        ("camvid", ("train", "val")),
        ("cityscapes", ("train", "val")),
        ("voc_2012", ("train_aug", "val")),
    )
    for part in parts
}
"""Registered name -> semantic set, and the names of its salient classes."""


@dataclass(frozen=True)
class SaliencySet:
    """A published set."""

    name: str  # registered name
    title: str  # as it is published
    folder: str  # below the data root
    count: int  # published number of images
    images: tuple[str, ...] = _IMAGES  # names of the folder of images, the first one that exists is taken
    masks: tuple[str, ...] = _MASKS  # names of the folder of saliency maps


SALIENCY_SETS: Mapping[str, SaliencySet] = {
    one.name: one
    for one in (
        SaliencySet("duts_train", "DUTS-TR", "DUTS-TR", 10553, ("duts-tr-image", *_IMAGES), ("duts-tr-mask", *_MASKS)),
        SaliencySet("duts_test", "DUTS-TE", "DUTS-TE", 5019, ("duts-te-image", *_IMAGES), ("duts-te-mask", *_MASKS)),
        SaliencySet("ecssd_test", "ECSSD", "ECSSD", 1000),
        SaliencySet("hku_is_test", "HKU-IS", "HKU-IS", 4447),
        SaliencySet("pascal_s_test", "PASCAL-S", "PASCAL-S", 850),
        SaliencySet("dut_omron_test", "DUT-OMRON", "DUT-OMRON", 5168),
    )
}

SALIENCY_PARTS: Mapping[str, tuple[str, bool]] = {
    "ecssd_train_800": ("ecssd_test", False),
    "ecssd_test_200": ("ecssd_test", True),
}
"""Registered name of a part of a published set -> that set, and whether the part is for tests (``saliency_part``)."""
_TEST_EVERY = 5


@dataclass(frozen=True)
class Pairing:
    """Images and saliency maps of two folders, brought together by the stems of their names."""

    images: Path  # folder of the images
    masks: Path  # folder of the maps
    entries: tuple[DatasetDict, ...]  # in order of the image names
    without_mask: tuple[str, ...]  # names of images that have no map
    without_image: tuple[str, ...]  # names of maps that have no image


def saliency_split() -> ClassSplit:
    """The label space of saliency: background and what stands out."""
    return ClassSplit(
        names=("background", "salient"), is_thing=(False, True), dataset_ids=(0, 1), colors=((0, 0, 0), (255, 255, 255))
    )


def pair_saliency(
    folder: str | Path, *, images: Sequence[str] = _IMAGES, masks: Sequence[str] = _MASKS, cure: str = ""
) -> Pairing:
    """Find the two folders of a saliency set, and the map of each image.

    Args:
        folder: of the set.
        images: names of the folder of images below it, without regard to case, or paths such as "images/train"; the
            first that exists is taken.
        masks: likewise, of the maps.
        cure: sentence for error messages: how the files are obtained.

    Raises:
        MissingFileError: ``folder`` or one of the two folders is missing.
        ValueError: a folder is empty, or two of its files have one stem.
    """
    folder = Path(folder)
    image_root, mask_root = _subfolder(folder, images, "images", cure), _subfolder(folder, masks, "maps", cure)
    pictures, maps = images_by_id(image_root, cure), images_by_id(mask_root, cure)
    entries: list[DatasetDict] = [
        {"file_name": str(image_root / name), "image_id": i, "saliency_file_name": str(mask_root / maps[i])}
        for i, name in pictures.items()
        if i in maps
    ]
    return Pairing(
        image_root,
        mask_root,
        tuple(entries),
        without_mask=tuple(name for i, name in pictures.items() if i not in maps),
        without_image=tuple(name for i, name in maps.items() if i not in pictures),
    )


def _subfolder(folder: Path, names: Sequence[str], what: str, cure: str) -> Path:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder. {cure}".rstrip())
    # Published archives differ in the case of their folders.
    present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for name in names:
        found = present.get(name.lower(), folder / name)
        if found.is_dir():
            return found
    raise MissingFileError(f"{folder}: has no folder of {what} ({', '.join(names)}). {cure}".rstrip())


def load_saliency(
    folder: str | Path, *, images: Sequence[str] = _IMAGES, masks: Sequence[str] = _MASKS, cure: str = ""
) -> list[DatasetDict]:
    """Entries of a saliency set: ``file_name``, ``image_id`` and ``saliency_file_name``, see ``pair_saliency``.

    Raises:
        MissingFileError: a folder is missing, or an image has no map.
        DataError: a map has no image, a folder is empty, or two files have one stem.
    """
    pairs = pair_saliency(folder, images=images, masks=masks, cure=cure)
    if pairs.without_mask:
        raise MissingFileError(
            f"{pairs.masks}: has no map of {pairs.without_mask[0]}, nor of {len(pairs.without_mask) - 1} other images "
            f"of {pairs.images}; both are paired by their names without ending. {cure}".rstrip()
        )
    if pairs.without_image:
        raise DataError(
            f"{pairs.images}: has no image of the map {pairs.without_image[0]}, nor of {len(pairs.without_image) - 1} "
            f"others of {pairs.masks}; were the images unpacked completely? {cure}".rstrip()
        )
    return list(pairs.entries)


def saliency_part(load: Callable[[], list[DatasetDict]], *, is_test: bool) -> list[DatasetDict]:
    """A part of a set that was published without: every fifth image in the order of names is for tests.

    Args:
        load: gives the entries of the whole set.
        is_test: those images, or all others.

    Raises:
        DataError: the set is too small to have both parts.
    """
    entries = load()
    if len(entries) < _TEST_EVERY:
        raise DataError(
            f"a saliency set of {len(entries)} images cannot be divided into images for training and tests, every "
            f"{_TEST_EVERY}th is for tests; is the set complete? {_CURE}"
        )
    return [entry for number, entry in enumerate(entries, start=1) if (number % _TEST_EVERY == 0) == is_test]


def load_derived_saliency(dense: str, salient_classes: Sequence[int]) -> list[DatasetDict]:
    """Entries of a registered semantic set, with what ``read_saliency`` needs to make saliency of their labels.

    Args:
        dense: the semantic set.
        salient_classes: contiguous ids; the other classes are background.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    split = class_split_of(dense)
    plain = {i: i for i in (*range(split.num_classes), IGNORE_LABEL)}
    label_map = dict(getattr(MetadataCatalog.get(dense), "sem_seg_label_map", None) or plain)
    added: DatasetDict = {"salient_classes": tuple(salient_classes), "sem_seg_label_map": label_map}
    return [{**entry, **added} for entry in DatasetCatalog.get(dense)]


def register_saliency(
    name: str,
    folder: str | Path,
    *,
    images: Sequence[str] = _IMAGES,
    masks: Sequence[str] = _MASKS,
    cure: str = "",
) -> None:
    """Register a folder of images and one of saliency maps under ``name``; see ``load_saliency``.

    Raises:
        ValueError: ``name`` belongs to a data set that was registered by somebody else.
    """
    loader = partial(load_saliency, folder, images=images, masks=masks, cure=cure)
    files = {"saliency_folder": str(folder)}
    register_data_set(name, loader, saliency_split(), "saliency", unseen_only=False, files=files)


def register_derived_saliency(name: str, *, dense: str, salient: Sequence[str]) -> None:
    """Register the images of a semantic set with the saliency that follows from their labels.

    The metadata has ``dense_set`` and ``salient_classes``.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        dense: registered semantic set.
        salient: names of its salient classes.

    Raises:
        DataError: a class is unknown, or ``name`` belongs to somebody else.
    """
    from detectron2.data import MetadataCatalog

    names = class_split_of(dense).names
    unknown = [one for one in salient if one not in names]
    if unknown or not salient:
        raise DataError(
            f"data set '{name}': {unknown[0] if unknown else 'nothing'} is to be salient, but the classes of '{dense}' "
            f"are {', '.join(names)}"
        )
    ids = tuple(names.index(one) for one in salient)
    loader = partial(load_derived_saliency, dense, ids)
    register_data_set(name, loader, saliency_split(), "saliency", unseen_only=False, files={"dense_set": dense})
    MetadataCatalog.get(name).set(salient_classes=ids)


def registered_saliency() -> dict[str, Callable[[], list[DatasetDict]]]:
    """Name -> loader of the registered sets of this project whose evaluation is that of saliency."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names = [name for name in registered_names() if MetadataCatalog.get(name).evaluator_type == "saliency"]
    return {name: partial(DatasetCatalog.get, name) for name in names}


def register_saliency_sets(root: Path) -> None:
    """Register every set of the tables and those of ``shapes``; the semantic sets must be registered."""
    for one in SALIENCY_SETS.values():
        register_saliency(one.name, root / one.folder, images=one.images, masks=one.masks, cure=_CURE)
    for name, (whole, is_test) in SALIENCY_PARTS.items():
        one = SALIENCY_SETS[whole]
        load = partial(load_saliency, root / one.folder, images=one.images, masks=one.masks, cure=_CURE)
        files = {"saliency_folder": str(root / one.folder)}
        loader = partial(saliency_part, load, is_test=is_test)
        register_data_set(name, loader, saliency_split(), "saliency", unseen_only=False, files=files)
    for part in ("train", "val"):
        # Things in the colours of the background; against it plain ones stand out too clearly to learn anything.
        for name, images in (("saliency", "images_camouflaged"), ("saliency_plain", "images")):
            register_saliency(
                f"shapes_{part}_{name}",
                root / "shapes",
                images=(f"{images}/{part}",),
                masks=(f"saliency/{part}",),
                cure=_SHAPES_CURE,
            )
    for name, (dense, salient) in DERIVED_SETS.items():
        register_derived_saliency(name, dense=dense, salient=salient)
