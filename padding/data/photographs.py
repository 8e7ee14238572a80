# SPDX-License-Identifier: Apache-2.0
"""Photographs are read here alone: for training, evaluation, the predictor and the demo.

A stated rule for what is not 8-bit colour: an alpha channel is dropped and a palette resolved; 16-bit grey is scaled
from the full range of its type to 0 to 255; other numbers (32-bit integers, floats) have no range of their own and need
INPUT.VALUE_RANGE, which also replaces the full range of 16-bit grey. An EXIF orientation is obeyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from padding.data.readers import opened_image, raw_mode
from padding.errors import ConfigError, DataError, check_choice

FORMATS = ("RGB", "BGR", "L", "YUV-BT.601")
"""Values of INPUT.FORMAT, as Detectron2 names them."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_RANGE = "INPUT.VALUE_RANGE"
_RANGE_OF_16_BITS = (0.0, 65535.0)


def read_photograph(
    path: str | Path, *, channels: str = "RGB", value_range: Sequence[float] = (), cure: str = "obtain it again"
) -> npt.NDArray[np.uint8]:
    """Read an image.

    Args:
        path: of a format that Pillow reads.
        channels: one of ``FORMATS``.
        value_range: grey values that become 0 and 255 in images of more than 8 bits, what lies outside is clipped; ():
            the rule above.
        cure: end of the messages: what to do with a file that is damaged.

    Returns:
        (h, w, 3) uint8, or (h, w, 1) for "L"; YUV is float, as Detectron2 makes it.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be decoded, or its numbers have no range.
        ConfigError: ``channels`` or ``value_range`` is none.
    """
    check_value_range(value_range)
    with opened_image(path, cure=cure) as image:
        stored = raw_mode(image)
        image.load()  # what cannot be decoded shows here
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            return in_channels(_to_bytes(np.asarray(image), _range_of(path, stored, value_range), path), channels)
        if value_range and "16" in stored:
            raise DataError(
                f"{path}: {_RANGE} is set, but of colours of 16 bits only the upper 8 are read; convert the image to "
                f"8 bits, or leave {_RANGE} empty"
            )
        return in_channels(image, channels)


def in_channels(image: npt.NDArray[np.uint8] | Image.Image, channels: str) -> npt.NDArray[np.uint8]:
    """An RGB (h, w, 3) or grey (h, w) image in the channels that INPUT.FORMAT names.

    Raises:
        ConfigError: for another name.
    """
    from detectron2.data.detection_utils import convert_PIL_to_numpy

    check_choice("INPUT.FORMAT", channels, FORMATS)
    converted = convert_PIL_to_numpy(Image.fromarray(image) if isinstance(image, np.ndarray) else image, channels)
    return converted if converted.flags.writeable else converted.copy()  # tensors share its memory


def check_value_range(value_range: Sequence[float]) -> None:
    """Refuse what is neither empty nor two ascending numbers.

    Raises:
        ConfigError: names the key.
    """
    if value_range and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        raise ConfigError(f"{_RANGE} is {tuple(value_range)}; expected () or (lowest, highest), such as (0, 4095)")


def _range_of(path: str | Path, stored: str, value_range: Sequence[float]) -> tuple[float, float]:
    if value_range:
        return float(value_range[0]), float(value_range[1])
    if "16" in stored and not stored.endswith("S"):
        return _RANGE_OF_16_BITS
    raise DataError(
        f"{path}: holds numbers of type {stored}, whose range nobody knows; set {_RANGE} to the values that are black "
        "and white, such as (0.0, 1.0), or convert the image to 8 bits"
    )


def _to_bytes(grey: npt.NDArray[np.generic], bounds: tuple[float, float], path: str | Path) -> npt.NDArray[np.uint8]:
    """Grey values (h, w) of any type, linearly from ``bounds`` to 0 and 255."""
    low, high = bounds
    scaled = (grey.astype(np.float64) - low) * (255.0 / (high - low))
    if not np.isfinite(scaled).all():
        raise DataError(f"{path}: holds values that are no numbers (NaN or infinite); replace them")
    return np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
