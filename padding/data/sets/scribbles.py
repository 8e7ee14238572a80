# SPDX-License-Identifier: Apache-2.0
"""The table of scribble training sets: images of a dense set, where their scribbles lie, how they are simulated.

Training labels are scribbles, evaluation stays on the dense validation sets. ``datasets/prepare_scribbles.py`` fills
the folders, from published annotations or by simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from padding.data.class_split import class_split_of
from padding.data.loaders.panoptic_json import require_files
from padding.data.registration import register_data_set
from padding.data.roots import splits_dir
from padding.data.sample import IGNORE_LABEL, SCRIBBLE_PADDING, DatasetDict
from padding.data.scribbles.tags import ScribbleTags, read_tag_table
from padding.data.sets.pascal_context import CONTEXT_FOLDER, context_label_map, context_tags
from padding.data.sets.voc import VOC_FOLDER


@dataclass(frozen=True)
class ScribbleSet:
    """One training set."""

    name: str  # registered name
    dense: str  # registered set of the same images with dense labels
    folder: Path  # of the scribble PNGs, below the data root
    # Fields of ``scribbles.simulator.SimulatorConfig`` that suit the size of its images.
    simulator: Mapping[str, Any] = field(default_factory=dict)
    written_as: str = ""  # set whose class numbers the PNGs have, where that is another one


LENGTHS_PCT = (0, 10, 25, 50)
"""Shares of each curve for which sets of their own are registered, ``<name>_length_<percentage>``; 0: dots."""

_SIMULATED = (
    # Of 128 pixels a line of one covers the share that three cover in VOC, where people scribbled.
    ScribbleSet(
        "shapes_train_scribble_coarse",
        "shapes_train_sem_seg_coarse",
        Path("shapes/scribble_coarse/train"),
        {"width": 1, "min_area": 30, "erosion": (1.0, 5.0)},
    ),
    ScribbleSet("camvid_train_scribble", "camvid_train_sem_seg", Path("camvid/scribble/train"), {"min_area": 40}),
    # Clothes are small beside the background: thin lines, drawn on what is left of a garment near its border.
    ScribbleSet(
        "ccp_train_scribble",
        "ccp_train_labeled_sem_seg",
        Path("ccp/scribble/train"),
        {"width": 2, "min_area": 30, "erosion": (1.0, 10.0)},
    ),
    ScribbleSet(
        "cityscapes_train_scribble",
        "cityscapes_train_sem_seg",
        Path("cityscapes/scribble/train"),
        {"width": 5, "min_area": 300, "erosion": (2.0, 40.0), "erosion_share": (0.007, 0.07)},
    ),
)
_PUBLISHED = (
    ScribbleSet("voc_2012_train_aug_scribble", "voc_2012_train_aug_sem_seg", VOC_FOLDER / "ScribbleClassAug"),
    ScribbleSet("pascal_context_train_scribble_60", "pascal_context_train_60", CONTEXT_FOLDER / "ScribbleContext60"),
    ScribbleSet(
        "pascal_context_train_scribble_59",
        "pascal_context_train_59",
        CONTEXT_FOLDER / "ScribbleContext60",
        written_as="pascal_context_train_scribble_60",
    ),
)


def _shortened(one: ScribbleSet, length_pct: int) -> ScribbleSet:
    """The same set with less ink: the same curves, a share of each."""
    folder = one.folder.parent.with_name(f"{one.folder.parent.name}_length_{length_pct}") / one.folder.name
    simulator = {**one.simulator, "length": length_pct / 100}
    return replace(one, name=f"{one.name}_length_{length_pct}", folder=folder, simulator=simulator)


SCRIBBLE_SETS: Mapping[str, ScribbleSet] = {
    one.name: one
    for one in (*_SIMULATED, *_PUBLISHED, *(_shortened(one, pct) for one in _SIMULATED for pct in LENGTHS_PCT))
}


def label_key(entry: DatasetDict) -> str:
    """Name of the files that are made for an image: its id where that is a name, else the stem of its file."""
    image_id = entry["image_id"]
    return image_id if isinstance(image_id, str) else Path(entry["file_name"]).stem


def load_scribbles(dense: str, *, label_root: str | Path, cure: str = "") -> list[DatasetDict]:
    """Images of a registered data set with scribbles as their labels.

    Args:
        dense: the data set.
        label_root: folder of the scribbles, ``<label_key>.png``.
        cure: sentence for error messages: how they are made.

    Raises:
        MissingFileError: an image has none; a training set without it would teach nothing.
    """
    from detectron2.data import DatasetCatalog

    entries: list[DatasetDict] = [
        {**entry, "sem_seg_file_name": str(Path(label_root) / f"{label_key(entry)}.png")}
        for entry in DatasetCatalog.get(dense)
    ]
    require_files(label_root, [entry["sem_seg_file_name"] for entry in entries], cure)
    return entries


def register_scribbles(
    name: str, *, dense: str, label_root: str | Path, label_map: Mapping[int, int] | None = None, cure: str = ""
) -> None:
    """Register the images of a dense semantic set with scribbles as their labels.

    The metadata names the dense set, as ``dense_set``.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        dense: registered set of the images; its classes are those of the scribbles.
        label_root: see ``load_scribbles``.
        label_map: value in the scribble PNGs -> contiguous id or the ignore label; None: the values are contiguous ids.
            In either case 255 and 254, which published scribbles use for padding, are ignored.
        cure: sentence for error messages: how the scribbles are made.

    Raises:
        ValueError: ``name`` belongs to somebody else, or ``dense`` is unknown.
    """
    from detectron2.data import MetadataCatalog

    split = class_split_of(dense)
    values = {i: i for i in range(split.num_classes)} if label_map is None else dict(label_map)
    values |= {IGNORE_LABEL: IGNORE_LABEL, SCRIBBLE_PADDING: IGNORE_LABEL}
    loader = partial(load_scribbles, dense, label_root=label_root, cure=cure)
    files = {"label_root": str(label_root)}
    register_data_set(name, loader, split, "sem_seg", unseen_only=False, label_map=values, files=files)
    MetadataCatalog.get(name).set(dense_set=dense)


def scribble_tags(dense: str) -> ScribbleTags:
    """What the tags of annotation files mean: class names of a registered dense set and, where known, ScribbleSup's."""
    tags: Mapping[str, str] = {}
    if dense.startswith("voc_"):
        tags = read_tag_table(splits_dir() / "voc" / "scribble_tags.tsv")
    elif dense.startswith("pascal_context_") and dense.endswith("_60"):
        tags = context_tags()
    return ScribbleTags.of(class_split_of(dense), tags)


def register_scribble_sets(root: Path) -> None:
    """Register every set of the table; the dense sets must be registered."""
    for one in SCRIBBLE_SETS.values():
        register_scribbles(
            one.name,
            dense=one.dense,
            label_root=root / one.folder,
            label_map=context_label_map(59) if one.written_as else None,
            cure="Make the scribbles with: python datasets/prepare_scribbles.py simulate --dataset "
            f"{one.written_as or one.name} (or convert published ones, see datasets/README.md)",
        )
