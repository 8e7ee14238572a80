# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from padding.evaluation.confusion import confusion_matrix, iou_from_confusion, scores_from_confusion

IGNORE = 255


def test_hand_counted_image() -> None:
    gt = np.array([[0, 0, 1], [1, 1, IGNORE]])
    pred = np.array([[0, 1, 1], [1, IGNORE, 0]])
    # Row 0: one right, one taken for class 1. Row 1: two right, one unlabelled. The void pixel counts nowhere.
    np.testing.assert_array_equal(confusion_matrix(pred, gt, 2, IGNORE), [[1, 1, 0], [0, 2, 1]])


def test_matches_counting_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 3, IGNORE])
    gt, pred = rng.choice(labels, (2, 20, 30))
    expected = np.zeros((4, 5), dtype=np.int64)
    for g, p in zip(gt.ravel(), pred.ravel(), strict=True):
        if g != IGNORE:
            expected[g, 4 if p == IGNORE else p] += 1
    np.testing.assert_array_equal(confusion_matrix(pred.astype(np.uint8), gt.astype(np.int32), 4, IGNORE), expected)


def test_iou_counts_unlabelled_predictions_as_misses_only() -> None:
    matrix = np.array([[6, 2, 2], [0, 5, 0]])
    # Class 0: 6 / (10 + 6 - 6); class 1: 5 / (5 + 7 - 5).
    np.testing.assert_allclose(iou_from_confusion(matrix), [0.6, 5 / 7])


def test_scores_of_a_matrix_with_an_absent_class() -> None:
    matrix = np.array([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]])
    scores = scores_from_confusion(matrix)
    np.testing.assert_array_equal(scores.present, [True, True, False])
    np.testing.assert_allclose(scores.iou, [3 / 4, 4 / 5, np.nan])
    np.testing.assert_allclose(scores.accuracy, [3 / 4, 1, np.nan])
    assert scores.pixel_accuracy == 7 / 8
    assert scores.frequency_weighted_iou == pytest.approx((0.75 * 4 + 0.8 * 4) / 8)


def test_no_labelled_pixel_at_all_gives_nan() -> None:
    scores = scores_from_confusion(np.zeros((2, 3), dtype=np.int64))
    assert np.isnan(scores.iou).all()
    assert np.isnan(scores.pixel_accuracy)
    assert np.isnan(scores.frequency_weighted_iou)


@pytest.mark.parametrize(("source", "bad"), [("ground truth", 7), ("prediction", 2), ("prediction", -1)])
def test_label_out_of_range_is_named(source: str, bad: int) -> None:
    maps = {"ground truth": np.zeros((2, 2), np.int64), "prediction": np.zeros((2, 2), np.int64)}
    maps[source][0, 1] = bad
    with pytest.raises(ValueError, match=rf"{source} holds labels \[{bad}\]; expected 0..1 or 255") as caught:
        confusion_matrix(maps["prediction"], maps["ground truth"], 2, IGNORE)
    assert source in str(caught.value)


def test_label_equal_to_the_class_count_is_out_of_range() -> None:
    """K is used for ignored pixels inside; a file that holds K must not be silently ignored."""
    with pytest.raises(ValueError, match=r"labels \[2\]"):
        confusion_matrix(np.zeros((1, 2), np.int64), np.array([[2, 0]]), 2, IGNORE)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="original size"):
        confusion_matrix(np.zeros((2, 3), np.int64), np.zeros((3, 2), np.int64), 2, IGNORE)
