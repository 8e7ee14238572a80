# SPDX-License-Identifier: Apache-2.0
"""Train ids of Cityscapes from its label ids, as cityscapesscripts makes them from the polygons."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.loaders.listed_images import read_id_list
from padding.data.prepare.label_conversion import LabelPair
from padding.data.readers import read_label_map
from padding.data.roots import splits_dir
from padding.data.sets.cityscapes import TRAIN_ID_NAME, cityscapes_label_map
from padding.data.targets import translate_labels


def read_label_ids(path: Path) -> npt.NDArray[np.uint8]:
    """(h, w) uint8 train ids, 0 to 18 and 255, of a ``..._gtFine_labelIds.png``.

    Raises:
        MissingFileError, DataError: the file cannot be read, or holds other values.
    """
    labels = read_label_map(path, cure="unpack gtFine_trainvaltest.zip again")
    return translate_labels(labels, cityscapes_label_map(), path=path)


def cityscapes_label_pairs(folder: Path, part: str) -> list[LabelPair]:
    """Label ids and train ids of every listed image of ``part``, "train" or "val"."""
    root = folder / "gtFine" / part
    pairs = []
    for i in read_id_list(splits_dir() / "cityscapes" / f"{part}.txt"):
        target = root / TRAIN_ID_NAME.format(city=i.split("_")[0], id=i)
        pairs.append(LabelPair(target.with_name(f"{i}_gtFine_labelIds.png"), target))
    return pairs
