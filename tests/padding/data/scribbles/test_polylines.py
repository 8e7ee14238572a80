# SPDX-License-Identifier: Apache-2.0
"""Tags, ScribbleSup's XML and the raster of scribbles."""

import numpy as np
import pytest

from padding.data.class_split import ClassSplit
from padding.data.scribbles.polylines import (
    AnnotatedImage,
    Scribble,
    draw_scribbles,
    line_mask,
    parse_scribble_xml,
    scaled_to,
    scribble_xml,
)
from padding.data.scribbles.tags import ScribbleTags

SPLIT = ClassSplit(("background", "pottedplant", "tv monitor"), (False, True, True), (0, 1, 2))
TAGS = ScribbleTags.of(SPLIT, {"pottedplant": "plant", "tv monitor": "monitor"})
HEIGHT, WIDTH = 20, 30

FIXTURE = """<annotation>
  <filename>made_up.jpg</filename>
  <size><width>30</width><height>20</height><depth>3</depth></size>
  <polygon><tag>Potted Plant</tag><point><X>4</X><Y>5</Y></point><point><X>10</X><Y>5</Y></point></polygon>
  <polygon><tag>background</tag><point><X>10</X><Y>5</Y></point><point><X>10</X><Y>15</Y></point></polygon>
  <polygon><tag>MONITOR</tag><point><X>30</X><Y>10</Y></point></polygon>
  <polygon><tag>plant</tag></polygon>
</annotation>"""


def brute_force_mask(points: np.ndarray, width: int) -> np.ndarray:
    """Every pixel within the disc of a pixel of the thin line, looked at one by one."""
    thin = np.argwhere(line_mask(points, (HEIGHT, WIDTH), 1))
    shift = 0.0 if width % 2 else 0.5  # a disc of even width has its centre between two pixels
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            offsets = np.array([y, x]) - thin - shift
            mask[y, x] = ((offsets**2).sum(axis=1) <= (width / 2) ** 2).any() if len(thin) else False
    return mask


def test_fixture_is_read_and_drawn() -> None:
    image = parse_scribble_xml(FIXTURE, TAGS, where="made_up.xml")
    assert image.size == (HEIGHT, WIDTH)
    assert [s.label for s in image.scribbles] == [1, 0, 2], "the polygon without a point labels nothing"
    raster = draw_scribbles(image.scribbles, image.size, width=3)
    assert raster.dtype == np.uint8
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[4:7, 3:12] = 1
    expected[4:17, 9:12] = 0  # drawn later
    expected[9:12, 28:30] = 2  # a dot at X = width, moved to the border and cut off there
    np.testing.assert_array_equal(raster, expected)


def test_first_label_is_drawn_below_the_others() -> None:
    image = parse_scribble_xml(FIXTURE, TAGS, where="")
    raster = draw_scribbles(image.scribbles, (HEIGHT, WIDTH), width=1, first_label=0)
    assert raster[5, 10] == 1
    assert draw_scribbles(image.scribbles, (HEIGHT, WIDTH), width=1)[5, 10] == 0


def test_xml_round_trip() -> None:
    rng = np.random.default_rng(1)
    scribbles = tuple(
        Scribble(int(label), np.round(rng.uniform(0, 20, (length, 2))), width)
        for label, length, width in ((0, 5, 0), (2, 1, 1), (1, 9, 5))
    )
    image = AnnotatedImage(scribbles, (HEIGHT, WIDTH))
    back = parse_scribble_xml(scribble_xml(image, TAGS, image_name="a.jpg"), TAGS, where="a.xml")
    assert back.size == image.size
    for one, other in zip(image.scribbles, back.scribbles, strict=True):
        assert (one.label, one.width) == (other.label, other.width)
        np.testing.assert_array_equal(one.points, other.points)
    for width in (1, 3):
        np.testing.assert_array_equal(
            draw_scribbles(back.scribbles, back.size, width=width),
            draw_scribbles(image.scribbles, image.size, width=width),
        )


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7])
def test_raster_is_the_thin_line_thickened_by_a_disc(width: int) -> None:
    rng = np.random.default_rng(width)
    for length in (1, 2, 6):
        points = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (length, 2))
        np.testing.assert_array_equal(
            line_mask(points, (HEIGHT, WIDTH), width), brute_force_mask(np.rint(points), width)
        )


