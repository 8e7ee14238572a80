# SPDX-License-Identifier: Apache-2.0
"""Images to begin with: generated ones as the first models were trained on, and the photographs that ship."""

from padding.data.photographs import read_photograph
from padding.data.sets.coco_photographs import samples_dir
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.render import render_image
from padding.page.pictures import Image


def generated_image(number: int) -> Image:
    """The generated validation image of this number, (128, 128, 3) uint8, RGB; it may show unseen classes."""
    return render_image(ShapesConfig(), "val", number).image


def photograph(number: int) -> Image:
    """One of the sample photographs, in turn: (h, w, 3) uint8, RGB."""
    files = sorted(samples_dir().rglob("images/*/*.jpg"))
    return read_photograph(files[number % len(files)])
