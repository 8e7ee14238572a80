# SPDX-License-Identifier: Apache-2.0
"""Saliency scores against loops over pixels and thresholds, by hand, and against PySODMetrics if it is there."""

import numpy as np
import pytest

from padding.evaluation.saliency_metrics import (
    ImageScores,
    SaliencyTotals,
    f_measure,
    image_scores,
    min_max_normalized,
    s_measure,
)

Scene = tuple[np.ndarray, np.ndarray]
CURVES = ("precision", "recall", "f", "e")


def scene(seed: int, size: tuple[int, int] = (13, 17), share: float = 0.4) -> Scene:
    """Random prediction, correlated with a truth that is one rectangle and some noise."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < 0.1
    truth[3 : 3 + int(share * size[0]), 4 : 4 + int(share * size[1])] = True
    return np.clip(0.5 * truth + 0.6 * rng.random(size), 0, 1), truth


def reference_f(prediction: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F of one threshold, a pixel at a time."""
    found = alarms = missed = 0
    for value, salient in zip(prediction.ravel(), truth.ravel(), strict=True):
        found += bool(value >= threshold and salient)
        alarms += bool(value >= threshold and not salient)
        missed += bool(value < threshold and salient)
    precision = found / (found + alarms) if found + alarms else 0.0
    recall = found / (found + missed) if found + missed else 0.0
    below = 0.3 * precision + recall
    return precision, recall, 1.3 * precision * recall / below if below else 0.0


def reference_e(binary: np.ndarray, truth: np.ndarray) -> float:
    """The authors' definition on whole maps."""
    if truth.all() or not truth.any():
        enhanced = (binary == truth).astype(float)
    else:
        p, g = binary - binary.mean(), truth - truth.mean()
        enhanced = (2 * p * g / (p * p + g * g + 2.2e-16) + 1) ** 2 / 4
    return min(enhanced.sum() / (truth.size - 1), 1.0)