@pytest.mark.parametrize(("width", "pixels"), [(1, 1), (3, 9), (5, 21)])
def test_single_point_is_a_disc(width: int, pixels: int) -> None:
    mask = line_mask(np.array([[12.0, 9.0]]), (HEIGHT, WIDTH), width)
    assert mask.sum() == pixels
    assert np.argwhere(mask).mean(axis=0).tolist() == [9, 12]


def test_a_part_of_the_points_gives_a_part_of_the_pixels() -> None:
    points = np.random.default_rng(3).uniform(0, 20, (12, 2))
    whole = line_mask(points, (HEIGHT, WIDTH), 3)
    for first, last in ((0, 12), (2, 9), (5, 6)):
        assert not (line_mask(points[first:last], (HEIGHT, WIDTH), 3) & ~whole).any()


def test_points_beyond_the_image_move_to_its_border() -> None:
    beyond = np.array([[-5.0, -5.0], [100.0, -3.0]])
    clamped = np.array([[0.0, 0.0], [WIDTH - 1.0, 0.0]])
    np.testing.assert_array_equal(
        line_mask(beyond, (HEIGHT, WIDTH), 3), line_mask(clamped, (HEIGHT, WIDTH), 3), strict=True
    )


def test_unknown_tag_lists_the_choices() -> None:
    content = FIXTURE.replace("MONITOR", "moniter")
    with pytest.raises(
        ValueError, match=r"x\.xml: unknown tag 'moniter' \(nearest: 'monitor'\).*background, plant, monitor"
    ):
        parse_scribble_xml(content, TAGS, where="x.xml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<X>4</X>", "<X>four</X>", r"x\.xml: <X> of <point> should be a number, it is 'four'"),
        ("<X>4</X>", "", r"x\.xml: <X> of <point> should be a number, it is None"),
        ("<X>4</X>", "<X>nan</X>", r"x\.xml: <X> of <point> should be a number"),
        ("<tag>MONITOR</tag>", "", r"x\.xml: a polygon has no tag"),
        ("<height>20</height>", "", r"x\.xml: <height> of <size> should be a number"),
        ("</annotation>", "", r"x\.xml: not well-formed XML"),
        ("annotation", "svg", r"x\.xml: the root element is 'svg'"),
        ("<height>20</height>", "<height>0</height>", r"x\.xml: <height> of <size> should be 1 to 1048576, it is 0"),
        ("<height>20</height>", "<height>20.5</height>", r"x\.xml: <height> of <size> should be 1 to 1048576"),
        ("<height>20</height>", "<height>1e300</height>", r"x\.xml: <height> of <size> should be 1 to 1048576"),
        ("<polygon>", "<polygon><width>1000000000</width>", r"x\.xml: <width> of <polygon> should be 1 to 200"),
        ("<polygon>", "<polygon><width>-3</width>", r"x\.xml: <width> of <polygon> should be 1 to 200, it is -3"),
        ("<annotation", "<?xml version='1.0' encoding='no-such'?><annotation", r"x\.xml: not well-formed XML"),
    ],
)
def test_broken_files_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_scribble_xml(FIXTURE.replace(old, new).encode(), TAGS, where="x.xml")


def test_file_without_a_size() -> None:
    start, end = FIXTURE.index("<size>"), FIXTURE.index("</size>") + len("</size>")
    image = parse_scribble_xml(FIXTURE[:start] + FIXTURE[end:], TAGS, where="")
    assert image.size is None
    assert scaled_to(image, (7, 8)).size == (7, 8)


def test_scaling_keeps_pixel_centres() -> None:
    image = AnnotatedImage((Scribble(0, np.array([[0.0, 0.0], [9.0, 9.0]])),), (10, 10))
    points = scaled_to(image, (20, 30)).scribbles[0].points
    np.testing.assert_allclose(points, [[1.0, 0.5], [28.0, 18.5]])
