# SPDX-License-Identifier: Apache-2.0
"""Scenes of the embedded data set ``shapes``: a pure function of (parameters, split, index).

One or two background regions with a wavy border, one to five things on them, each hidden by at most half, lighting and
noise. Every image draws from its own generator ``default_rng((seed, split, index))``, so it does not matter which
process makes it or what was made before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.shapes.classes import SPLITS, ShapesConfig, class_table, coarse_ids, shapes_split
from padding.data.shapes.textures import (
    FloatArray,
    coverage,
    fill_look,
    fill_pattern,
    signed_distance,
    smooth_field,
)

_REACH = 1.15  # no outline leaves this many radii
_PLACEMENT_TRIES = 12
_BORDER_MARGIN = 0.7  # a centre keeps this many radii from the image border
_SHADOW_SIGMA_PX, _SHADOW_SHIFT_PX = 2.0, 2
_CORRELATION_PX = 4.0
_GREY_FRAC = 0.8  # part of the smooth noise's variance that the three channels share
_RIM_PX, _RIM_DARKNESS = 1.8, 0.30
_THING_DECK, _STUFF_DECK = 1, 2


@dataclass(frozen=True)
class Segment:
    """One region of the panoptic truth."""

    id: int  # value in the id map, > 0, unique in the image
    class_id: int  # contiguous id, 0..41
    category_id: int  # id in the annotation files, 1..30 and 101..112
    isthing: bool  # whether the class is countable
    area: int  # visible pixels, > 0
    bbox: tuple[int, int, int, int]  # visible (x, y, width, height), integers
    full_area: int  # pixels before anything hid a part; for stuff, before the things were put on it


@dataclass(frozen=True)
class RenderedImage:
    """An image with its truth."""

    image: npt.NDArray[np.uint8]  # (h, w, 3) uint8 RGB
    # (h, w, 3) uint8 RGB, the same scene with background colour mixed into the things.
    camouflaged: npt.NDArray[np.uint8]
    panoptic_ids: npt.NDArray[np.int32]  # (h, w) int32, ``Segment.id`` of each pixel; every pixel belongs to a segment
    semantic: npt.NDArray[np.uint8]  # (h, w) uint8, contiguous class ids 0..41
    coarse: npt.NDArray[np.uint8]  # (h, w) uint8, ids of ``COARSE_NAMES`` 0..16
    # (h, w) uint8, how far a thing covers the pixel; >= 128 exactly where a thing is labelled.
    saliency: npt.NDArray[np.uint8]
    segments: tuple[Segment, ...]  # background first, then things from back to front


@dataclass(frozen=True)
class _Thing:
    """A placed thing: its patch of the canvas, and what is needed to paint it."""

    class_id: int
    radius: float
    u: FloatArray
    v: FloatArray
    distance: FloatArray
    amount: FloatArray
    top: int
    left: int
    full_area: int

    def windows(self, size: int, shift: int = 0) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Slices of the canvas and of the patch where both overlap."""
        return _overlap(self.top + shift, self.left + shift, self.distance.shape[0], size)


