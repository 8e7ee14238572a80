# SPDX-License-Identifier: Apache-2.0
"""Tests of the way from pixels to cells and back."""

import itertools

import pytest
import torch
from torch import Tensor

from psi.grid import cells_to_pixels, labels_to_grid, supervision_at_pixels, supervision_on_grid, valid_cells
from psi.label_diffusion import DiffusionOptions, ThresholdNetwork, diffuse
from psi.supervision import Supervision

VOID = 255
K = 4


def slow_grid(labels: Tensor, stride: int) -> Tensor:
    """Label shared by the labeled pixels of each cell, pixel by pixel."""
    images, height, width = labels.shape
    grid = torch.full((images, -(-height // stride), -(-width // stride)), VOID)
    for image, row, column in itertools.product(*map(range, grid.shape)):
        cell = labels[image, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        found = {value for value in cell.flatten().tolist() if 0 <= value < K}
        if len(found) == 1:
            grid[image, row, column] = found.pop()
    return grid


def random_scribbles(size: tuple[int, int], share: float = 0.04) -> Tensor:
    labels = torch.randint(0, K, (2, *size))
    return labels.masked_fill(torch.rand(2, *size) > share, VOID)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (3, 5)])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_cells_take_the_label_their_pixels_share(size: tuple[int, int], stride: int) -> None:
    labels = random_scribbles(size, 0.1)
    labels[0, 0, 0] = 254
    expected = slow_grid(labels, stride)
    assert torch.equal(labels_to_grid(labels, num_classes=K, stride=stride), expected)


def test_a_line_thinner_than_a_cell_does_not_vanish() -> None:
    labels = torch.full((1, 16, 16), VOID)
    labels[0, 6, :] = 2
    assert labels_to_grid(labels, num_classes=K, stride=4)[0, 1].tolist() == [2, 2, 2, 2]


def test_a_cell_is_valid_if_a_pixel_is() -> None:
    valid = torch.zeros(1, 9, 12, dtype=torch.bool)
    valid[0, :5, :7] = True
    assert valid_cells(valid, stride=4)[0].tolist() == [[True, True, False], [True, True, False], [False] * 3]


def test_pixels_take_the_value_of_their_cell() -> None:
    cells = torch.arange(6).view(1, 2, 3)
    pixels = cells_to_pixels(cells, size=(7, 11), stride=4)
    for row, column in itertools.product(range(7), range(11)):
        assert pixels[0, row, column] == cells[0, row // 4, column // 4]


def grown(scribbles: Tensor, valid: Tensor, **options: object) -> tuple[Supervision, Tensor]:
    """Labels after two steps on random scores."""
    start, cells = supervision_on_grid(scribbles, valid, num_classes=K, stride=4)
    scores = (3 * torch.randn(2, K, *cells.shape[-2:])).softmax(dim=1)
    settings = DiffusionOptions(radii=(2, 3), **options)  # type: ignore[arg-type]
    return diffuse(scores, start, cells, threshold_net=ThresholdNetwork(), options=settings)[-1].supervision, cells


def test_scribbles_stay_on_top_and_padding_empty() -> None:
    scribbles = random_scribbles((18, 29))
    valid = torch.ones(2, 18, 29, dtype=torch.bool)
    valid[0, 13:], valid[1, :, 22:] = False, False
    supervision, _ = grown(scribbles, valid)
    pixels = supervision_at_pixels(supervision, scribbles, valid, stride=4, num_classes=K)
    drawn = (scribbles != VOID) & valid
    assert torch.equal(pixels.scribbles, drawn)
    assert torch.equal(pixels.labels[drawn], scribbles[drawn])
    assert (pixels.weights[drawn] == 1).all()
    assert (pixels.labels[~valid] == VOID).all()
    assert not pixels.weights[~valid].any()
    # elsewhere the cell decides
    rest = valid & ~drawn
    assert torch.equal(pixels.labels[rest], cells_to_pixels(supervision.labels, size=(18, 29), stride=4)[rest])
    assert ((pixels.weights > 0) == (pixels.labels != VOID)).all()
    assert (rest & (pixels.labels != VOID)).any()


def test_soft_targets_keep_the_classes_of_each_pixel() -> None:
    scribbles = random_scribbles((16, 20))
    valid = torch.ones(2, 16, 20, dtype=torch.bool)
    valid[0, 11:] = False
    supervision, _ = grown(scribbles, valid, target="soft", gate_argmax=False)
    pixels = supervision_at_pixels(supervision, scribbles, valid, stride=4, num_classes=K, soft=True)
    assert pixels.targets is not None
    assert pixels.classes is not None
    rest = valid & (scribbles == VOID)
    expected = cells_to_pixels(supervision.targets, size=(16, 20), stride=4)
    assert torch.equal(pixels.targets, expected * rest[:, None])
    torch.testing.assert_close(pixels.targets.amax(dim=1)[rest], pixels.weights[rest])


def test_stored_labels_return_to_the_same_grid() -> None:
    """What a round stored at pixels is what the next one starts from, except for cells of two scribbles."""
    scribbles = random_scribbles((18, 29))
    valid = torch.ones(2, 18, 29, dtype=torch.bool)
    valid[1, 10:] = False
    supervision, cells = grown(scribbles, valid)
    pixels = supervision_at_pixels(supervision, scribbles, valid, stride=4, num_classes=K)
    again, cells_again = supervision_on_grid(scribbles, valid, num_classes=K, stride=4, stored=pixels)
    visible = scribbles.masked_fill(~valid, VOID)
    contested = valid_cells(visible != VOID, stride=4) & (labels_to_grid(visible, num_classes=K, stride=4) == VOID)
    assert contested.any()
    assert torch.equal(cells, cells_again)
    assert torch.equal(again.scribbles, supervision.scribbles)
    assert torch.equal(again.labels, supervision.labels.masked_fill(contested, VOID))
    assert torch.equal(again.weights, supervision.weights.masked_fill(contested, 0))
