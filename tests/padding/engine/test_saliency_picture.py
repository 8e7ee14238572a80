# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from padding.engine.saliency_picture import GAP_PX, beside, draw_saliency


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_salient_pixels_are_brighter_and_the_image_shines_through(image: np.ndarray) -> None:
    saliency = torch.linspace(0, 1, 20).repeat(12, 1)
    opaque = draw_saliency(image, saliency, alpha=1.0)
    assert (opaque.shape, opaque.dtype) == (image.shape, np.uint8)
    assert np.all(np.diff(opaque.astype(int).sum(axis=2), axis=1) > 0)  # from dark to light
    assert np.all(opaque == opaque[:1])  # nothing of the image
    np.testing.assert_array_equal(draw_saliency(image, saliency, alpha=0.0), image)
    mixed = draw_saliency(image, saliency, alpha=0.5)
    np.testing.assert_allclose(mixed, (opaque.astype(float) + image) / 2, atol=1)


def test_arrays_are_drawn_as_tensors_are(image: np.ndarray) -> None:
    saliency = torch.rand(12, 20, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(draw_saliency(image, saliency), draw_saliency(image, saliency.numpy()))


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (np.zeros((12, 21)), r"shape \(12, 21\), the image is \(12, 20\)"),
        (np.full((12, 20), 2.0), r"must lie in \[0, 1\], got 2 to 2"),
        (np.full((12, 20), np.nan), r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_saliency_of_this_image_is_refused(image: np.ndarray, saliency: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_saliency(image, saliency)


def test_pictures_stand_side_by_side(image: np.ndarray) -> None:
    both = beside(image, 255 - image)
    assert both.shape == (12, 40 + GAP_PX, 3)
    np.testing.assert_array_equal(both[:, :20], image)
    np.testing.assert_array_equal(both[:, 20 + GAP_PX :], 255 - image)
    assert np.all(both[:, 20 : 20 + GAP_PX] == 255)
