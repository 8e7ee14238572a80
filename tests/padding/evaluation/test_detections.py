# SPDX-License-Identifier: Apache-2.0
"""Codes are pycocotools' character by character; detections come back from little memory as they went in."""

import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from padding.evaluation.detections import ImageDetections, class_groups, encode_masks, with_boxes


def official(masks: torch.Tensor) -> list[bytes]:
    return [mask_api.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"] for mask in masks]


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_codes_equal_pycocotools(density: float) -> None:
    generator = torch.Generator().manual_seed(int(density * 100))
    for height, width in ((1, 1), (1, 9), (9, 1), (7, 5), (40, 61)):
        masks = torch.rand(20, height, width, generator=generator) < density
        assert encode_masks(masks) == official(masks)
        assert encode_masks(masks.float()) == official(masks)


def test_codes_of_blobs_anywhere_equal_pycocotools() -> None:
    """Long empty stretches before and after take one to four characters."""
    rng = np.random.default_rng(0)
    masks = torch.zeros(60, 300, 400, dtype=torch.bool)
    for mask in masks:
        (top, bottom), (left, right) = np.sort(rng.integers(0, 301, 2)), np.sort(rng.integers(0, 401, 2))
        mask[top:bottom, left:right] = torch.from_numpy(rng.random((bottom - top, right - left)) < 0.9)
    assert encode_masks(masks) == official(masks)


def test_no_masks_have_no_codes() -> None:
    assert encode_masks(torch.zeros(0, 4, 5)) == []


def detections(image_id: int, classes: list[int], size: tuple[int, int] = (30, 40)) -> ImageDetections:
    generator = torch.Generator().manual_seed(image_id)
    masks = torch.rand(len(classes), *size, generator=generator) < 0.2
    scores = torch.rand(len(classes), generator=generator)
    return ImageDetections.of(image_id, torch.tensor(classes, dtype=torch.int64), scores, masks)


def test_entries_are_those_of_the_wanted_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(3, 30, 40, generator=generator) < 0.2
    scores = torch.tensor([0.25, 0.1, 0.7])
    found = ImageDetections.of("name", torch.tensor([5, 2, 5]), scores, masks)
    for one in (found, pickle.loads(pickle.dumps(found))):
        entries = list(one.entries(lambda class_id: 100 + class_id, frozenset({5})))
        assert [entry["score"] for entry in entries] == [scores[0].item(), scores[2].item()]
        assert {(entry["image_id"], entry["category_id"]) for entry in entries} == {("name", 105)}
        codes = [entry["segmentation"]["counts"].encode() for entry in entries]
        assert codes == official(masks[[0, 2]])
    boxes = [entry["bbox"] for entry in with_boxes(entries)]
    assert boxes == [mask_api.toBbox(mask_api.encode(np.asfortranarray(m.byte().numpy()))).tolist() for m in masks[::2]]


def test_a_hundred_detections_take_little_memory() -> None:
    rows, columns = torch.arange(480)[:, None], torch.arange(640)
    places = torch.rand(100, 2) * torch.tensor([480, 640])
    discs = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 < 60**2 for y, x in places])
    found = ImageDetections.of(1, torch.arange(100), torch.rand(100), discs)
    assert len(pickle.dumps(found)) < 35_000


def test_groups_hold_each_class_once_and_no_more_than_the_limit() -> None:
    images = [detections(i, classes) for i, classes in enumerate(([0, 0, 1, 3], [3, 3, 3, 3], [7, 1]))]
    groups = list(class_groups(images, [0, 1, 2, 3, 7], limit=4))
    assert [sorted(group) for group in groups] == [[0, 1, 2], [3], [7]]
    assert list(class_groups(images, [0, 1, 2, 3, 7], limit=100)) == [frozenset({0, 1, 2, 3, 7})]
    assert list(class_groups([], [0, 4], limit=1)) == [frozenset({0, 4})]
