# SPDX-License-Identifier: Apache-2.0
"""One image through several models: semantic labels, segments and saliency beside each other."""

from collections.abc import Sequence

import numpy as np

from padding.engine.saliency_picture import draw_saliency
from padding.errors import ConfigError
from padding.page.models import PageModel
from padding.page.pictures import Image, draw, enlarged


def compare(models: Sequence[PageModel], image: Image) -> list[tuple[Image, str]]:
    """Pictures of what every model makes of an image, and what they show.

    Args:
        models: of any methods, at least one.
        image: (h, w, 3) uint8, RGB.

    Raises:
        ConfigError: no model is chosen.
    """
    if not models:
        raise ConfigError("no model is chosen; tick at least one")
    pictures = [(enlarged(image), "image")]
    for model in models:
        with model.in_use() as predictor:
            prediction = predictor(image)
            architecture = type(predictor.model).__name__
            if prediction.keys() & {"panoptic_seg", "instances", "sem_seg"}:
                pictures.append((draw(predictor, image, prediction), f"{model.name}: {architecture}"))
            if "saliency" in prediction:
                saliency = np.asarray(prediction["saliency"]).reshape(image.shape[:2])
                pictures.append((enlarged(draw_saliency(image, saliency)), f"{model.name}: saliency"))
    return pictures
