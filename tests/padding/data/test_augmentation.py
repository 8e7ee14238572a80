# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Augmentation plans: sizes, agreement of image and labels, and randomness that stays in its range."""

from typing import Any

import numpy as np
import pytest

from padding.data.augmentation import (
    AugmentationPlan,
    View,
    large_scale_jitter,
    resize_and_crop,
    resize_for_test,
    scale_and_crop,
    with_labeled_crops,
    with_rotation,
)


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


def rotated(
    view: View, degrees: float, angle: float, monkeypatch: pytest.MonkeyPatch, **borders: Any
) -> AugmentationPlan:
    """Rotate a view by one angle."""
    monkeypatch.setattr(np.random, "uniform", lambda low, high: angle if low == -degrees and high == degrees else None)
    plan = with_rotation(AugmentationPlan(()), degrees=degrees, **{**BORDERS, **borders})
    plan(view)
    return plan


BORDERS: dict[str, Any] = {"image_border": (10, 20, 30), "label_border": 255}


def inside_after_rotation(height: int, width: int, angle: float) -> np.ndarray:
    """Which pixels show the image, by turning every pixel's centre back; the last pixel at the edge is left open."""
    rows, columns = np.mgrid[:height, :width]
    x, y = columns - (width - 1) / 2, rows - (height - 1) / 2
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    back_x, back_y = cos * x - sin * y + (width - 1) / 2, sin * x + cos * y + (height - 1) / 2
    distance = np.minimum.reduce([back_x + 0.5, back_y + 0.5, width - 0.5 - back_x, height - 0.5 - back_y])
    return np.where(distance > 1.0, 1, np.where(distance < -1.0, 0, -1))


@pytest.mark.parametrize("angle", [10.0, -7.5, 90.0])
def test_rotation_fills_corners_with_mean_and_ignore_never_with_class_0(
    angle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = View(np.full((48, 64, 3), 200, np.uint8), np.zeros((48, 64), np.uint8))
    rotated(view, 100.0, angle, monkeypatch)
    inside = inside_after_rotation(48, 64, angle)
    assert (inside == 0).sum() > 50
    assert (view.labels[inside == 0] == 255).all()
    assert (view.labels[inside == 1] == 0).all()
    assert (view.image[inside == 0] == (10, 20, 30)).all()
    assert (view.image[inside == 1] == 200).all()


def test_rotation_turns_image_and_labels_together_and_keeps_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(48, 64)
    rotated(view, 10.0, 10.0, monkeypatch)
    assert view.image.shape == (48, 64, 3)
    view.image[view.labels == 255] = 0
    view.labels[view.labels == 255] = 0
    assert_aligned(view)


def test_quarter_turn_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(np.zeros((8, 8, 3), np.uint8), np.arange(64, dtype=np.uint8).reshape(8, 8))
    expected = np.rot90(view.labels)
    rotated(view, 90.0, 90.0, monkeypatch)
    np.testing.assert_array_equal(view.labels, expected)


def test_further_maps_follow_the_rotation_with_zero_in_the_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(np.full((48, 64, 3), 200, np.uint8), np.zeros((48, 64), np.uint8))
    rotated(view, 20.0, 20.0, monkeypatch)
    grey = view.transforms.apply_image(np.full((48, 64), 100, np.uint8))
    inside = inside_after_rotation(48, 64, 20.0)
    assert (grey[inside == 0] == 0).all()
    assert (grey[inside == 1] == 100).all()


def test_rotation_comes_before_the_crop_and_stays_in_its_range() -> None:
    plan = with_rotation(scale_and_crop(factors=(1.0,), sampling="choice", crop_size=(24, 24)), degrees=10.0, **BORDERS)
    names = [type(step).__name__ for step in plan.geometric]
    assert names == ["ResizeByFactor", "RandomBorderedRotation", "RandomCrop", "RandomFlip"]
    assert plan.output_size == (24, 24)
    jitter = with_rotation(large_scale_jitter(image_size=64, min_scale=1, max_scale=1), degrees=5.0, **BORDERS)
    assert [type(step).__name__ for step in jitter.geometric][-2:] == ["RandomBorderedRotation", "FixedSizeCrop"]
    angles = []
    for seed in range(60):
        np.random.seed(seed)
        angles.append(plan.geometric[1].get_transform(np.zeros((4, 4, 3), np.uint8)).angle)
    assert -10 <= min(angles) < -7
    assert 7 < max(angles) <= 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degrees": -3.0}, r"INPUT.ROTATION is -3.0; expected degrees"),
        ({"label_border": 300}, "more than a byte holds"),
    ],
)
def test_unusable_rotations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_rotation(AugmentationPlan(()), **{"degrees": 5.0, **BORDERS, **changes})


