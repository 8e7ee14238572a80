# SPDX-License-Identifier: Apache-2.0
"""Saliency of one image: a grey map of its own, or the salient classes of a semantic label map.

SalSeg (Sec. 3) learns saliency beside segmentation; the two kinds of labels usually belong to different images.
*Derived* saliency needs no further data: objects are salient, the rest of the scene is not, void stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from padding.data.readers import opened_image, read_label_map
from padding.data.sample import IGNORE_LABEL
from padding.data.targets import check_size, translate_labels
from padding.errors import ConfigError, DataError

SALIENT_ABOVE = 128
"""Grey values above it are salient where a map is made binary; the convention of DUTS and of the evaluations."""

_LARGEST_TINT = 8  # channels of a grey JPEG that was saved in colour differ by rounding
_MAP, _CLASSES = "saliency_file_name", "salient_classes"


def has_saliency(entry: Mapping[str, Any]) -> bool:
    """Whether ``read_saliency`` can be asked for this data-set entry."""
    return _MAP in entry or (_CLASSES in entry and "sem_seg_file_name" in entry)


def read_saliency(entry: Mapping[str, Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Read the saliency of an image.

    Args:
        entry: with ``saliency_file_name`` (8-bit grey image), or with ``sem_seg_file_name`` and ``salient_classes``
            (contiguous ids); in the latter case ``sem_seg_label_map`` may translate the values of the file, else
            they are classes and 255. With ``height`` and ``width`` the size is checked.

    Returns:
        Saliency (h, w) float32 in [0, 1], 0 where it is unknown, and the mask (h, w) bool of pixels where it is known.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: the entry has no saliency, or its file cannot be used.
    """
    if _MAP in entry:
        path = entry[_MAP]
        saliency = read_grey_map(path).astype(np.float32) / np.float32(255)
        known = np.ones(saliency.shape, bool)
    elif has_saliency(entry):
        path = entry["sem_seg_file_name"]
        labels = read_label_map(path)
        if "sem_seg_label_map" in entry:
            labels = translate_labels(labels, entry["sem_seg_label_map"], path=path)
        known = labels != IGNORE_LABEL
        saliency = np.isin(labels, entry[_CLASSES]).astype(np.float32)
    else:
        raise ConfigError(
            f"{entry.get('file_name', entry)}: has no saliency, neither '{_MAP}' nor '{_CLASSES}' with "
            "'sem_seg_file_name'; name a saliency set in DATASETS.TRAIN_SALIENCY (datasets/README.md lists them)"
        )
    check_size(path, saliency.shape, entry)
    return saliency, known


def read_grey_map(path: str | Path) -> npt.NDArray[np.uint8]:
    """Grey values (h, w) uint8 of a PNG or JPEG; a palette or colour image is accepted if its colours are grey.

    Unlike ``read_label_map``, the colours of a palette count: a mask saved as black and white has the indices 0 and 1.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be decoded, has colours or more than 8 bits.
    """
    with opened_image(path) as image:
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{path}: a saliency map is an 8-bit grey image, this one has mode {image.mode}")
        if image.mode in ("L", "1"):
            return np.array(image.convert("L"))
        colors = np.asarray(image.convert("RGB"))
    if colors.size and int((colors.max(axis=2) - colors.min(axis=2)).max()) > _LARGEST_TINT:
        raise DataError(
            f"{path}: a saliency map is a grey image, this one has colours; were class labels or an overlay meant?"
        )
    return np.ascontiguousarray(colors[..., 1])


def saliency_to_bytes(saliency: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Grey values 0 to 255 of saliency in [0, 1]; what ``read_saliency`` made of a file becomes the file again."""
    return np.rint(saliency * np.float32(255)).astype(np.uint8)


def saliency_target(grey: npt.NDArray[np.uint8], *, binarize: bool) -> npt.NDArray[np.float32]:
    """Training target in [0, 1] of grey values: 1 above ``SALIENT_ABOVE`` and 0 below, or in proportion."""
    return (grey > SALIENT_ABOVE).astype(np.float32) if binarize else grey.astype(np.float32) / np.float32(255)
