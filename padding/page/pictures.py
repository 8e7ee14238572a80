# SPDX-License-Identifier: Apache-2.0
"""Images on their way to a model and predictions on their way to the page."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from padding.engine.contact_sheet import draw_panoptic
from padding.engine.predictor import Predictor
from padding.errors import DataError

MAX_SIDE = 1024
"""Longest side of an image that a model gets, in pixels; larger ones are reduced."""
LEGIBLE_SIDE = 512
"""Names of classes are legible on pictures of this size; smaller ones are enlarged."""

Image = npt.NDArray[np.uint8]


def as_image(value: npt.NDArray[np.uint8] | None) -> Image:
    """What the page sent as an RGB image (h, w, 3) uint8 whose longest side is at most ``MAX_SIDE``.

    Args:
        value: (h, w), (h, w, 3) or (h, w, 4) uint8; an alpha channel is dropped.

    Raises:
        DataError: there is no image, or it has no pixel.
    """
    if value is None or value.size == 0:
        raise DataError("there is no image yet; drop one, or take an example")
    if value.ndim == 2:
        value = np.repeat(value[..., None], 3, axis=2)
    image = np.ascontiguousarray(value[..., :3])
    longest = max(image.shape[:2])
    return image if longest <= MAX_SIDE else _scaled(image, MAX_SIDE / longest, cv2.INTER_AREA)


def enlarged(image: Image) -> Image:
    """A small picture at a size at which it is seen, by whole numbers, so that its pixels stay squares."""
    factor = LEGIBLE_SIDE // max(image.shape[:2])
    return image if factor < 2 else _scaled(image, factor, cv2.INTER_NEAREST)


def draw(predictor: Predictor, image: Image, prediction: dict[str, Any]) -> Image:
    """Picture of a prediction with names of classes that can be read; unseen ones end with ``*``.

    Args:
        predictor: that predicted.
        image: (h, w, 3) uint8, RGB.
        prediction: of the image.

    Returns:
        (h', w', 3) uint8, RGB, at least ``LEGIBLE_SIDE`` wide or high but for instances, which are not enlarged.
    """
    scale = max(1.0, LEGIBLE_SIDE / max(image.shape[:2]))
    if "panoptic_seg" in prediction:
        ids, segments = prediction["panoptic_seg"]
        return draw_panoptic(image, np.asarray(ids), segments, predictor.metadata, scale=scale)
    if "instances" in prediction or scale == 1.0:
        return predictor.draw(image, prediction)
    large = _scaled(image, scale, cv2.INTER_CUBIC)
    scores = F.interpolate(prediction["sem_seg"][None].float(), size=large.shape[:2], mode="nearest")[0]
    return predictor.draw(large, {"sem_seg": scores})


def _scaled(image: Image, factor: float, interpolation: int) -> Image:
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)
