# SPDX-License-Identifier: Apache-2.0
"""Masks of boxes against a pixel-by-pixel reference, their areas, and what is mixed with what."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from tcc.config import add_tcc_config
from tcc.cutmix import CutMix, Mixing, box_mask, build_cutmix


def slow_mask(draws: list[list[float]], height: int, width: int, area: tuple[float, float]) -> np.ndarray:
    """Each pixel counts the boxes that cover it; an odd number means the second image."""
    covered = np.zeros((height, width), dtype=int)
    for p, u, top, left in draws:
        share = area[0] + (area[1] - area[0]) * p
        tall = share**u
        wide = share / tall
        h = round(tall * np.sqrt(1 / len(draws)) * height)
        w = round(wide * np.sqrt(1 / len(draws)) * width)
        y, x = round((height - h) * top), round((width - w) * left)
        for row in range(y, y + h):  # a box outside would be an IndexError
            for column in range(x, x + w):
                covered[row, column] += 1
    return covered % 2 == 1


@pytest.mark.parametrize("num_boxes", [1, 3, 5])
@pytest.mark.parametrize("area", [(0.25, 0.5), (1.0, 1.0), (0.01, 0.02)])
def test_masks_are_those_of_the_slow_form(num_boxes: int, area: tuple[float, float]) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        found = box_mask((33, 50), num_boxes=num_boxes, area=area)
        torch.manual_seed(seed)
        draws = [torch.rand(4).tolist() for _ in range(num_boxes)]
        assert np.array_equal(found.numpy(), slow_mask(draws, 33, 50, area))


def test_one_box_covers_the_share_that_was_drawn() -> None:
    areas = []
    for _ in range(1000):
        mask = box_mask((96, 128), num_boxes=1)
        rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
        assert mask.sum() == rows * columns  # one box, wholly inside
        areas.append(mask.float().mean().item())
    assert 0.24 < min(areas) < 0.26
    assert 0.49 < max(areas) < 0.51
    assert np.mean(areas) == pytest.approx(0.375, abs=0.01)  # of U(0.25, 0.5)
    assert np.var(areas) == pytest.approx(0.25**2 / 12, rel=0.15)


def test_areas_of_three_boxes_are_distributed_as_those_of_the_reference() -> None:
    """Less than 0.375 on the average, since overlaps go back to the first image."""
    draws = np.random.default_rng(0).random((400, 3, 4)).tolist()
    expected = np.array([slow_mask(draw, 32, 32, (0.25, 0.5)).mean() for draw in draws])
    found = np.array([box_mask((32, 32)).float().mean().item() for _ in range(2000)])
    assert found.mean() == pytest.approx(expected.mean(), abs=0.012)  # 3 standard errors
    assert found.std() == pytest.approx(expected.std(), rel=0.15)
    assert 0.2 < found.mean() < 0.36


def test_boxes_lie_anywhere() -> None:
    mean = torch.stack([box_mask((24, 24)).float() for _ in range(3000)]).mean(dim=0)
    for mirrored in (mean.flip(0), mean.flip(1), mean.T):
        assert (mean - mirrored).abs().max() < 0.06
    assert mean[12, 12] > mean[0, 0]


def test_a_second_equal_box_takes_the_first_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda size: torch.full((size,), 0.5))
    assert box_mask((40, 40), num_boxes=1).any()
    assert not box_mask((40, 40), num_boxes=2).any()


def batch(size: int = 3) -> dict[str, torch.Tensor]:
    """Everything says of which image it is, and the rows and columns it came from."""
    number = torch.arange(size).view(-1, 1, 1)
    place = torch.arange(48).view(1, 6, 8)
    images = (number * 50 + place)[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    logits = torch.randn(size, 4, 6, 8)
    return {"images": images, "logits": logits, "labels": logits.argmax(dim=1), "valid": (number + place) % 3 > 0}


def slow_mix(mask: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    mixed = own.clone()
    for image, y, x in mask.nonzero().tolist():
        mixed[image, ..., y, x] = other[image, ..., y, x]
    return mixed


def test_images_scores_and_valid_pixels_are_mixed_by_one_mask_with_the_next_image() -> None:
    parts = batch()
    mixing = CutMix().draw(3, (6, 8), device="cpu")
    assert mixing.mask.flatten(1).any(dim=1).all()
    assert not torch.equal(mixing.mask[0], mixing.mask[1])
    for part in parts.values():
        expected = slow_mix(mixing.mask, part, part[[1, 2, 0]])
        found = mixing(part, part)
        assert found.dtype == part.dtype
        assert torch.equal(found, expected)
    mixed = mixing(parts["logits"], parts["logits"])
    assert torch.equal(mixed.argmax(dim=1), mixing(parts["labels"], parts["labels"]))
    origin = mixing(parts["images"], parts["images"])[:, 0].long() // 50
    for image in range(3):
        assert set(origin[image][mixing.mask[image]].tolist()) == {(image + 1) % 3}
        assert set(origin[image][~mixing.mask[image]].tolist()) == {image}


def test_partners_of_a_second_stream_and_of_the_image_itself() -> None:
    own, other = batch()["logits"], torch.randn(3, 4, 6, 8)
    mask = torch.rand(3, 6, 8) < 0.5
    assert torch.equal(Mixing(mask, "second_stream")(own, other), slow_mix(mask, own, other))
    assert torch.equal(Mixing(mask, "self")(own, own), slow_mix(mask, own, own.flip(-1)))
    one = CutMix(partner="self").draw(1, (6, 8), device="cpu")  # needs no second image
    assert one.mask.shape == (1, 6, 8)


def test_gradients_go_where_the_pixels_came_from() -> None:
    own, other = (torch.zeros(1, 2, 6, 8, requires_grad=True) for _ in range(2))
    mask = torch.rand(1, 6, 8) < 0.5
    gradients = torch.autograd.grad(Mixing(mask, "second_stream")(own, other).sum(), (own, other))
    assert torch.equal(gradients[0][:, 0] == 1, ~mask)
    assert torch.equal(gradients[1][:, 0] == 1, mask)


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_probability_of_mixing_is_per_image(prob: float) -> None:
    mask = CutMix(prob=prob).draw(1000, (16, 16), device="cpu").mask
    assert mask.flatten(1).any(dim=1).float().mean().item() == pytest.approx(prob, abs=0.05)


def test_an_image_is_never_its_own_next_one() -> None:
    with pytest.raises(ValueError, match=r"'roll' takes the next .* 'second_stream'"):
        CutMix().draw(1, (6, 8), device="cpu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"partner": "shuffle"}, "PARTNER is 'shuffle'"),
        ({"prob": 1.5}, "PROB 1.5"),
        ({"num_boxes": 0}, "NUM_BOXES 0"),
        ({"area": (0.5, 0.25)}, "AREA"),
        ({"area": (0.0, 0.5)}, "AREA"),
        ({"area": (0.5, 1.5)}, "AREA"),
    ],
)
def test_values_without_sense_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CutMix(**changes)


def test_keys() -> None:
    cfg = get_cfg()
    add_tcc_config(cfg)
    assert build_cutmix(cfg) is None
    node = cfg.MODEL.TCC.CUTMIX
    node.ENABLED = True
    assert build_cutmix(cfg) == CutMix()
    node.PROB, node.NUM_BOXES, node.AREA, node.PARTNER = 0.5, 1, (0.02, 0.4), "second_stream"
    assert build_cutmix(cfg) == CutMix(prob=0.5, num_boxes=1, area=(0.02, 0.4), partner="second_stream")
