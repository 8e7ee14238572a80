# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Augmentation plans: sizes, agreement of image and labels, and randomness that stays in its range."""

import numpy as np
import pytest

from padding.data.augmentation import AugmentationPlan, View, large_scale_jitter, resize_and_crop, resize_for_test


def view_of(height: int, width: int, *, block: int = 8) -> View:
    """An image whose red channel is twice the label, in blocks that survive nearest and bilinear resizing inside."""
    rows, columns = np.mgrid[:height, :width]
    labels = ((rows // block) * 7 + columns // block).astype(np.uint8)
    image = np.stack([labels * 2, labels, labels], axis=-1)
    return View(image, labels)


def assert_aligned(view: View) -> None:
    """Where the label has no border nearby the image shows twice the label."""
    assert view.labels is not None
    assert view.image.shape[:2] == view.labels.shape
    inner = np.ones(view.labels.shape, bool)
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            inner &= np.roll(view.labels, step, axis) == view.labels
    inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False
    assert inner.any()
    difference = np.abs(view.image[..., 0].astype(int) - 2 * view.labels.astype(int))
    # A few border pixels of neighbouring labels blend in bilinear resizing.
    assert (difference[inner] <= 2).mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_jitter_moves_image_and_labels_together_within_the_output(seed: int) -> None:
    np.random.seed(seed)
    view = view_of(48, 64)
    large_scale_jitter(image_size=64, min_scale=0.5, max_scale=2.0)(view)
    assert max(view.image.shape[:2]) <= 64
    assert_aligned(view)


def test_jitter_scales_within_its_range() -> None:
    widths = []
    for seed in range(40):
        np.random.seed(seed)
        view = view_of(48, 64)
        large_scale_jitter(image_size=64, min_scale=0.5, max_scale=0.8, flip="none")(view)
        widths.append(view.image.shape[1])
    assert 32 <= min(widths) < 38
    assert 46 < max(widths) <= 52


def test_jitter_of_scale_one_is_a_fixed_size() -> None:
    view = view_of(64, 64)
    original = view.image.copy()
    plan = large_scale_jitter(image_size=64, min_scale=1.0, max_scale=1.0, flip="none")
    plan(view)
    np.testing.assert_array_equal(view.image, original)
    assert plan.output_size == (64, 64)


def test_flip_directions() -> None:
    seen: dict[str, set[str]] = {}
    for flip in ("horizontal", "vertical", "none"):
        plan = large_scale_jitter(image_size=64, min_scale=1.0, max_scale=1.0, flip=flip)
        for seed in range(12):
            np.random.seed(seed)
            view, original = view_of(64, 64), view_of(64, 64).image
            plan(view)
            outcomes = {"same": original, "mirrored": original[:, ::-1], "upside down": original[::-1]}
            seen.setdefault(flip, set()).update(k for k, v in outcomes.items() if np.array_equal(view.image, v))
    assert seen == {
        "horizontal": {"same", "mirrored"},
        "vertical": {"same", "upside down"},
        "none": {"same"},
    }
    with pytest.raises(ValueError, match="RANDOM_FLIP is 'both'"):
        large_scale_jitter(image_size=64, min_scale=1.0, max_scale=1.0, flip="both")


def test_crop_plan_sizes_and_alignment() -> None:
    plan = resize_and_crop(min_sizes=(64,), max_size=200, crop_size=(40, 48), padded_size=48)
    view = view_of(48, 64)
    plan(view)
    assert view.image.shape == (40, 48, 3)
    assert plan.output_size == (48, 48)
    assert_aligned(view)


def test_without_crop_and_padding_the_size_is_the_resized_one() -> None:
    plan = resize_and_crop(min_sizes=(24,), max_size=200)
    view = view_of(48, 64)
    plan(view)
    assert view.image.shape == (24, 32, 3)
    assert plan.output_size is None


def test_category_area_rule_counts_classes_not_label_values() -> None:
    """Two values of one class fill the left half; only crops that reach into the right half obey the rule."""
    labels = np.zeros((32, 64), np.uint8)
    labels[:16, :32], labels[16:, :32], labels[:, 32:] = 1, 2, 3
    classes = np.array([255, 4, 4, 5], np.uint8)
    plan = resize_and_crop(min_sizes=(32,), max_size=200, crop_size=(32, 16), single_category_max_area=0.9, flip="none")
    share = []
    for seed in range(20):
        np.random.seed(seed)
        view = View(np.zeros((32, 64, 3), np.uint8), labels, classes)
        plan(view)
        share.append(max((view.sem_seg == c).mean() for c in (4, 5)))
    # Ten tries per crop find one of the 13 of 49 obeying positions with probability 1 - (36/49)^10 = 0.95.
    assert np.mean(np.array(share) < 0.9) >= 0.75


def test_colour_jitter_touches_the_image_only_and_no_geometry() -> None:
    plan = resize_and_crop(min_sizes=(48,), max_size=200, flip="none", color_jitter_format="RGB")
    changed = False
    for _ in range(8):
        view, original = view_of(48, 64), view_of(48, 64)
        plan(view)
        np.testing.assert_array_equal(view.labels, original.labels)
        assert view.image.dtype == np.uint8
        assert len(view.transforms.transforms) == 1
        changed |= not np.array_equal(view.image, original.image)
    assert changed


def test_test_time_resizing() -> None:
    view = view_of(48, 64)
    resize_for_test(min_size=96, max_size=100)(view)
    assert view.image.shape[:2] == (75, 100)
    untouched = view_of(48, 64)
    resize_for_test(min_size=0, max_size=100)(untouched)
    np.testing.assert_array_equal(untouched.image, view_of(48, 64).image)


def test_view_without_labels_offers_no_classes() -> None:
    view = View(np.zeros((4, 4, 3), np.uint8))
    AugmentationPlan(geometric=())(view)
    assert view.labels is None
    assert view.sem_seg is None
