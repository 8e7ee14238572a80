# SPDX-License-Identifier: Apache-2.0
"""Simulated scribbles: never on another class, decided by the seed alone, as much ink as asked for."""

from pathlib import Path

import numpy as np
import pytest

from padding.data.readers import read_label_map
from padding.data.scribbles.curves import STYLES
from padding.data.scribbles.polylines import draw_scribbles
from padding.data.scribbles.simulator import SimulatorConfig, simulate_scribbles
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.render import render_image

NUM_CLASSES = 17
SMALL = {"width": 1, "min_area": 30, "erosion": (1.0, 5.0)}


def shapes_labels(index: int) -> np.ndarray:
    """Coarse labels of one generated image."""
    return render_image(ShapesConfig(num_train=8, num_val=1), "train", index).coarse


def raster(labels: np.ndarray, *, key: str = "a", num_classes: int = NUM_CLASSES, **settings) -> np.ndarray:
    config = SimulatorConfig(**settings)
    scribbles = simulate_scribbles(labels, config, key=key, num_classes=num_classes)
    return draw_scribbles(scribbles, labels.shape, width=config.width)


def assert_no_violation(labels: np.ndarray, drawn: np.ndarray) -> None:
    assert (drawn[drawn != 255] == labels[drawn != 255]).all()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("width", [1, 3, 5])
def test_no_pixel_on_another_class_of_shapes(style: str, width: int) -> None:
    for index in range(3):
        labels = shapes_labels(index)
        drawn = raster(labels, style=style, width=width, min_area=20, erosion=(0.0, 4.0))
        assert_no_violation(labels, drawn)
        assert (drawn != 255).any()


@pytest.mark.parametrize("style", STYLES)
def test_no_pixel_on_another_class_or_void_of_camvid(style: str, real_data: Path) -> None:
    files = sorted((real_data / "camvid" / "labels" / "train").glob("*.png"))[::120]
    assert files
    for file in files:
        labels = read_label_map(file)
        drawn = raster(labels, style=style, num_classes=11, min_area=40)
        assert_no_violation(labels, drawn)
        assert 0.01 < (drawn != 255).mean() < 0.1
        assert not (drawn[labels == 11] != 255).any()


@pytest.mark.parametrize("style", STYLES)
def test_seed_and_name_decide_alone(style: str) -> None:
    labels = shapes_labels(0)
    first = raster(labels, style=style, **SMALL)
    np.random.seed(7)  # noqa: NPY002  (the global state must not matter)
    np.testing.assert_array_equal(raster(labels, style=style, **SMALL), first)
    if style != "skeleton":
        assert not np.array_equal(raster(labels, style=style, seed=1, **SMALL), first)
        assert not np.array_equal(raster(labels, style=style, key="b", **SMALL), first)


def test_every_large_part_has_a_scribble() -> None:
    for index in range(6):
        labels = shapes_labels(index)
        drawn = raster(labels, **SMALL)
        for label in np.unique(labels):
            if (labels == label).sum() >= 60:
                assert (drawn == label).any()


def test_less_length_takes_ink_away_and_moves_nothing() -> None:
    for style in STYLES:
        labels = shapes_labels(1)
        inks = []
        larger = np.ones(labels.shape, bool)
        for share in (1.0, 0.7, 0.5, 0.3, 0.1, 0.0):
            drawn = raster(labels, style=style, length=share, width=3, min_area=30, erosion=(1.0, 5.0)) != 255
            assert not (drawn & ~larger).any()
            larger = drawn
            inks.append(int(drawn.sum()))
        assert inks == sorted(inks, reverse=True)
        assert inks[-1] < inks[0] / 2


def test_length_zero_is_one_dot_for_each_scribble() -> None:
    labels = shapes_labels(2)
    scribbles = simulate_scribbles(labels, SimulatorConfig(length=0.0, **SMALL), key="a", num_classes=NUM_CLASSES)
    assert all(len(scribble.points) == 1 for scribble in scribbles)


def test_drop_leaves_out_parts_and_keeps_the_others_where_they_were() -> None:
    total, left = 0, 0
    for index in range(6):
        labels = shapes_labels(index)
        every, some = (
            simulate_scribbles(labels, SimulatorConfig(drop=drop, **SMALL), key=str(index), num_classes=NUM_CLASSES)
            for drop in (0.0, 0.5)
        )
        drawn = {s.points.tobytes() for s in every}
        assert {s.points.tobytes() for s in some} <= drawn
        total += len(every)
        left += len(some)
    assert 0.25 * total < left < 0.75 * total
    nothing = simulate_scribbles(labels, SimulatorConfig(drop=1.0, **SMALL), key="a", num_classes=NUM_CLASSES)
    assert not nothing


def test_thin_objects_get_a_thinner_line() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[5:55, 30:32] = 1
    config = SimulatorConfig(width=5, min_area=50)
    scribbles = simulate_scribbles(labels, config, key="a", num_classes=2)
    assert [s.width for s in scribbles if s.label == 1] == [2]
    drawn = draw_scribbles(scribbles, labels.shape, width=5)
    assert_no_violation(labels, drawn)
    assert (drawn == 1).sum() > 60


def test_thick_parts_keep_away_from_their_border() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[20:80, 20:80] = 1
    for background, least in ((None, 8), (1, 12)):
        config = SimulatorConfig(erosion=(2.0, 10.0), background_erosion=1.5, style="line", second_share=1.0)
        scribbles = simulate_scribbles(labels, config, key="a", num_classes=2, background=background)
        (points,) = (s.points for s in scribbles if s.label == 1)
        assert np.minimum(points - 20, 79 - points).min() >= least


def test_large_parts_get_two_scribbles() -> None:
    labels = np.zeros((100, 100), np.uint8)
    counts = [
        len(simulate_scribbles(labels, SimulatorConfig(second_share=share), key="a", num_classes=1))
        for share in (0.5, 1.0)
    ]
    assert counts == [2, 2]
    labels[:20] = 9  # void
    one = simulate_scribbles(labels, SimulatorConfig(second_share=1.0), key="a", num_classes=1)
    assert len(one) == 1


def test_small_parts_and_void_have_none() -> None:
    labels = np.full((40, 40), 255, np.uint8)
    labels[5:10, 5:10] = 0
    assert not simulate_scribbles(labels, SimulatorConfig(min_area=26), key="a", num_classes=3)
    scribbles = simulate_scribbles(labels, SimulatorConfig(min_area=25), key="a", num_classes=3)
    assert [s.label for s in scribbles] == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "spiral"}, "the style is 'spiral'; expected one of skeleton, line, polynomial, random_walk"),
        ({"length": 1.5}, "length is 1.5; expected a share"),
        ({"drop": -0.1}, "drop is -0.1; expected a share"),
        ({"width": 0}, "expected seed >= 0, width >= 1 and min_area >= 1"),
        ({"erosion": (-1.0, 2.0)}, "expected none below 0"),
        ({"erosion_share": (0.2, 0.1)}, "erosion_share is .* expected a smaller and a larger share"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatorConfig(**settings)


def test_settings_as_json_hold_every_field() -> None:
    values = SimulatorConfig().as_json()
    assert set(values) == {"version", *SimulatorConfig.__dataclass_fields__}
    assert values["erosion"] == [2.0, 20.0]
