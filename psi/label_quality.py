# SPDX-License-Identifier: Apache-2.0
"""How much diffusion labels, and how much of it is right: numbers for logs and reports, nothing that trains.

The dense truth that accuracy needs is never seen by the method; without it coverage alone is known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from psi.label_diffusion import DiffusionStep
from psi.supervision import EMPTY_SLOT, PixelSupervision, Supervision


@dataclass(frozen=True)
class LabelQuality:
    """Counts of pixels (or cells), which add up over images and processes.

    Attributes:
        valid: in an image.
        labeled: with a label, scribbles included.
        diffused: with a diffused label.
        checked: with a diffused label where the truth is known.
        correct: of these, with the true class.
        scribbles_checked: scribbles where the truth is known.
        scribbles_correct: of these, with the true class.
    """

    valid: int = 0
    labeled: int = 0
    diffused: int = 0
    checked: int = 0
    correct: int = 0
    scribbles_checked: int = 0
    scribbles_correct: int = 0

    def __add__(self, other: "LabelQuality") -> "LabelQuality":
        return LabelQuality(**{name: count + vars(other)[name] for name, count in vars(self).items()})

    @property
    def coverage(self) -> float:
        """Labeled share of the image; NaN for none."""
        return _ratio(self.labeled, self.valid)

    @property
    def accuracy(self) -> float:
        """Share of labels that are right, scribbles included; NaN where none can be checked."""
        return _ratio(self.correct + self.scribbles_correct, self.checked + self.scribbles_checked)

    @property
    def diffused_accuracy(self) -> float:
        """Share of diffused labels that are right; NaN where none can be checked."""
        return _ratio(self.correct, self.checked)


def label_quality(
    supervision: Supervision | PixelSupervision, valid: Tensor, truth: Tensor | None = None
) -> LabelQuality:
    """Count the labels of a batch.

    Args:
        supervision: on the grid or at pixels.
        valid: (B, H, W) bool, of the same resolution.
        truth: (B, H, W) int64 dense labels, ``IGNORE_LABEL`` where unknown; None: nothing can be checked.
    """
    labels = supervision.labels
    labeled = (labels != IGNORE_LABEL) & valid
    diffused = labeled & ~supervision.scribbles
    known = torch.zeros_like(valid) if truth is None else truth != IGNORE_LABEL
    correct = torch.zeros_like(valid) if truth is None else known & (labels == truth)
    drawn = labeled & supervision.scribbles
    masks = (valid, labeled, diffused, diffused & known, diffused & correct, drawn & known, drawn & correct)
    counts = torch.stack([mask.sum() for mask in masks]).tolist()  # one transfer from the device
    return LabelQuality(*counts)


def mean_thresholds(step: DiffusionStep, num_classes: int) -> Tensor:
    """Mean threshold of each class over the images that show it: (K,) float32, NaN for absent classes."""
    there = step.before.classes != EMPTY_SLOT
    classes = step.before.classes[there]
    values = step.threshold.detach()[there]
    # 0 / 0 for a class that no image shows: NaN.
    total = values.new_zeros(num_classes).index_add_(0, classes, values)
    return total / values.new_zeros(num_classes).index_add_(0, classes, torch.ones_like(values))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
