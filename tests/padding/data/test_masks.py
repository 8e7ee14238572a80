# SPDX-License-Identifier: Apache-2.0
"""The reader of instance masks: right pixels for every sound form, a named error for every other one."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from padding.data.masks import annotation_mask, draw_polygons, mask_problems, run_length_code, without_short_polygons
from padding.errors import DataError

SIZE = (8, 10)
BOX = [2, 1, 7, 1, 7, 5, 2, 5]
# Column by column: 17 pixels before row 1 of column 2, then 4 of each column inside and 4 between.
COUNTS = [17, 4, 4, 4, 4, 4, 4, 4, 4, 4, 27]
TEXT = "a0440000000g0"


def box_mask() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[1:5, 2:7] = 1
    return mask


def code(counts: object, size: object = SIZE) -> dict[str, object]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


def test_polygon_and_all_run_length_codes_give_the_same_mask() -> None:
    compressed = coco_mask.encode(np.asfortranarray(box_mask()))["counts"]
    for segmentation in ([BOX], [[float(x) for x in BOX]], code(compressed), code(compressed.decode()), code(COUNTS)):
        mask = annotation_mask({"segmentation": segmentation}, SIZE)
        np.testing.assert_array_equal(mask, box_mask())
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(coco_mask.decode(run_length_code(segmentation, SIZE)), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has neither polygons nor run-length code, but None"),
        ("[[1, 2, 3, 4, 5, 6]]", "has neither polygons nor run-length code, but '"),
        ([], "has neither polygons of at least three points"),
        ([[1, 2, 3, 4]], "has a polygon of 4 numbers; it needs x and y of at least three points"),
        ([[*BOX, 3]], "has a polygon of 9 numbers"),
        (BOX, "has 2 where a polygon is expected; .* is a list of one polygon"),
        (["1 2 3 4 5 6"], "where a polygon is expected"),
        ([[*BOX[:7], "5"]], "holds something else than numbers"),
        ([[*BOX[:7], None]], "holds something else than numbers"),
        ([[float("nan"), *BOX[1:]]], "no finite number"),
        ([[*BOX[:7], float("nan")]], "no finite number"),
        ([[*BOX[:7], float("inf")]], "no finite number"),
        ([[float("inf"), float("-inf"), *BOX[2:]]], "no finite number"),
        ([[3e9, *BOX[1:]]], r"has a coordinate 3e\+09, farther from the image of 8 x 10 than it is large"),
        ([BOX, [-3e9, *BOX[1:]]], r"has a coordinate -3e\+09, farther"),
        ([[*BOX[:7], 10**400]], "holds something else than numbers|farther"),
        (code(COUNTS, (3, 3)), r"has run-length code of size \[3, 3\], the image is 8 x 10 \(height, width\)"),
        (code(COUNTS, (10, 8)), r"of size \[10, 8\]"),
        (code(COUNTS, None), "of size None"),
        ({"counts": COUNTS}, "of size None"),
        ({"size": list(SIZE)}, "neither integers nor text: None"),
        (code([]), "no counts"),
        (code([17, 4]), "has run-length code of 21 pixels, its size has 80"),
        (code([*COUNTS, 1]), "of 81 pixels, its size has 80"),
        (code([100, -20]), "a negative count"),
        (code([2**64, 3]), f"of {2**64 + 3} pixels"),
        (code([17.0, 63.0]), "neither integers nor text"),
        (code([True, 79]), "neither integers nor text"),
        (code(""), "empty run-length code"),
        (code(b""), "empty run-length code"),
        (code("hello"), "garbled or was cut"),
        (code("häßlich"), "garbled or was cut"),
        (code("\ud800"), "garbled or was cut"),
        (code(str(b"`0T2")), "garbled or was cut"),
        (code(TEXT[:-2]), "of 53 pixels, its size has 80"),
        (code(TEXT[:-1] + "P"), "garbled or was cut"),
        (code("oooooooooo0"), "garbled or was cut"),
        (code("N"), "a negative count"),
    ],
)
def test_other_masks_are_errors_that_name_file_and_annotation(segmentation: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jpg: annotation 17 .*({message}).*; correct its 'segmentation'"):
        annotation_mask({"id": 17, "segmentation": segmentation}, SIZE, path="a.jpg")


def test_polygons_may_leave_the_image_a_little() -> None:
    mask = annotation_mask({"segmentation": [[-5, -5, 4, -5, 4, 3, -5, 3]]}, SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[:3, :4] = 1
    np.testing.assert_array_equal(mask, expected)


def test_an_outline_that_takes_gigabytes_is_refused_and_a_long_short_one_is_not() -> None:
    size = (4000, 4000)
    to_and_fro = [0.0, 0.0, 4000.0, 4000.0] * 10_000
    dense = np.stack([np.linspace(0, 100, 20_000), np.linspace(0, 3, 20_000) ** 2], axis=1).ravel().tolist()
    assert mask_problems([[to_and_fro], [dense]], [size, size]) == {
        0: "has a polygon of 20000 points whose outline is too long to draw"
    }


def test_texts_checked_together_are_judged_like_each_by_itself() -> None:
    """Random masks of many sizes, every third code damaged; pycocotools encodes and decodes."""
    rng = np.random.default_rng(0)
    codes, sizes, expected = [], [], []
    for index in range(600):
        size = tuple(rng.integers(1, 40, 2).tolist())
        mask = (rng.random(size) < rng.choice([0, 0.02, 0.5, 1])).astype(np.uint8)
        text = coco_mask.encode(np.asfortranarray(mask))["counts"]
        if index % 3 == 0:
            text += b"1"  # one more run of a pixel or more, or a negative one
        codes.append(code(text, size))
        sizes.append(size)
        expected.append(index % 3 == 0)
    problems = mask_problems(codes, sizes)
    assert [index in problems for index in range(600)] == expected
    assert problems == {
        index: problem
        for index, (one, size) in enumerate(zip(codes, sizes, strict=True))
        for problem in mask_problems([one], [size]).values()
    }


def test_short_polygons_are_taken_out_and_odd_ones_stay_to_be_refused() -> None:
    assert without_short_polygons([[0, 0, 1, 1], BOX, [], [1, 2, 3]]) == [BOX, [1, 2, 3]]
    assert without_short_polygons(code(COUNTS)) == code(COUNTS)
    assert without_short_polygons(None) is None


def test_polygons_drawn_in_their_box_are_those_of_the_whole_canvas() -> None:
    rng = np.random.default_rng(0)
    pixels = 0
    for attempt in range(100):
        height, width = rng.integers(5, 80, 2).tolist()
        polygons = [rng.uniform(-10, 90, 2) + rng.uniform(-30, 30, (rng.integers(3, 12), 2)) for _ in range(2)]
        if attempt % 2:  # places on the border of a fifth of a pixel
            polygons = [np.round(polygon, 1) for polygon in polygons]
        codes = coco_mask.frPyObjects([polygon.ravel() for polygon in polygons], height, width)
        whole = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
        canvas = np.zeros((height, width), bool)
        draw_polygons(polygons, canvas)
        np.testing.assert_array_equal(canvas, whole)
        pixels += int(whole.sum())
    assert pixels > 0


def test_a_polygon_beside_the_canvas_draws_nothing_and_none_erases() -> None:
    canvas = np.zeros(SIZE, bool)
    canvas[0, 0] = True
    for shift in (-20, 20):
        draw_polygons([np.asarray(BOX, float).reshape(-1, 2) + shift], canvas)
    assert canvas.sum() == 1
    draw_polygons([np.asarray(BOX, float).reshape(-1, 2)], canvas)
    np.testing.assert_array_equal(canvas, box_mask().astype(bool) | (np.indices(SIZE).sum(axis=0) == 0))
