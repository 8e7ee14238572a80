# SPDX-License-Identifier: Apache-2.0
"""Outlines and textures of the embedded data set ``shapes``, as functions of the position.

Outlines are signed distances in pixels (negative inside), so that edges are smooth at any angle without supersampling.
Colours are sRGB in [0, 1]. Everything is float32, images are (3, h, w): numpy is slow along an axis of three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
# float32 in fact; numpy's stubs widen products with Python floats.
_Floats = npt.NDArray[np.floating[Any]]

# Per look: ground and ink.
_LOOK_PALETTE = {
    "red": ((0.89, 0.20, 0.20), (0.74, 0.09, 0.13)),
    "striped": ((0.97, 0.97, 0.94), (0.10, 0.60, 0.36)),
    "dotted": ((0.15, 0.39, 0.84), (0.98, 0.98, 0.97)),
    "checked": ((0.99, 0.81, 0.17), (0.13, 0.13, 0.15)),
    "magenta": ((1.00, 0.62, 0.88), (0.58, 0.08, 0.52)),
}
_STUFF_COLOUR = {
    "grey": (0.62, 0.64, 0.67),
    "brown": (0.61, 0.48, 0.39),
    "teal": (0.37, 0.58, 0.58),
    "olive": (0.57, 0.59, 0.36),
}
# Ink of a pattern, as a multiple of the ground colour.
_STUFF_INK = 0.74


def coverage(distance: FloatArray) -> FloatArray:
    """Part of a pixel that lies inside an outline, in [0, 1]: the edge is one pixel wide."""
    return np.clip(np.float32(0.5) - distance, 0, 1)


# ---- outlines -------------------------------------------------------------------------------------------------------


def _disk(u: FloatArray, v: FloatArray, r: float) -> _Floats:
    return np.hypot(u, v) - 0.92 * r


def _ring(u: FloatArray, v: FloatArray, r: float) -> _Floats:
    return np.abs(np.hypot(u, v) - 0.70 * r) - 0.27 * r


def _box(u: FloatArray, v: FloatArray, half_u: float, half_v: float, corner: float) -> _Floats:
    """Rectangle of half sides ``half_u`` x ``half_v`` with rounded corners."""
    du, dv = np.abs(u) - (half_u - corner), np.abs(v) - (half_v - corner)
    outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
    return outside + np.minimum(np.maximum(du, dv), 0) - corner


def _square(u: FloatArray, v: FloatArray, r: float) -> _Floats:
    return _box(u, v, 0.80 * r, 0.80 * r, 0.10 * r)


def _plus(u: FloatArray, v: FloatArray, r: float) -> _Floats:
    arms = (_box(u, v, r, 0.35 * r, 0.07 * r), _box(u, v, 0.35 * r, r, 0.07 * r))
    return np.minimum(*arms)


def _triangle(u: FloatArray, v: FloatArray, r: float) -> _Floats:
    half = np.float32(np.sqrt(3) / 2)
    return np.maximum(np.abs(u) * half + v / 2, -v) - 0.56 * r


def _star(u: FloatArray, v: FloatArray, r: float, points: int = 5) -> _Floats:
    """Fold the plane onto half of one point; there the outline is one straight line from the tip to the notch."""
    step = 2 * np.pi / points
    angle = np.abs(np.mod(np.arctan2(v, u) + step / 2, step) - step / 2)
    rho = np.hypot(u, v)
    tip, notch = 1.10 * r, 0.52 * r
    notch_x, notch_y = notch * np.cos(step / 2), notch * np.sin(step / 2)
    length = np.hypot(tip - notch_x, notch_y)
    normal_x, normal_y = notch_y / length, (tip - notch_x) / length
    return (rho * np.cos(angle) - tip) * np.float32(normal_x) + rho * np.sin(angle) * np.float32(normal_y)


_OUTLINES: dict[str, Callable[[FloatArray, FloatArray, float], _Floats]] = {
    "disk": _disk,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "plus": _plus,
    "ring": _ring,
}


def signed_distance(shape: str, u: FloatArray, v: FloatArray, radius: float) -> FloatArray:
    """Distance to the outline of a thing centred at 0, in pixels; no outline reaches beyond 1.15 radius."""
    return _OUTLINES[shape](u, v, radius).astype(np.float32, copy=False)


# ---- looks and patterns ---------------------------------------------------------------------------------------------


def jitter_colours(colours: FloatArray, brightness: float, hue_turns: float) -> FloatArray:
    """Colours (N, 3) with their hue turned about the grey axis and their brightness multiplied.

    The turn is a rotation of RGB space about (1, 1, 1), so greys keep their colour and only brightness changes.
    """
    angle = 2 * np.pi * hue_turns
    cos, sin = np.cos(angle), np.sin(angle)
    even, odd = (1 - cos) / 3, sin / np.sqrt(3)
    turn = cos * np.eye(3) + even + odd * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return (np.asarray(colours) @ turn.T * brightness).astype(np.float32)


def _band(position: FloatArray, period: float, duty: float) -> FloatArray:
    """1 on stripes that fill ``duty`` of each period, 0 between, with edges one pixel wide."""
    from_middle = np.abs(np.mod(position / period, 1) - 0.5) * period
    return coverage(from_middle - duty * period / 2)


def _dots(u: FloatArray, v: FloatArray, period: float) -> FloatArray:
    du, dv = (np.mod(w / period, 1) * period - period / 2 for w in (u, v))
    return coverage(np.hypot(du, dv) - 0.30 * period)


def _checks(u: FloatArray, v: FloatArray, period: float) -> FloatArray:
    first, second = _band(u, period, 0.5), _band(v, period, 0.5)
    return first + second - 2 * first * second


def fill_look(
    look: str, u: FloatArray, v: FloatArray, *, radius: float, period: float, brightness: float, hue_turns: float
) -> FloatArray:
    """Colours of a thing's surface at positions (u, v) relative to its centre, in pixels along its own axes.

    Returns:
        (3, h, w) float32, about [0, 1].
    """
    amount: _Floats
    ground, ink = jitter_colours(np.array(_LOOK_PALETTE[look]), brightness, hue_turns)
    if look == "striped":
        amount = _band(u, period, 0.5)
    elif look == "dotted":
        amount = _dots(u, v, period)
    elif look == "checked":
        amount = _checks(u, v, period)
    elif look == "magenta":
        amount = np.clip(u / np.float32(1.8 * radius) + np.float32(0.5), 0, 1)
    else:
        # Plain red: a hint of relief, far weaker than the gradient of "magenta".
        amount = np.clip(np.hypot(u, v) / np.float32(radius), 0, 1) * np.float32(0.35)
    return ground[:, None, None] + amount * (ink - ground)[:, None, None]


def smooth_field(rng: np.random.Generator, size: int, sigma_px: float, channels: int) -> FloatArray:
    """Smooth Gaussian noise (channels, size, size), standard deviation 1, correlated over about ``sigma_px``."""
    # Half resolution: a quarter of the work, and no visible difference from sigma 2 on.
    half = size // 2 + 1
    # A normalised Gaussian window divides the deviation of independent noise by 2 sigma sqrt(pi).
    scale = np.float32(sigma_px * np.sqrt(np.pi))
    field = np.empty((channels, size, size), np.float32)
    for target, coarse in zip(field, rng.standard_normal((channels, half, half), dtype=np.float32), strict=True):
        blurred = cv2.GaussianBlur(coarse * scale, (0, 0), sigma_px / 2, borderType=cv2.BORDER_REFLECT_101)
        cv2.resize(blurred, (size, size), dst=target, interpolation=cv2.INTER_LINEAR)
    return field


def fill_pattern(
    colour: str, pattern: str, x: FloatArray, y: FloatArray, rng: np.random.Generator, *, brightness: float, hue: float
) -> FloatArray:
    """Colours of a background region at pixel positions (x, y), both (h, h).

    Returns:
        (3, h, h) float32, about [0, 1].
    """
    (ground,) = jitter_colours(np.array([_STUFF_COLOUR[colour]]), brightness, hue)
    if pattern == "plain":
        return np.broadcast_to(ground[:, None, None], (3, *x.shape))
    if pattern == "hatch":
        angle, period = rng.uniform(0, np.pi), rng.uniform(8.0, 10.0)
        amount = _band(np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y, period, 0.28)
    else:
        (field,) = smooth_field(rng, x.shape[0], 4.5, channels=1)
        amount = np.clip((field - np.float32(0.35)) * 4, 0, 1)
    return ground[:, None, None] * (1 - np.float32(1 - _STUFF_INK) * amount)
