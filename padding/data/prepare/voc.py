# SPDX-License-Identifier: Apache-2.0
"""Labels of VOC's 10 582 training images: its own for 1464, SBD's for the others (Hariharan et al., 2011)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.loaders.listed_images import read_id_list
from padding.data.prepare.label_conversion import LabelPair
from padding.data.readers import read_label_map, read_mat_labels
from padding.data.roots import splits_dir
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import VOC_NAMES
from padding.errors import PreparationError

SBD_LABELS = Path("dataset") / "cls"
_SBD_FIELD = "GTcls.Segmentation"


def voc_label_pairs(folder: Path, sbd: Path) -> list[LabelPair]:
    """What ``SegmentationClassAug`` is made of, in the order of the list of training images.

    Args:
        folder: ``VOC2012``.
        sbd: ``benchmark_RELEASE``.
    """
    lists = splits_dir() / "voc"
    voc_ids = set(read_id_list(lists / "train.txt"))
    of_voc, of_sbd, target = folder / "SegmentationClass", sbd / SBD_LABELS, folder / "SegmentationClassAug"
    return [
        LabelPair(of_voc / f"{i}.png" if i in voc_ids else of_sbd / f"{i}.mat", target / f"{i}.png")
        for i in read_id_list(lists / "train_aug.txt")
    ]


def read_voc_labels(path: Path) -> npt.NDArray[np.uint8]:
    """(h, w) uint8 labels, 0 to 20 and 255, of a VOC PNG or a .mat file of SBD.

    Raises:
        PreparationError: the file cannot be read, or holds other values.
    """
    try:
        labels = read_label_map(path) if path.suffix == ".png" else read_mat_labels(path, _SBD_FIELD)
    except (OSError, ValueError) as error:
        raise PreparationError(f"{path}: cannot be read as labels ({error}); unpack it again") from error
    _check_values(path, np.unique(labels).tolist())
    return labels.astype(np.uint8)


def _check_values(path: Path, values: Sequence[int]) -> None:
    wrong = [value for value in values if not 0 <= value < len(VOC_NAMES) and value != IGNORE_LABEL]
    if wrong:
        raise PreparationError(
            f"{path}: holds the values {wrong[:5]}, which are no classes of VOC (0 to 20, and 255); use the file of "
            "the official download, not a converted one"
        )
