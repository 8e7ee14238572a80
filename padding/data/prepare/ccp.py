# SPDX-License-Identifier: Apache-2.0
"""Labels of Clothing Co-Parsing: from the .mat files of its repository to index images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.prepare.label_conversion import LabelPair
from padding.data.readers import read_mat_labels
from padding.data.sets.ccp import NUM_TAGS
from padding.errors import PreparationError

MAT_LABELS = Path("annotations") / "pixel-level"
PHOTOS = "photos"
_FIELD = "groundtruth"
_CURE = "check the file out again"


def ccp_label_pairs(source: Path, target: Path) -> list[LabelPair]:
    """Each ``annotations/pixel-level/<id>.mat`` of a clone with the PNG that is made of it, by name.

    Args:
        source: clone of the repository.
        target: folder of the PNGs.
    """
    return [LabelPair(path, target / f"{path.stem}.png") for path in sorted((source / MAT_LABELS).glob("*.mat"))]


def read_ccp_labels(path: Path) -> npt.NDArray[np.uint8]:
    """Numbers of the tags of a .mat file, (h, w) uint8, 0 to 58.

    Raises:
        DataError: the file cannot be read, or holds other values.
    """
    labels = read_mat_labels(path, _FIELD, cure=_CURE)
    values = np.unique(labels)
    if values[0] < 0 or values[-1] >= NUM_TAGS:
        raise PreparationError(
            f"{path}: '{_FIELD}' holds values from {values[0]} to {values[-1]}; tags are 0 to {NUM_TAGS - 1}; {_CURE}"
        )
    return labels.astype(np.uint8)