def sparse_view() -> View:
    """One labelled spot of 4 x 4 pixels in a corner of 60 x 60."""
    labels = np.full((60, 60), 255, np.uint8)
    labels[50:54, 52:56] = 1
    return View(np.zeros((60, 60, 3), np.uint8), labels)


def labelled_share(plan: AugmentationPlan, least: int) -> float:
    hits = 0
    for seed in range(80):
        np.random.seed(seed)
        view = sparse_view()
        plan(view)
        assert view.labels is not None
        assert view.labels.shape == (30, 30)
        hits += int((view.labels != 255).sum() >= least)
    return hits / 80


def test_crops_are_redrawn_until_they_hold_labels() -> None:
    plan = scale_and_crop(factors=(1.0,), sampling="choice", crop_size=(30, 30), flip="none")
    redrawn = with_labeled_crops(plan, min_labeled=16, ignore_label=255)
    once = labelled_share(plan, 16)
    # A crop holds the whole spot with probability (7/31)(5/31) = 0.036; one of ten does with 0.31.
    assert once < 0.12
    assert labelled_share(redrawn, 16) == pytest.approx(0.31, abs=0.16)


def test_of_poor_crops_the_best_is_taken() -> None:
    plan = scale_and_crop(factors=(1.0,), sampling="choice", crop_size=(30, 30), flip="none")
    least = with_labeled_crops(plan, min_labeled=1, ignore_label=255)
    most = with_labeled_crops(plan, min_labeled=1000, ignore_label=255)
    assert labelled_share(most, 16) > labelled_share(least, 16)
    assert labelled_share(most, 1) >= labelled_share(least, 1)


def test_category_area_rule_and_labelled_crops_together() -> None:
    labels = np.full((32, 64), 255, np.uint8)
    labels[:, :20], labels[:, 20:40] = 4, 5
    plan = resize_and_crop(min_sizes=(32,), max_size=200, crop_size=(32, 16), single_category_max_area=0.9, flip="none")
    redrawn = with_labeled_crops(plan, min_labeled=400, ignore_label=255)
    for seed in range(10):
        np.random.seed(seed)
        view = View(np.zeros((32, 64, 3), np.uint8), labels)
        redrawn(view)
        assert (view.labels != 255).sum() >= 400


def test_images_without_labels_are_cropped_once() -> None:
    plan = scale_and_crop(factors=(1.0,), sampling="choice", crop_size=(30, 30), flip="none")
    redrawn = with_labeled_crops(plan, min_labeled=16, ignore_label=255)
    image = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    for seed in range(3):
        views = []
        for one in (plan, redrawn):
            np.random.seed(seed)
            view = View(image)
            one(view)
            views.append(view.image)
        np.testing.assert_array_equal(*views)


def test_labelled_crops_need_a_crop() -> None:
    with pytest.raises(ValueError, match=r"INPUT.CROP.MIN_LABELED is 5, but nothing is cropped"):
        with_labeled_crops(resize_and_crop(min_sizes=(32,), max_size=64), min_labeled=5, ignore_label=255)
