# SPDX-License-Identifier: Apache-2.0
"""The embedded data set ``shapes``: generated panoptic scenes for zero-shot, dense, scribble and saliency tasks.

One import for users; the parts are ``shapes_classes`` (names, split, embeddings, parameters), ``shapes_textures`` and
``shapes_render`` (pictures), ``shapes_write`` (files and their layout) and ``shapes_check`` (verification).

>>> from padding.data.shapes import ShapesConfig, render_image
>>> render_image(ShapesConfig(), "train", 0).image.shape
(128, 128, 3)
"""

from padding.data.shapes_check import check_shapes
from padding.data.shapes_classes import (
    COARSE_NAMES,
    ShapesConfig,
    class_table,
    coarse_ids,
    embed_classes,
    shapes_split,
)
from padding.data.shapes_render import RenderedImage, Segment, render_image
from padding.data.shapes_write import write_shapes

__all__ = [
    "COARSE_NAMES",
    "RenderedImage",
    "Segment",
    "ShapesConfig",
    "check_shapes",
    "class_table",
    "coarse_ids",
    "embed_classes",
    "render_image",
    "shapes_split",
    "write_shapes",
]
