# SPDX-License-Identifier: Apache-2.0
"""What DATASETS.FOLDERS says about a user's own data, and which of its keys belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.sets.voc import voc_palette
from padding.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

KEY = "DATASETS.FOLDERS"
OWN_NAMES = ("own_train", "own_val")
OWN_UNSEEN = "own_val_unseen"
OWN_DENSE = "own_train_dense"
OWN_SALIENCY = ("own_train_saliency", "own_val_saliency")
_LAYOUT = ("label_suffix", "saliency_suffix", "subfolders")  # have a default that means something


@dataclass(frozen=True)
class OwnData:
    """The keys of DATASETS.FOLDERS, explained in ``padding.data.config``; paths, "" where there is none."""

    images: str = ""
    labels: str = ""
    label_suffix: str = ".png"
    subfolders: bool = False
    classes: str = ""
    val_images: str = ""
    val_labels: str = ""
    val_list: str = ""
    label_values: Sequence[int | Sequence[int]] = ()
    void_values: Sequence[int] = ()
    unseen: Sequence[str] = ()
    scribbles: str = ""
    annotations: str = ""
    panoptic: str = ""
    val_annotations: str = ""
    val_panoptic: str = ""
    saliency: str = ""
    saliency_images: str = ""
    saliency_suffix: str = ".png"
    val_saliency: str = ""
    val_saliency_images: str = ""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> OwnData:
        """The keys of a configuration."""
        node = cfg.DATASETS.FOLDERS
        return cls(**{field.name: node[field.name.upper()] for field in fields(cls)})

    @property
    def given(self) -> list[str]:
        """Keys that have a value, layout aside."""
        return [f.name.upper() for f in fields(self) if f.name not in _LAYOUT and getattr(self, f.name)]

    @property
    def has_classes(self) -> bool:
        """Whether there are labels of classes, not saliency alone."""
        return bool(self.labels or self.annotations or self.scribbles)

    def check(self) -> None:
        """Keys that need each other are there, and none contradicts another.

        Raises:
            ConfigError: names the keys.
            MissingFileError: CLASSES does not exist.
        """
        if not self.images and not (self.saliency and self.saliency_images):
            raise ConfigError(f"{KEY}.{self.given[0]} is set, but {KEY}.IMAGES is empty; name the folder of the images")
        self._refuse("ANNOTATIONS", ("LABELS", "SCRIBBLES", "VAL_LABELS", "LABEL_VALUES", "VOID_VALUES"))
        for key in ("PANOPTIC", "VAL_ANNOTATIONS", "VAL_PANOPTIC"):
            self._need(key, "ANNOTATIONS")
        self._need("VAL_PANOPTIC", "PANOPTIC")
        for key in ("SALIENCY_IMAGES", "VAL_SALIENCY", "VAL_SALIENCY_IMAGES"):
            self._need(key, "SALIENCY")
        if not self.has_classes and not self.saliency:
            raise ConfigError(
                f"{KEY}.IMAGES is '{self.images}', but there are no labels; set LABELS (index images), SCRIBBLES, "
                "ANNOTATIONS (COCO's JSON) or SALIENCY"
            )
        if (self.labels or self.scribbles) and not self.classes:
            raise ConfigError(f"{KEY}.IMAGES is '{self.images}', but {KEY}.CLASSES is empty; label images need it")
        if self.has_classes:
            self._check_evaluation()
        if self.classes and not Path(self.classes).is_file():
            raise MissingFileError(
                f"{KEY}.CLASSES: {self.classes} does not exist; write one class name a line, label 0 first"
            )

    def _check_evaluation(self) -> None:
        kind = "VAL_ANNOTATIONS" if self.annotations else "VAL_LABELS"
        labels = self.val_annotations if self.annotations else self.val_labels
        if (self.val_images and (self.val_list or not labels)) or (labels and self.val_list and self.annotations):
            raise ConfigError(
                f"{KEY}: set VAL_IMAGES and {kind}, or VAL_LIST, or none of them; got '{self.val_images}', '{labels}' "
                f"and '{self.val_list}'"
            )
        if not self.annotations and labels and not (self.val_images or self.val_list):
            raise ConfigError(f"{KEY}: set VAL_IMAGES and VAL_LABELS, or VAL_LIST; got '', '{labels}' and ''")
        if self.scribbles and self.val_list and not (self.labels or self.val_labels):
            raise ConfigError(
                f"{KEY}.SCRIBBLES are no labels to evaluate on; name those of the images in VAL_LIST by LABELS or "
                "VAL_LABELS"
            )

    def _need(self, key: str, other: str) -> None:
        if getattr(self, key.lower()) and not getattr(self, other.lower()):
            raise ConfigError(f"{KEY}.{key} is set, but {KEY}.{other} is empty; set both, or none")

    def _refuse(self, key: str, others: Sequence[str]) -> None:
        both = [other for other in others if getattr(self, other.lower())]
        if getattr(self, key.lower()) and both:
            raise ConfigError(f"{KEY}.{key} and {KEY}.{both[0]} are two kinds of labels; leave one of them empty")


def folder_classes(path: str | Path, unseen: Sequence[str] = ()) -> ClassSplit:
    """Label space of a text file: the name in line n, from 0 on, is the class of label value n.

    Args:
        path: of the text file.
        unseen: names of the classes that training does not know.

    Raises:
        MissingFileError, DataError: see ``read_name_list``.
        ConfigError: an unseen name is not in the file, or no class is seen.
    """
    names = read_name_list(path)
    check_unseen(names, unseen, place=path)
    return ClassSplit(
        names=names,
        unseen_names=frozenset(unseen),
        is_thing=(False,) * len(names),
        dataset_ids=tuple(range(len(names))),
        colors=voc_palette(len(names)),
    )


def check_unseen(names: Sequence[str], unseen: Sequence[str], *, place: str | Path) -> None:
    """Unseen names are classes, and at least one class is seen.

    Raises:
        ConfigError: names the key and ``place``, the file that lists the classes.
    """
    if unknown := sorted(set(unseen) - set(names)):
        raise ConfigError(f"{KEY}.UNSEEN names {unknown}, which {place} does not list; it has {', '.join(names)}")
    if set(unseen) == set(names):
        raise ConfigError(f"{KEY}.UNSEEN names all {len(names)} classes; leave some of them to learn from")
