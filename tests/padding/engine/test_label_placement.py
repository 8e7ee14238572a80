# SPDX-License-Identifier: Apache-2.0
"""Class names lie inside the picture and never on each other."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer

from padding.engine.label_placement import Box, place_label, spread_labels

SIZE = (128, 96)


def overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def is_inside(box: Box, size: tuple[int, int]) -> bool:
    return box.left >= 0 and box.top >= 0 and box.right <= size[0] and box.bottom <= size[1]


def random_boxes(seed: int, count: int) -> list[Box]:
    draw = np.random.default_rng(seed)
    corners, sides = draw.integers(-30, 120, (count, 2)), draw.integers(1, (60, 16), (count, 2))
    return [Box(*map(int, (x, y, x + w, y + h))) for (x, y), (w, h) in zip(corners, sides, strict=True)]


def placed(wanted: list[Box]) -> list[Box | None]:
    found: list[Box | None] = []
    for box in wanted:
        found.append(place_label(box, [other for other in found if other], SIZE))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_boxes_lie_inside_and_apart(seed: int) -> None:
    wanted = random_boxes(seed, 40)
    found = placed(wanted)
    assert found == placed(wanted)
    kept = [box for box in found if box]
    assert len(kept) > 10
    assert all(is_inside(box, SIZE) for box in kept)
    assert not any(overlap(a, b) for a, b in itertools.combinations(kept, 2))
    for box, was in zip(found, wanted, strict=True):
        assert box is None or (box.right - box.left, box.bottom - box.top) == (
            was.right - was.left,
            was.bottom - was.top,
        )
    if is_inside(wanted[0], SIZE):
        assert found[0] == wanted[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_position_is_the_nearest_free_one(seed: int) -> None:
    """Against a search of every pixel."""
    *taken, wanted = random_boxes(seed, 9)
    width, height = wanted.right - wanted.left, wanted.bottom - wanted.top
    start = np.clip(wanted[:2], 0, (SIZE[0] - width, SIZE[1] - height))
    every = (Box(x, y, x + width, y + height) for y in range(SIZE[1] - height + 1) for x in range(SIZE[0] - width + 1))
    free = [box for box in every if not any(overlap(box, other) for other in taken)]
    least = min(np.hypot(*np.subtract(box[:2], start)) for box in free)
    found = place_label(wanted, taken, SIZE)
    assert found in free
    assert np.hypot(*np.subtract(found[:2], start)) == least
    assert place_label(wanted, taken, SIZE, reach=least) == found
    assert least == 0 or place_label(wanted, taken, SIZE, reach=least - 0.01) is None


def test_no_place_is_none() -> None:
    assert place_label(Box(0, 0, 129, 5), [], SIZE) is None
    assert place_label(Box(3, 3, 9, 9), [Box(-5, -5, 200, 200)], SIZE) is None


NAMES = ["magenta triangle", "dotted star", "teal hatch*"]
IDS = np.full((128, 128), 1, np.int32)
IDS[50:80, 0:14] = 2  # a name centred on it leaves the picture on the left
IDS[55:75, 112:128] = 3
IDS[52:66, 52:80] = 4  # these names lie on each other and on that of the background
IDS[66:78, 52:80] = 5
INFO = [
    {"id": 1, "category_id": 2, "isthing": False},
    *({"id": i, "category_id": i % 2, "isthing": True} for i in (2, 3, 4, 5)),
]


def drawn(kind: str) -> tuple[Visualizer, int]:
    """A picture before its names are moved, and how many find a place."""
    metadata = Metadata(name="names", thing_classes=NAMES, stuff_classes=NAMES)
    canvas = Visualizer(np.full((128, 128, 3), 90, np.uint8), metadata=metadata)
    masks = torch.stack([torch.from_numpy(i == IDS) for i in (2, 3, 4, 5)])
    if kind == "panoptic":
        canvas.draw_panoptic_seg(torch.from_numpy(IDS), INFO)
        return canvas, 4  # five names crowd in the middle; one would have to go too far
    if kind == "semantic":
        canvas.draw_sem_seg(torch.from_numpy(IDS) % 3)
        return canvas, 3
    boxes = Boxes(torch.tensor([[0, 50, 14, 80], [112, 55, 128, 75], [52, 52, 80, 66], [52, 66, 80, 78]]).float())
    fields = {"pred_masks": masks, "scores": torch.full((4,), 0.9), "pred_classes": torch.arange(4) % 2}
    fields |= {"pred_boxes": boxes} if kind == "boxes" else {}
    canvas.draw_instance_predictions(Instances((128, 128), **fields))
    return canvas, 4


def extents(canvas: Visualizer) -> list[Box]:
    """Boxes of the visible names and their backgrounds, as matplotlib draws them; rows count from the bottom."""
    canvas.output.get_image()
    texts = [text for text in canvas.output.ax.texts if text.get_visible()]
    return [Box(*np.round(text.get_bbox_patch().get_window_extent().extents, 3)) for text in texts]


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instances", "boxes"])
def test_drawn_names_lie_inside_and_apart(kind: str) -> None:
    canvas, count = drawn(kind)
    before = extents(canvas)
    crossing = not all(is_inside(box, (128, 128)) for box in before)
    assert crossing or any(overlap(a, b) for a, b in itertools.combinations(before, 2))
    spread_labels(canvas.output)
    boxes = extents(canvas)
    assert len(boxes) == count
    assert all(is_inside(box, (128, 128)) for box in boxes)
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    assert canvas.output.get_image().shape == (128, 128, 3)


@pytest.mark.parametrize("large_is_thing", [True, False])
def test_the_larger_segment_keeps_its_place(large_is_thing: bool) -> None:
    """Things are drawn last, as polygons; stuff around something else has a hole and is drawn as an image."""
    ids = np.full((128, 128), 2, np.int32)
    ids[56:72, 40:88] = 1
    metadata = Metadata(name="two", thing_classes=NAMES, stuff_classes=NAMES)
    canvas = Visualizer(np.full((128, 128, 3), 90, np.uint8), metadata=metadata)
    infos = [{"id": i, "category_id": i, "isthing": (i == 2) == large_is_thing} for i in (1, 2)]
    canvas.draw_panoptic_seg(torch.from_numpy(ids), infos)
    small, large = sorted(canvas.output.ax.texts, key=lambda text: text.get_text() == NAMES[2])
    before = small.get_position(), large.get_position()
    assert overlap(*extents(canvas))
    spread_labels(canvas.output)
    assert large.get_position() == before[1]
    assert small.get_position() != before[0]
    assert not overlap(*extents(canvas))


def test_a_picture_without_names_stays() -> None:
    canvas = Visualizer(np.full((8, 8, 3), 90, np.uint8), metadata=Metadata(name="none"))
    np.testing.assert_array_equal(spread_labels(canvas.output).get_image(), np.full((8, 8, 3), 90))
