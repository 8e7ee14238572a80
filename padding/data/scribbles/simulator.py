# SPDX-License-Identifier: Apache-2.0
"""Scribbles simulated from a dense label map: one curve in every connected part of a class, never across its border.

Each part is shrunk, a curve is laid through what is left (``curves``), its ends are shortened, and it is taken
only if every pixel of the thick line lies in the part. What decides it is a generator seeded by the seed, the image's
name, the class and the part: neither the order of images nor the number of processes matters, and a shorter length or a
higher drop rate takes ink away without moving the rest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.scribbles.curves import STYLES, Points, Region, central_part, resampled, skeleton_path
from padding.data.scribbles.polylines import DEFAULT_WIDTH, Scribble, line_mask
from padding.errors import ConfigError

SIMULATOR_VERSION = 1
"""Raised whenever the same configuration gives other scribbles."""

_ATTEMPTS = 20
_HARDER_EROSION = 2.0  # pixels, when no attempt fits
_SPACING = 3.0  # pixels between the points of a scribble
_END_TRIM = (0.90, 0.95)


@dataclass(frozen=True)
class SimulatorConfig:
    """How scribbles are simulated; the defaults suit images of VOC's size."""

    style: str = "skeleton"  # one of ``curves.STYLES``
    seed: int = 0  # any integer >= 0
    width: int = DEFAULT_WIDTH  # pixels across a line; objects thinner than it get a thinner line
    length: float = 1.0  # share of a curve that is drawn, in [0, 1]; 0: a dot
    drop: float = 0.0  # probability that an object gets no scribble, in [0, 1]
    min_area: int = 80  # connected parts of fewer pixels get no scribble
    # Pixels by which small and large parts are shrunk before a curve is laid.
    erosion: tuple[float, float] = (2.0, 20.0)
    # Shares of the image at which these two hold; between them the erosion grows linearly.
    erosion_share: tuple[float, float] = (0.003, 0.15)
    background_erosion: float = 1.5  # factor on the erosion of the background class
    # A part that covers this share of the image gets two scribbles, as people give large regions.
    second_share: float = 0.15

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(f"the style is '{self.style}'; expected one of {', '.join(STYLES)}")
        for name in ("length", "drop", "second_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        if self.seed < 0 or self.width < 1 or self.min_area < 1:
            raise ConfigError(f"expected seed >= 0, width >= 1 and min_area >= 1, got {self}")
        if min(self.erosion) < 0 or self.background_erosion < 0:
            raise ConfigError(
                f"the erosions are {self.erosion}, factor {self.background_erosion}; expected none below 0"
            )
        if not 0 <= self.erosion_share[0] < self.erosion_share[1]:
            raise ConfigError(f"erosion_share is {self.erosion_share}; expected a smaller and a larger share")

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values, with the version of the simulator."""
        return json.loads(json.dumps({"version": SIMULATOR_VERSION, **asdict(self)}))


def simulate_scribbles(
    labels: npt.NDArray[np.uint8],
    config: SimulatorConfig,
    *,
    key: str,
    num_classes: int,
    background: int | None = None,
) -> tuple[Scribble, ...]:
    """Scribbles of one dense label map.

    Args:
        labels: (h, w), class ids below ``num_classes``; any other value is void and never drawn on.
        config: how.
        key: name of the image; images of different names get different scribbles.
        num_classes: K.
        background: class with the stronger erosion; None: there is none.

    Returns:
        Scribbles with whole coordinates, by class, then by position; drawn with ``config.width`` each lies on pixels of
        its class alone.
    """
    scribbles: list[Scribble] = []
    for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[:num_classes]).tolist():
        factor = config.background_erosion if label == background else 1.0
        for number, (part, offset) in enumerate(_parts(labels == label, config.min_area)):
            # One generator a part: what happens to one part changes nothing in another.
            rng = np.random.default_rng((config.seed, zlib.crc32(key.encode()), label, number))
            if rng.random() < config.drop:
                continue
            # Larger parts are eroded more, as people keep away from borders where there is room.
            share = np.count_nonzero(part) / labels.size
            erosion = factor * float(np.interp(share, config.erosion_share, config.erosion))
            count = 2 if share >= config.second_share else 1
            for points, width in _curves(part, erosion, count, config, rng):
                shortened = central_part(points, config.length * rng.uniform(*_END_TRIM))
                scribbles.append(Scribble(label, shortened + offset, 0 if width == config.width else width))
    return tuple(scribbles)


def _parts(mask: Region, min_area: int) -> Iterator[tuple[Region, Points]]:
    """Connected parts of a mask, each cut out with a frame of one pixel, and the (x, y) of the cut's corner."""
    number, indices, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for part in range(1, number):
        x, y, width, height, area = stats[part].tolist()
        if area >= min_area:
            # A frame of one pixel: the distance from what lies outside is defined at the cut's edge, too.
            inside = indices[y : y + height, x : x + width] == part
            yield np.pad(inside, 1), np.array([x - 1.0, y - 1.0])


def _curves(
    part: Region, erosion: float, count: int, config: SimulatorConfig, rng: np.random.Generator
) -> Iterator[tuple[Points, int]]:
    """Up to ``count`` curves that stay inside the part, each with its width; the first one always exists."""
    depth = _depth(part)
    first, width = _fitting_curve(part, depth, erosion, config, rng)
    yield first, width
    if count < 2:
        return
    # The second one keeps away from the first by the part's usual half width.
    distance = _depth(~line_mask(first, part.shape, 1))
    far = (distance > max(4.0 * config.width, depth.max() / 2)) & (depth > min(erosion, depth.max() / 2))
    rest = _largest(far)
    if np.count_nonzero(rest) >= config.min_area:
        yield _fitting_curve(part, np.where(rest, depth, np.float32(0)), 0.0, config, rng)


def _depth(mask: Region) -> npt.NDArray[np.float32]:
    """Distance of every pixel of the mask from the nearest one outside; 0 outside."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _fitting_curve(
    part: Region, depth: npt.NDArray[np.float32], erosion: float, config: SimulatorConfig, rng: np.random.Generator
) -> tuple[Points, int]:
    """A curve of the wanted style if one fits, else the skeleton's path, which a line thin enough follows exactly.

    Args:
        part: where the line may lie.
        depth: distance of every pixel from what lies outside; 0 where no curve is to start.
        erosion: pixels to keep away from the outside, as far as the part is thick enough.
        config: the style.
        rng: the part's generator.
    """
    # At the wanted distance from the outside, then farther in; a thinner line is the last resort.
    for margin in (erosion, erosion + _HARDER_EROSION):
        piece = _eroded(depth, margin)
        # The skeleton leaves nothing to chance.
        for _ in range(1 if config.style == "skeleton" else _ATTEMPTS):
            points = resampled(STYLES[config.style](piece, rng), _SPACING)
            if _fits(points, part, config.width):
                return points, config.width
    return _safe_curve(part, depth, config.width)


def _safe_curve(part: Region, depth: npt.NDArray[np.float32], width: int) -> tuple[Points, int]:
    for narrower in range(width, 0, -1):
        # The disc around each of these pixels lies inside, so a path from pixel to pixel does; at width 1 all qualify.
        # An even width reaches farther to the right and below; so must what is asked to lie inside.
        anchor = (narrower - 1 - narrower // 2,) * 2
        shrunk = cv2.erode(part.astype(np.uint8), np.ones((narrower, narrower), np.uint8), anchor=anchor)
        piece = _largest((depth > 0) & (shrunk > 0))
        if piece.any():
            points = skeleton_path(piece)
            if _fits(points, part, narrower):
                return points, narrower
    raise AssertionError("a path of single pixels lies inside its part")


def _fits(points: Points, part: Region, width: int) -> bool:
    return not (line_mask(points, part.shape, width) & ~part).any()


def _eroded(depth: npt.NDArray[np.float32], margin: float) -> Region:
    """The largest piece of the pixels deeper than a margin, which is halved until there are some."""
    while not (deep := depth > margin).any():
        margin = margin / 2 if margin > 0.5 else 0.0
    return _largest(deep)


def _largest(mask: Region) -> Region:
    number, indices, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if number <= 2:
        return mask
    return indices == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
