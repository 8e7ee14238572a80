# SPDX-License-Identifier: Apache-2.0
"""Tests of the sampled points: against Detectron2's PointRend, and independence of the rest of the batch."""

import pytest
import torch

from padding.modeling.point_sampling import MaskReader, draw_points, image_generators, sample_at, uncertain_points


@pytest.mark.reference
def test_reading_equals_point_rend() -> None:
    from detectron2.projects.point_rend.point_features import point_sample

    maps, points = torch.randn(3, 2, 7, 9), torch.rand(3, 50, 2)
    torch.testing.assert_close(sample_at(maps, points), point_sample(maps, points, align_corners=False))


@pytest.mark.reference
def test_uncertain_points_equal_point_rend_for_the_same_draws() -> None:
    from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness

    logits = torch.randn(4, 12, 10)
    torch.manual_seed(3)
    expected = get_uncertain_point_coords_with_randomness(logits[:, None], lambda x: -x.abs(), 40, 3.0, 0.75)
    torch.manual_seed(3)
    points = uncertain_points(logits, [4], num_points=40, oversample_ratio=3.0, importance_sample_ratio=0.75)
    # The same points of each row; their order is of no meaning.
    torch.testing.assert_close(*(by_x(rows) for rows in (points, expected)))


def by_x(points: torch.Tensor) -> torch.Tensor:
    order = points[..., 0].argsort(dim=1)
    return points.gather(1, order.unsqueeze(2).expand_as(points))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 48)])
def test_masks_are_read_as_float_maps_are(size: tuple[int, int]) -> None:
    masks = torch.rand(6, *size) > 0.5
    points = torch.rand(9, 200, 2)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])  # corners: half outside
    reader, rows = MaskReader(masks), torch.tensor([5, 0, 0, 3, 1, 2, 4, 4, 5])
    own = sample_at(masks[rows].float().unsqueeze(1), points).squeeze(1)
    torch.testing.assert_close(reader.at(points, rows), own, rtol=0, atol=1e-5)
    common = sample_at(masks[None].float(), points[:1])[0]
    torch.testing.assert_close(reader.at(points[:1]), common, rtol=0, atol=1e-5)


def test_no_masks_give_no_values() -> None:
    reader = MaskReader(torch.zeros(0, 8, 8, dtype=torch.bool))
    assert reader.at(torch.rand(1, 5, 2)).shape == (0, 5)
    assert reader.at(torch.rand(0, 5, 2), torch.zeros(0, dtype=torch.int64)).shape == (0, 5)


def test_a_pixel_centre_reads_the_pixel() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    centres = torch.tensor([[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1.0 / 4, 0.5 / 3]]])
    torch.testing.assert_close(sample_at(maps, centres)[0, 0], torch.tensor([0.0, 11.0, 0.5]))


def test_uncertain_points_gather_at_the_border() -> None:
    logits = torch.linspace(-8, 8, 32).expand(1, 32, 32)  # changes sign in the middle of x
    points = uncertain_points(logits, [1], num_points=200, oversample_ratio=4.0, importance_sample_ratio=1.0)
    assert (points[..., 0] - 0.5).abs().max() < 0.2
    assert points[..., 1].min() < 0.1
    assert points[..., 1].max() > 0.9


def test_points_of_an_image_do_not_depend_on_its_batch() -> None:
    together = draw_points([2, 3], 5, device=torch.device("cpu"), generators=image_generators([11, 12]))
    alone = draw_points([3], 5, device=torch.device("cpu"), generators=image_generators([12]))
    torch.testing.assert_close(together[2:], alone)
    assert not torch.equal(together[:2], alone[:2])


def test_one_generator_serves_all_images() -> None:
    one = draw_points([2, 3], 5, device=torch.device("cpu"), generators=torch.Generator().manual_seed(1))
    assert one.shape == (5, 5, 2)
    assert len(one.unique(dim=0)) == 5


def test_no_rows_give_no_points() -> None:
    points = uncertain_points(
        torch.zeros(0, 4, 4), [0, 0], num_points=6, oversample_ratio=3.0, importance_sample_ratio=0.5
    )
    assert points.shape == (0, 6, 2)
    assert image_generators(None) is None
