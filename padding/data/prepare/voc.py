# SPDX-License-Identifier: Apache-2.0
"""Labels of VOC's 10 582 training images: its own for 1464, SBD's for the others (Hariharan et al., 2011)."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.loaders.listed_images import read_id_list
from padding.data.prepare.label_conversion import LabelPair
from padding.data.readers import read_label_map
from padding.data.roots import splits_dir
from padding.data.sample import IGNORE_LABEL
from padding.data.sets.voc import VOC_NAMES
from padding.errors import DataError, PreparationError

SBD_LABELS = Path("dataset") / "cls"
# Cut, of another format, or without the field GTcls.Segmentation.
_DAMAGED = (OSError, ValueError, KeyError, AttributeError, NotImplementedError, zlib.error)


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
        labels = read_label_map(path) if path.suffix == ".png" else _read_sbd(path)
    except _DAMAGED as error:
        raise PreparationError(f"{path}: cannot be read as labels ({error}); unpack it again") from error
    _check_values(path, np.unique(labels).tolist())
    return labels.astype(np.uint8)


def _read_sbd(path: Path) -> npt.NDArray[np.uint8]:
    import scipy.io

    try:
        content = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
    except scipy.io.matlab.MatReadError as error:
        raise ValueError(error) from error
    labels = np.asarray(content["GTcls"].Segmentation)
    if labels.ndim != 2:
        raise DataError(f"GTcls.Segmentation has {labels.ndim} dimensions")
    return labels


def _check_values(path: Path, values: Sequence[int]) -> None:
    wrong = [value for value in values if not 0 <= value < len(VOC_NAMES) and value != IGNORE_LABEL]
    if wrong:
        raise PreparationError(
            f"{path}: holds the values {wrong[:5]}, which are no classes of VOC (0 to 20, and 255); use the file of "
            "the official download, not a converted one"
        )