def _overlap(top: int, left: int, patch: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    starts = [max(0, edge) for edge in (top, left)]
    stops = [max(start, min(size, edge + patch)) for start, edge in zip(starts, (top, left), strict=True)]
    canvas = (slice(starts[0], stops[0]), slice(starts[1], stops[1]))
    inner = (slice(starts[0] - top, stops[0] - top), slice(starts[1] - left, stops[1] - left))
    return canvas, inner


@lru_cache(maxsize=8)
def _pixel_grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Pixel centres x, y relative to the middle of the image, both (size, size)."""
    line = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=2)
def _allowed_classes(split: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Contiguous ids of the things and of the stuff that a split may show."""
    classes = shapes_split()
    allowed = classes.seen_ids if split == "train" else range(classes.num_classes)
    things = tuple(i for i in allowed if i in classes.thing_ids)
    return things, tuple(i for i in allowed if i not in classes.thing_ids)


def _dealt_class(ids: tuple[int, ...], config: ShapesConfig, split_idx: int, index: int, deck: int) -> int:
    """Class dealt from a shuffled deck, so that ``len(ids)`` images in a row show every class at least once."""
    round_idx, position = divmod(index, len(ids))
    return int(np.random.default_rng((config.seed, split_idx, round_idx, deck)).permutation(ids)[position])


def render_image(config: ShapesConfig, split: str, index: int) -> RenderedImage:
    """Image ``index`` of a split.

    Args:
        config: parameters; the counts are not used.
        split: ``"train"`` (seen classes only) or ``"val"``.
        index: >= 0.

    Raises:
        ValueError: unknown split or negative index.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got '{split}'")
    if index < 0:
        raise ValueError(f"index must be >= 0, got {index}")
    split_idx = SPLITS.index(split)
    # One generator per image, seeded by its index: images can be made in any order, by any process.
    rng = np.random.default_rng((config.seed, split_idx, index))
    thing_ids, stuff_ids = _allowed_classes(split)
    stuff = [_dealt_class(stuff_ids, config, split_idx, index, _STUFF_DECK)]
    if rng.random() < config.two_regions_frac:
        stuff.append(int(rng.choice([i for i in stuff_ids if i != stuff[0]])))
    first_thing = _dealt_class(thing_ids, config, split_idx, index, _THING_DECK)
    num_things = int(rng.integers(1, config.max_objects + 1))
    wanted = [first_thing, *(int(i) for i in rng.choice(thing_ids, num_things - 1))]

    canvas, owner = _paint_background(config, stuff, rng)
    region_areas = np.bincount(owner.ravel(), minlength=len(stuff))
    things = _place_things(config, wanted, owner, region_areas, rng)
    image, camouflaged, saliency = _paint_things(config, canvas, things, rng)
    _light_and_noise(config, image, camouflaged, rng)

    classes = [*stuff, *(thing.class_id for thing in things)]
    full_areas = [*region_areas.tolist(), *(thing.full_area for thing in things)]
    segments = _describe(owner, classes, full_areas)
    # ``owner`` (h, w): index into the segments, background first; every truth follows from it by a table.
    label_of_owner = np.array(classes, dtype=np.uint8)
    id_of_owner = np.array([segment.id for segment in segments], dtype=np.int32)
    semantic = label_of_owner[owner]
    return RenderedImage(
        image=_to_bytes(image),
        camouflaged=_to_bytes(camouflaged),
        panoptic_ids=id_of_owner[owner],
        semantic=semantic,
        coarse=np.array(coarse_ids(), dtype=np.uint8)[semantic],
        saliency=np.rint(saliency * 255).astype(np.uint8),
        segments=segments,
    )


def _to_bytes(image: FloatArray) -> npt.NDArray[np.uint8]:
    """(3, h, w) in [0, 1] to (h, w, 3) uint8; overwrites its argument."""
    np.rint(np.multiply(image, 255, out=image), out=image)
    return cv2.merge(list(np.clip(image, 0, 255, out=image).astype(np.uint8)))


def _paint_background(
    config: ShapesConfig, stuff: list[int], rng: np.random.Generator
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Canvas (3, h, w) and the region of each pixel (h, w), 0 or 1."""
    x, y = _pixel_grid(config.size)
    table = class_table()
    layers = []
    for class_id in stuff:
        brightness, hue = _draw_jitter(config, rng)
        entry = table[class_id]
        layers.append(fill_pattern(entry["colour"], entry["pattern"], x, y, rng, brightness=brightness, hue=hue))
    if len(layers) == 1:
        return np.array(layers[0]), np.zeros(x.shape, np.uint8)
    amount = coverage(_wavy_distance(config.size, rng))
    return layers[0] + amount * (layers[1] - layers[0]), (amount >= 0.5).astype(np.uint8)


def _wavy_distance(size: int, rng: np.random.Generator) -> FloatArray:
    """Signed distance, roughly in pixels, to a wavy line through the image."""
    x, y = _pixel_grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, along = cos * x + sin * y, cos * y - sin * x
    across = across + np.float32(rng.uniform(-0.2, 0.2) * size)
    for length_frac, height_frac in ((rng.uniform(0.5, 0.9), 0.06), (rng.uniform(0.2, 0.35), 0.025)):
        phase = rng.uniform(0, 2 * np.pi)
        wave = np.sin(along * np.float32(2 * np.pi / (length_frac * size)) + np.float32(phase))
        across = across + np.float32(height_frac * size) * wave
    return across


def _draw_jitter(config: ShapesConfig, rng: np.random.Generator) -> tuple[float, float]:
    brightness = 1 + rng.uniform(-config.brightness_jitter, config.brightness_jitter)
    return brightness, rng.uniform(-config.hue_jitter, config.hue_jitter)


def _place_things(
    config: ShapesConfig,
    wanted: list[int],
    owner: npt.NDArray[np.uint8],
    region_areas: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> list[_Thing]:
    """Put things on the canvas, back to front; writes their index into ``owner``.

    A thing that finds no place, because it would hide too much of what lies there, is left out.
    """
    least = list(np.ceil(region_areas * (1 - config.max_region_covered_frac)))
    placed: list[_Thing] = []
    for class_id in wanted:
        thing = _draw_thing(config, class_id, rng)
        least_here = int(np.ceil(thing.full_area * (1 - config.max_hidden_frac)))
        for _ in range(_PLACEMENT_TRIES):
            candidate = _move(config, thing, rng)
            canvas, inner = candidate.windows(config.size)
            covered = np.where(candidate.amount[inner] >= 0.5, len(least), owner[canvas])
            gained = np.bincount(covered.ravel(), minlength=len(least) + 1)
            lost = np.bincount(owner[canvas].ravel(), minlength=len(least) + 1)
            # Pixels that each segment would keep if the thing lay here; it may hide none of them too much.
            visible = np.bincount(owner.ravel(), minlength=len(least) + 1) + gained - lost
            if np.all(visible >= [*least, least_here]):
                owner[canvas] = covered
                placed.append(candidate)
                least.append(least_here)
                break
    return placed


def _draw_thing(config: ShapesConfig, class_id: int, rng: np.random.Generator) -> _Thing:
    """A thing of random radius and angle, its centre anywhere within a pixel, not yet placed."""
    radius = float(rng.uniform(*config.radius_px))
    angle = rng.uniform(0, 2 * np.pi)
    reach = int(np.ceil(_REACH * radius)) + 2
    line = np.arange(-reach, reach + 1, dtype=np.float32)
    dy, dx = np.meshgrid(line - np.float32(rng.random()), line - np.float32(rng.random()), indexing="ij")
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = signed_distance(class_table()[class_id]["shape"], u, v, radius)
    amount = coverage(distance)
    # The painted coverage is soft; a pixel belongs to the thing from half on.
    full_area = int(np.count_nonzero(amount >= 0.5))
    return _Thing(class_id, radius, u, v, distance, amount, top=0, left=0, full_area=full_area)


def _move(config: ShapesConfig, thing: _Thing, rng: np.random.Generator) -> _Thing:
    margin = min(_BORDER_MARGIN * thing.radius, (config.size - 1) / 2)
    reach = thing.distance.shape[0] // 2
    top, left = np.rint(rng.uniform(margin, config.size - margin, 2)).astype(int) - reach
    return replace(thing, top=int(top), left=int(left))


def _paint_things(
    config: ShapesConfig, canvas: FloatArray, things: list[_Thing], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Image, camouflaged image (3, h, w each) and saliency (h, w) in [0, 1]."""
    background_mean = canvas.mean(axis=(1, 2), dtype=np.float32)[:, None, None]
    image, camouflaged = canvas, canvas.copy()
    saliency = np.zeros(canvas.shape[1:], np.float32)
    table = class_table()
    for thing in things:
        brightness, hue = _draw_jitter(config, rng)
        period = float(rng.uniform(*config.texture_period_px))
        offset_u, offset_v = (np.float32(value) for value in rng.uniform(0, period, 2))
        look = table[thing.class_id]["look"]
        if look == "magenta":
            offset_u = np.float32(0)
        colours = fill_look(
            look,
            thing.u + offset_u,
            thing.v + offset_v,
            radius=thing.radius,
            period=period,
            brightness=brightness,
            hue_turns=hue,
        )
        # A thin darker rim separates a thing from a ground of similar colour.
        colours *= 1 - np.float32(_RIM_DARKNESS) * np.clip(1 + thing.distance / _RIM_PX, 0, 1)
        window, inner = thing.windows(config.size)
        np.maximum(saliency[window], thing.amount[inner], out=saliency[window])
        _cast_shadow(config, thing, (image, camouflaged))
        alpha = thing.amount[inner]
        mixed = colours + np.float32(config.camouflage_frac) * (background_mean - colours)
        for target, surface in ((image, colours), (camouflaged, mixed)):
            patch = target[:, *window]
            # Over the things behind, soft edges included.
            patch += alpha * (surface[:, *inner] - patch)
    return image, camouflaged, saliency


def _cast_shadow(config: ShapesConfig, thing: _Thing, targets: tuple[FloatArray, ...]) -> None:
    """Darken what lies below and to the right of a thing that is about to be painted."""
    blurred = cv2.GaussianBlur(thing.amount, (0, 0), _SHADOW_SIGMA_PX, borderType=cv2.BORDER_CONSTANT)
    window, inner = thing.windows(config.size, _SHADOW_SHIFT_PX)
    kept = 1 - np.float32(config.shadow) * blurred[inner]
    for target in targets:
        target[:, *window] *= kept


def _light_and_noise(
    config: ShapesConfig, image: FloatArray, camouflaged: FloatArray, rng: np.random.Generator
) -> None:
    """Light both images from one random side and add the same noise to both."""
    x, y = _pixel_grid(config.size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, config.lighting) / (config.size / 2)
    light = 1 + np.float32(slope * np.cos(angle)) * x + np.float32(slope * np.sin(angle)) * y
    # Mostly grey noise, as of film: coloured grain looks like a broken camera.
    grain = np.float32(config.noise_sigma) * rng.standard_normal((config.size, config.size), dtype=np.float32)
    smooth = smooth_field(rng, config.size, _CORRELATION_PX, channels=4)
    grain += np.float32(config.correlated_sigma * np.sqrt(_GREY_FRAC)) * smooth[0]
    noise = np.float32(config.correlated_sigma * np.sqrt(1 - _GREY_FRAC)) * smooth[1:]
    noise += grain
    for target in (image, camouflaged):
        target *= light
        target += noise


def _describe(owner: npt.NDArray[np.uint8], classes: list[int], full_areas: list[int]) -> tuple[Segment, ...]:
    """Segments in the order of their index in ``owner``."""
    table = class_table()
    areas = np.bincount(owner.ravel(), minlength=len(classes))
    segments: list[Segment] = []
    used: set[int] = set()
    for index, class_id in enumerate(classes):
        left, top, width, height = cv2.boundingRect((owner == index).view(np.uint8))
        entry = table[class_id]
        segments.append(
            Segment(
                id=_free_id(entry["color"], used),
                class_id=class_id,
                category_id=entry["id"],
                isthing=bool(entry["isthing"]),
                area=int(areas[index]),
                bbox=(left, top, width, height),
                full_area=int(full_areas[index]),
            )
        )
    return tuple(segments)


def _free_id(color: list[int], used: set[int]) -> int:
    """Id whose COCO colour is about that of the class, so that the id PNG is a picture; instances differ slightly."""
    red, green, blue = color
    for step in range(256):
        value = red + 256 * ((green + 9 * step) % 256) + 65536 * blue
        if value and value not in used:
            used.add(value)
            return value
    raise RuntimeError(f"no free segment id near colour {color}")
