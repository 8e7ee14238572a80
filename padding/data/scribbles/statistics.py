# SPDX-License-Identifier: Apache-2.0
"""What scribbles cover, and where they contradict dense labels: counts of one image, added up over a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.sample import IGNORE_LABEL

_LISTED = 20

Counts = npt.NDArray[np.int64]


@dataclass
class ScribbleStatistics:
    """Counts over images; ``a.add(b)`` joins two of them."""

    images: int  # images counted
    pixels: int  # their pixels
    labeled: Counts  # (K,) scribble pixels of each class
    images_with: Counts  # (K,) images in which the class is scribbled
    dense_images_with: Counts  # (K,) of the ``dense_images``, those whose dense labels show the class
    missed_images_with: Counts  # (K,) of the ``dense_images``, those whose scribbles do not show it
    contradictions: Counts  # (K,) pixels scribbled as the class whose dense label is another class
    images_without: list[str] = field(default_factory=list)  # names of images without any label
    dense_images: int = 0  # images that were compared with dense labels; contradictions and margin are theirs
    on_void: int = 0  # scribble pixels whose dense label is void
    margin: float = 0.0  # sum over scribble pixels of the distance to the nearest border between dense labels
    dense_labeled: int = 0  # scribble pixels that this sum has

    @classmethod
    def empty(cls, num_classes: int) -> ScribbleStatistics:
        """Counts of no image."""
        names = ("labeled", "images_with", "dense_images_with", "missed_images_with", "contradictions")
        counts: dict[str, Any] = {name: np.zeros(num_classes, np.int64) for name in names}
        return cls(images=0, pixels=0, **counts)

    def add(self, other: ScribbleStatistics) -> None:
        """Count another's images too."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def coverage_pct(self) -> float:
        """Share of pixels that are labelled."""
        return 100.0 * float(self.labeled.sum()) / max(self.pixels, 1)

    @property
    def contradiction_pct(self) -> float:
        """Share of the scribble pixels, dense void left out, whose dense label is another class."""
        return 100.0 * float(self.contradictions.sum()) / max(self.dense_labeled - self.on_void, 1)

    @property
    def margin_px(self) -> float:
        """Mean distance of scribble pixels to the nearest border between dense labels."""
        return self.margin / max(self.dense_labeled, 1)

    def lines(self, names: Sequence[str]) -> list[str]:
        """The counts for a reader, one line for each class."""
        text = [
            f"{self.images} images, {self.coverage_pct:.2f} % of the pixels labelled; without any label: "
            f"{len(self.images_without)}" + "".join(f" {key}" for key in self.images_without[:_LISTED])
        ]
        if self.dense_images:
            text.append(
                f"compared with {self.dense_images} dense label maps: {int(self.contradictions.sum())} contradicting "
                f"pixels ({self.contradiction_pct:.2f} %), {self.on_void} on void, mean distance to the nearest border "
                f"{self.margin_px:.1f} pixels"
            )
        text.append(f"  {'class':<20} {'pixels':>9} {'%':>6} {'images':>7} {'missed':>7} {'contradict':>10}")
        total = max(int(self.labeled.sum()), 1)
        for label, name in enumerate(names):
            pixels = int(self.labeled[label])
            text.append(
                f"  {name:<20.20} {pixels:>9} {100 * pixels / total:>6.2f} {self.images_with[label]:>7} "
                f"{self.missed_images_with[label]:>7} {self.contradictions[label]:>10}"
            )
        return text

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The counts as JSON values."""
        result: dict[str, Any] = {
            "images": self.images,
            "coverage_pct": round(self.coverage_pct, 4),
            "images_without_label": len(self.images_without),
            "classes": {
                name: {"pixels": int(self.labeled[i]), "images": int(self.images_with[i])}
                for i, name in enumerate(names)
            },
        }
        if self.dense_images:
            result |= {
                "contradicting_pixels": int(self.contradictions.sum()),
                "pixels_on_void": self.on_void,
                "mean_margin_px": round(self.margin_px, 3),
            }
            for i, name in enumerate(names):
                result["classes"][name]["missed_images"] = int(self.missed_images_with[i])
        return result


def count_image(
    raster: npt.NDArray[np.uint8], num_classes: int, *, key: str, dense: npt.NDArray[np.uint8] | None = None
) -> ScribbleStatistics:
    """Counts of one image from its scribbles (h, w): class ids and 255.

    ``dense`` are (h, w) labels, class ids below K, anything else void; None: nothing to compare with.
    """
    counts = ScribbleStatistics.empty(num_classes)
    counts.images, counts.pixels = 1, raster.size
    counts.labeled = _class_counts(raster, num_classes)
    counts.images_with = (counts.labeled > 0).astype(np.int64)
    if not counts.labeled.any():
        counts.images_without = [key]
    if dense is not None:
        drawn = raster != IGNORE_LABEL
        void = dense >= num_classes
        shown = _class_counts(dense, num_classes) > 0
        counts.dense_images = 1
        counts.dense_images_with = shown.astype(np.int64)
        counts.missed_images_with = (shown & (counts.labeled == 0)).astype(np.int64)
        counts.contradictions = _class_counts(raster[drawn & ~void & (raster != dense)], num_classes)
        counts.on_void = int(np.count_nonzero(drawn & void))
        counts.margin = float(_border_distance(dense)[drawn].sum())
        counts.dense_labeled = int(np.count_nonzero(drawn))
    return counts


def _class_counts(labels: npt.NDArray[np.uint8], num_classes: int) -> Counts:
    return np.bincount(labels.ravel(), minlength=256)[:num_classes].astype(np.int64)


def _border_distance(dense: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Distance in pixels of every pixel to the nearest one of another label, 1 beside it; 0 if there is none."""
    border = np.zeros(dense.shape, bool)
    for axis in (0, 1):
        change = np.diff(dense.astype(np.int16), axis=axis) != 0
        before, after = (slice(None, -1), slice(1, None))
        border[(before, slice(None)) if axis == 0 else (slice(None), before)] |= change
        border[(after, slice(None)) if axis == 0 else (slice(None), after)] |= change
    if not border.any():
        return np.zeros(dense.shape, np.float32)
    # Border pixels lie one pixel from the other label.
    distance = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32) + 1.0
