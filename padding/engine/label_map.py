# SPDX-License-Identifier: Apache-2.0
"""Semantic predictions as index images: a byte a pixel, the class's number, and a palette to look at them.

Any program that reads VOC's or Cityscapes' label files reads them, ``SemSegEvaluator`` among them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap
from torch import Tensor

from padding.data.files import save_png
from padding.errors import ConfigError
from padding.modeling.tta import scored_pixels

UNLABELED = 255
"""Pixels that the model did not segment, such as those around the middle with MODE "center_crop"."""

_UNLABELED_COLOR = (224, 224, 192)  # VOC's


def scored_labels(scores: Tensor) -> Tensor:
    """(K, h, w) scores -> (h, w) int64, the best class; where all scores are 0, ``UNLABELED`` or K, the larger one."""
    labels = scores.max(dim=0).indices
    return labels.masked_fill(~scored_pixels(scores), max(UNLABELED, len(scores)))


def label_map_of(prediction: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Labels of a semantic prediction.

    Args:
        prediction: with ``sem_seg`` (K, h, w) scores, on the CPU.

    Returns:
        (h, w) uint8, the best class, ``UNLABELED`` where all scores are 0.

    Raises:
        ValueError: if there are no semantic scores, or too many classes for a byte.
    """
    if "sem_seg" not in prediction:
        raise ConfigError(
            f"a label map needs semantic scores, the model predicts {sorted(prediction)}; switch "
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON on"
        )
    scores = prediction["sem_seg"]
    if len(scores) > UNLABELED:
        raise ValueError(f"{len(scores)} classes do not fit an index image, which has room for {UNLABELED}")
    return np.asarray(scored_labels(scores).numpy(), dtype=np.uint8)


def class_colors(metadata: Metadata) -> list[tuple[int, int, int]]:
    """RGB of every class in [0, 255]: the data set's own where it has them, else Detectron2's colours in turn."""
    colors = metadata.get("stuff_colors") or []
    if len(colors) >= len(metadata.stuff_classes):
        return [(int(r), int(g), int(b)) for r, g, b in colors]
    distinct = colormap(rgb=True).astype(int).tolist()
    return [tuple(distinct[index % len(distinct)]) for index in range(len(metadata.stuff_classes))]


def write_label_map(path: Path, labels: npt.NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> None:
    """Write labels as a palette PNG.

    Args:
        path: ends with .png.
        labels: (h, w) uint8.
        colors: RGB of the labels from 0 on; ``UNLABELED`` has a colour of its own.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[UNLABELED] = _UNLABELED_COLOR
    save_png(labels, path, palette=palette.tolist())
