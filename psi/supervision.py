# SPDX-License-Identifier: Apache-2.0
"""What supervises the network: labels and weights of pixels, as scribbles and diffusion leave them (PSI).

Labels can only be of classes that were drawn in the image, so on the grid they are kept per *slot*: one map for each
class present in the image, not one for each class of the data set.

Shape letters: B images, K classes, S slots (the largest number of classes present in one image), H W input pixels, h w
cells of the grid on which labels grow.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from padding.modeling.batching import to_device

EMPTY_SLOT = -1
"""Class of a slot in an image that shows fewer classes than another one of the batch."""


def is_label(labels: Tensor, num_classes: int) -> Tensor:
    """Where a label map holds a class and not one of the values for void and padding (255, 254)."""
    return (labels >= 0) & (labels < num_classes)


@dataclass(frozen=True)
class Supervision:
    """Labels on the grid, y_t of region R_t.

    Attributes:
        classes: (B, S) int64, ascending, then ``EMPTY_SLOT``.
        targets: (B, S, h, w) float32 in [0, 1], y_t of every slot; 1 for the class of a scribble, B' = 2 B - 1 for
            diffused ones, 0 elsewhere.
        scribbles: (B, h, w) bool, R_0.
    """

    classes: Tensor
    targets: Tensor
    scribbles: Tensor

    @classmethod
    def of_labels(
        cls, labels: Tensor, *, num_classes: int, weights: Tensor | None = None, scribbles: Tensor | None = None
    ) -> "Supervision":
        """Take one label a cell.

        Args:
            labels: (B, h, w) int64; what is no class in [0, K) is unlabeled.
            num_classes: K.
            weights: (B, h, w) float in [0, 1]; None: 1.
            scribbles: (B, h, w) bool, the labels drawn by hand; None: all.
        """
        labeled = is_label(labels, num_classes)
        # What is no class goes to a column K of its own, which is cut off.
        index = labels.masked_fill(~labeled, num_classes).flatten(1)
        present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
        present = present.scatter_(1, index, True)[:, :num_classes]
        # One slot at least: a maximum over no slot does not exist.
        slots = max(1, int(present.sum(dim=1).max())) if len(labels) else 1
        # Present classes first, each part ascending (stable): (B, S) ids.
        order = present.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
        classes = torch.where(present.gather(1, order), order, EMPTY_SLOT)
        # (B, 1, h, w) == (B, S, 1, 1) -> (B, S, h, w).
        targets = ((labels[:, None] == classes[:, :, None, None]) & labeled[:, None]).float()
        if weights is not None:
            targets = targets * weights[:, None].float()
        return cls(classes, targets, labeled if scribbles is None else scribbles & labeled)

    @cached_property
    def weights(self) -> Tensor:
        """(B, h, w) float32, the strongest target of each cell; 0 outside the region."""
        return self.targets.amax(dim=1)

    @cached_property
    def region(self) -> Tensor:
        """(B, h, w) bool, R_t."""
        return self.weights > 0

    @cached_property
    def labels(self) -> Tensor:
        """(B, h, w) int64, the class with the strongest target; ``IGNORE_LABEL`` outside the region."""
        # Slot of the strongest target of each cell -> its class.
        slots = self.targets.argmax(dim=1)
        labels = self.classes.gather(1, slots.flatten(1)).view_as(slots)
        return labels.masked_fill(~self.region, IGNORE_LABEL)


@dataclass(frozen=True)
class PixelSupervision:
    """Labels at the resolution of the input, which the loss of the network reads.

    Attributes:
        labels: (B, H, W) int64, ``IGNORE_LABEL`` where nothing is known.
        weights: (B, H, W) float32 in [0, 1], 0 there.
        scribbles: (B, H, W) bool, drawn by hand; these have weight 1.
        classes: (B, S) int64 as in ``Supervision``, only with ``targets``.
        targets: (B, S, H, W) float32, several classes for a diffused pixel, none for a scribble (a class may be drawn
            without a cell of its own, hence without a slot); None: ``labels`` with ``weights`` say everything.
    """

    labels: Tensor
    weights: Tensor
    scribbles: Tensor
    classes: Tensor | None = None
    targets: Tensor | None = None

    def to(self, device: torch.device) -> "PixelSupervision":
        """The same on a device."""
        moved = {key: to_device(value, device) for key, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def of_scribbles(cls, scribbles: Tensor, *, num_classes: int) -> "PixelSupervision":
        """Scribbles alone: (B, H, W) int64, void where nothing is drawn."""
        drawn = is_label(scribbles, num_classes)
        return cls(scribbles.masked_fill(~drawn, IGNORE_LABEL), drawn.float(), drawn)

    @classmethod
    def of_stored(cls, scribbles: Tensor, labels: Tensor, weights: Tensor, *, num_classes: int) -> "PixelSupervision":
        """Scribbles and the labels of an earlier round, as augmentation left them.

        Args:
            scribbles: (B, H, W) int64, void where nothing is drawn.
            labels: (B, H, W) int64, void where nothing is known.
            weights: (B, H, W) float in [0, 1], 0 there.
            num_classes: K.
        """
        drawn = is_label(scribbles, num_classes)
        # Scribbles on top: of two labels at a pixel the drawn one is right, and has weight 1.
        labels = torch.where(drawn, scribbles, labels)
        known = is_label(labels, num_classes) & (drawn | (weights > 0))
        return cls(labels.masked_fill(~known, IGNORE_LABEL), (weights.float() * known).masked_fill(drawn, 1.0), drawn)