def reference_s(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The formulas of the paper with numpy's covariance; needs quadrants with two pixels or more."""

    def of_object(values: np.ndarray) -> float:
        return 2 * values.mean() / (values.mean() ** 2 + 1 + np.std(values, ddof=1))

    def similarity(x: np.ndarray, y: np.ndarray) -> float:
        (var_x, cov), (_, var_y) = np.cov(x.ravel(), y.ravel())
        if cov == 0 or x.mean() * y.mean() == 0:
            return float(var_x + var_y == 0 or x.mean() + y.mean() == 0)
        luminance = 2 * x.mean() * y.mean() / (x.mean() ** 2 + y.mean() ** 2)
        return luminance * 2 * cov / (var_x + var_y)

    share = truth.mean()
    objects = share * of_object(prediction[truth]) + (1 - share) * of_object(1 - prediction[~truth])
    row, column = (np.round(np.argwhere(truth).mean(axis=0)) + 1).astype(int)
    regions = 0.0
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            part = truth[rows, columns]
            regions += part.size / truth.size * similarity(prediction[rows, columns], part.astype(float))
    return max(0.0, 0.5 * objects + 0.5 * regions)


def assert_equal(one: ImageScores, other: ImageScores) -> None:
    for name in ("mae", "adaptive_f", "s", "adaptive_e", *CURVES):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_slow_definitions(seed: int) -> None:
    prediction, truth = scene(seed)
    scores = image_scores(prediction, truth)
    levels = np.floor(prediction * 255)
    for threshold in (0, 1, 77, 128, 200, 255):
        expected = reference_f(levels, truth, threshold)
        np.testing.assert_allclose([getattr(scores, name)[threshold] for name in CURVES[:3]], expected)
        assert scores.e[threshold] == pytest.approx(reference_e(levels >= threshold, truth))
    adaptive = min(2 * prediction.mean(), 1)
    assert scores.adaptive_f == pytest.approx(reference_f(prediction, truth, adaptive)[2])
    assert scores.adaptive_e == pytest.approx(reference_e(prediction >= adaptive, truth))
    assert scores.s == pytest.approx(reference_s(prediction, truth))
    assert scores.mae == pytest.approx(sum(abs(p - t) for p, t in zip(prediction.flat, truth.flat, strict=True)) / 221)


def test_perfect_and_inverted_maps() -> None:
    truth = scene(0)[1]
    perfect, inverted = image_scores(truth.astype(float), truth), image_scores(1.0 - truth, truth)
    # Threshold 0 takes all pixels, every other one exactly the object.
    assert (perfect.mae, perfect.adaptive_f, perfect.adaptive_e) == (0.0, 1.0, 1.0)
    assert perfect.s == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose([getattr(perfect, name)[1:] for name in CURVES], 1.0, rtol=1e-12)
    assert perfect.precision[0] == pytest.approx(truth.mean())
    assert (inverted.mae, inverted.adaptive_f, inverted.s) == (1.0, 0.0, 0.0)
    np.testing.assert_allclose([getattr(inverted, name)[1:] for name in CURVES], 0.0, atol=1e-12)


def test_constant_map_by_hand() -> None:
    """A map of 0.5 over an image whose left quarter is salient: P 1/4 and R 1 up to level 127, nothing above."""
    truth = np.zeros((4, 8), dtype=bool)
    truth[:, :2] = True
    scores = image_scores(np.full((4, 8), 0.5), truth)
    f = 1.3 * 0.25 / (0.3 * 0.25 + 1)
    np.testing.assert_allclose(scores.f, [f] * 128 + [0.0] * 128)
    assert scores.mae == 0.5
    assert scores.adaptive_f == 0.0  # the threshold is min(2 * 0.5, 1)
    # Each pixel is aligned by 0, whose enhancement is (0 + 1)^2 / 4.
    np.testing.assert_allclose(scores.e, 0.25 * 32 / 31)
    # Objects: 2 * 0.5 / (0.25 + 1) = 0.8 for both. The centre of columns 0 and 1 rounds to 0, so the left quadrants are
    # column 0: constant truth, constant prediction, similarity 1. On the right only the truth varies: similarity 0.
    assert scores.s == pytest.approx(0.5 * 0.8 + 0.5 * 1 / 8)


@pytest.mark.parametrize(("salient", "expected"), [(False, 0.7), (True, 0.3)])
def test_truth_of_one_kind(salient: bool, expected: float) -> None:
    truth = np.full((5, 6), salient)
    prediction = np.full((5, 6), 0.3)
    scores = image_scores(prediction, truth)
    assert scores.s == pytest.approx(expected)
    assert scores.e[0] == min(30 / 29, 1.0) * salient  # threshold 0 calls everything salient
    assert scores.e[255] == float(not salient)
    assert scores.f[0] == float(salient)
    assert scores.recall[0] == float(salient)


def test_curves_have_the_order_of_their_thresholds() -> None:
    prediction, truth = scene(4)
    recall = image_scores(prediction, truth).recall
    assert recall[0] == 1.0
    assert np.all(np.diff(recall) <= 0)


def test_void_rows_and_columns_are_as_if_they_were_not_there() -> None:
    prediction, truth = scene(5)
    known = np.pad(np.ones(truth.shape, dtype=bool), ((2, 3), (4, 1)))
    rng = np.random.default_rng(0)
    padded, labels = rng.random(known.shape), rng.random(known.shape) < 0.5
    padded[known], labels[known] = prediction.ravel(), truth.ravel()
    assert_equal(image_scores(padded, labels, known), image_scores(prediction, truth))
    expected = min_max_normalized(prediction)
    np.testing.assert_allclose(min_max_normalized(padded, known)[known], expected.ravel())


def test_scattered_void_does_not_matter_and_known_pixels_do() -> None:
    prediction, truth = scene(6)
    known = np.random.default_rng(1).random(truth.shape) < 0.7
    scores = image_scores(prediction, truth, known)
    assert_equal(scores, image_scores(np.where(known, prediction, 1), np.where(known, truth, True), known))
    changed = image_scores(np.where(known, 1 - prediction, prediction), truth, known)
    assert abs(changed.mae - scores.mae) > 0.1


def test_normalization_reaches_both_ends_and_leaves_constants() -> None:
    prediction, truth = scene(7)
    dull = 0.2 + 0.3 * prediction
    stretched = min_max_normalized(dull)
    assert (stretched.min(), stretched.max()) == (0.0, 1.0)
    np.testing.assert_allclose(stretched, min_max_normalized(prediction))
    assert image_scores(stretched, truth).mae < image_scores(dull, truth).mae
    np.testing.assert_array_equal(min_max_normalized(np.full((2, 3), 0.4)), 0.4)


def test_three_conventions_of_the_largest_f() -> None:
    """Two images whose curves peak at different thresholds, from the conventions' definitions."""
    pairs = [scene(8), (scene(9)[0] ** 3, scene(9)[1])]
    scores = [image_scores(*pair) for pair in pairs]
    results = (SaliencyTotals.of_image(scores[0]) + SaliencyTotals.of_image(scores[1])).results()
    mean_p, mean_r = (np.mean([getattr(one, name) for one in scores], axis=0) for name in ("precision", "recall"))
    assert results["max_F"] == pytest.approx(100 * np.mean([one.f for one in scores], axis=0).max())
    assert results["max_F_of_mean_PR"] == pytest.approx(100 * f_measure(mean_p, mean_r).max())
    assert results["mean_of_max_F"] == pytest.approx(100 * np.mean([one.f.max() for one in scores]))
    assert results["mean_of_max_F"] > results["max_F"]
    assert results["mean_F"] == pytest.approx(100 * np.mean([one.f.mean() for one in scores]))
    assert results["MAE"] == pytest.approx(np.mean([one.mae for one in scores]))


def test_totals_count_images_without_object_and_can_be_empty() -> None:
    prediction, truth = scene(1)
    totals = SaliencyTotals()
    for labels in (truth, np.zeros_like(truth), truth):
        totals += SaliencyTotals.of_image(image_scores(prediction, labels))
    assert (totals.num_images, totals.num_without_object) == (3, 1)
    assert all(np.isnan(value) for value in SaliencyTotals().results().values())
    assert SaliencyTotals().curves()["F"].shape == (256,)


def test_tiny_images_have_finite_scores() -> None:
    for shape in ((1, 1), (1, 2), (2, 1)):
        truth = np.zeros(shape, dtype=bool)
        truth[0, 0] = True
        assert np.isfinite(s_measure(np.full(shape, 0.5), truth))
        assert np.isfinite(image_scores(np.full(shape, 0.5), truth).e).all()


@pytest.mark.parametrize(
    ("prediction", "known", "message"),
    [
        (np.zeros((3, 3)), None, "must have one shape"),
        (np.full((2, 3), 1.5), None, r"must lie in \[0, 1\], got 1.5 to 1.5; does the model return logits"),
        (np.full((2, 3), np.nan), None, r"must lie in \[0, 1\]"),
        (np.zeros((2, 3)), np.zeros((2, 3), dtype=bool), "no pixel is known"),
    ],
)
def test_wrong_input_is_refused(prediction: np.ndarray, known: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_scores(prediction, np.zeros((2, 3), dtype=bool), known)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scores_equal_pysodmetrics() -> None:
    """All numbers of the package that most papers use; it quantizes and stretches predictions."""
    package = pytest.importorskip("py_sod_metrics")
    measures = {name: getattr(package, name)() for name in ("Fmeasure", "Emeasure", "Smeasure", "MAE")}
    for seed in range(20):
        prediction, truth = scene(seed, size=(40 + seed, 57), share=0.3 + 0.02 * seed)
        if seed in (18, 19):
            truth[:] = seed == 18
        prediction = (255 * prediction).astype(np.uint8)
        for measure in measures.values():
            measure.step(pred=prediction, gt=255 * truth.astype(np.uint8))
        scores = image_scores(min_max_normalized(prediction / 255), truth)
        expected = {
            "mae": measures["MAE"].maes,
            "s": measures["Smeasure"].sms,
            "adaptive_f": measures["Fmeasure"].adaptive_fms,
            "adaptive_e": np.minimum(measures["Emeasure"].adaptive_ems, 1),
        }
        for name, values in expected.items():
            assert getattr(scores, name) == pytest.approx(values[-1], abs=1e-9), name
        # The package counts its thresholds downwards, and an E-measure may exceed 1 there.
        np.testing.assert_allclose(scores.f[::-1], measures["Fmeasure"].changeable_fms[-1], atol=1e-9)
        np.testing.assert_allclose(scores.precision[::-1], measures["Fmeasure"].precisions[-1], atol=1e-9)
        np.testing.assert_allclose(scores.recall[::-1], measures["Fmeasure"].recalls[-1], atol=1e-9)
        np.testing.assert_allclose(scores.e[::-1], np.minimum(measures["Emeasure"].changeable_ems[-1], 1), atol=1e-9)
