# SPDX-License-Identifier: Apache-2.0
"""One image through several models, and images on their way."""

from collections.abc import Mapping

import numpy as np
import pytest

from padding.errors import ConfigError, DataError
from padding.page.examples import generated_image, photograph
from padding.page.models import PageModel
from padding.page.pictures import MAX_SIDE, as_image
from padding.page.side_by_side import compare


def test_every_model_gives_its_pictures(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    pictures = compare(list(models.values()), image)
    titles = ["image", "zero_shot: PADing", "scribbles: PSI", "saliency: SalSeg", "saliency: saliency"]
    assert [title for _, title in pictures] == titles
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture, _ in pictures)
    with pytest.raises(ConfigError, match="tick at least one"):
        compare([], image)


def test_images_are_made_rgb_and_bounded() -> None:
    assert as_image(np.zeros((5, 7), np.uint8)).shape == (5, 7, 3)
    assert as_image(np.zeros((5, 7, 4), np.uint8)).shape == (5, 7, 3)
    assert as_image(np.zeros((3000, 1500, 3), np.uint8)).shape == (MAX_SIDE, MAX_SIDE // 2, 3)
    for nothing in (None, np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="no image yet"):
            as_image(nothing)


def test_examples_differ_and_go_round() -> None:
    assert generated_image(0).shape == (128, 128, 3)
    assert not np.array_equal(generated_image(0), generated_image(1))
    assert not np.array_equal(photograph(0)[:50, :50], photograph(1)[:50, :50])
    np.testing.assert_array_equal(photograph(0), photograph(14))
