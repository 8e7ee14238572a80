# SPDX-License-Identifier: Apache-2.0
"""Both formulations of deformable attention against a loop that reads one point at a time in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from padding.modeling import deformable_attention as module
from padding.modeling.deformable_attention import (
    DeformableAttention,
    deformable_attention,
    embedding_bag_attention,
    grid_sample_attention,
)

SHAPES = [(1, 2), (3, 5), (4, 3)]
FORMULATIONS = [embedding_bag_attention, grid_sample_attention]


def naive_attention(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Four-point bilinear reads, one query, head, level and point at a time; differentiable."""
    B, Q, A, L, P, _ = locations.shape
    result = []
    for b in range(B):
        for q in range(Q):
            for a in range(A):
                total = value.new_zeros(value.shape[3])
                start = 0
                for level in range(L):
                    height, width = spatial_shapes[level]
                    for p in range(P):
                        x = locations[b, q, a, level, p, 0] * width - 0.5
                        y = locations[b, q, a, level, p, 1] * height - 0.5
                        for row in (math.floor(y.item()), math.floor(y.item()) + 1):
                            for column in (math.floor(x.item()), math.floor(x.item()) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    token = value[b, start + row * width + column, a]
                                    total = total + weights[b, q, a, level, p] * share * token
                    start += height * width
                result.append(total)
    return torch.stack(result).view(B, Q, -1)


def draw(
    *,
    dtype: torch.dtype = torch.float64,
    B: int = 2,
    Q: int = 4,
    A: int = 2,
    D: int = 3,
    P: int = 2,
    spread: float = 1.6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (a good part of them off the map) and weights, all with gradients."""
    num_tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(B, num_tokens, A, D, dtype=dtype)
    locations = (torch.rand(B, Q, A, len(SHAPES), P, 2, dtype=dtype) - 0.5) * spread + 0.5
    weights = torch.rand(B, Q, A, len(SHAPES), P, dtype=dtype)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_values_and_gradients_equal_the_loop(formulation) -> None:
    inputs = draw()
    expected = naive_attention(inputs[0], SHAPES, *inputs[1:])
    probe = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), inputs)
    actual = formulation(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(torch.autograd.grad((actual * probe).sum(), inputs), expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradcheck(formulation) -> None:
    inputs = draw(B=1, Q=2, A=2, D=2, P=2)
    assert torch.autograd.gradcheck(lambda v, x, w: formulation(v, SHAPES, x, w), inputs)


def test_formulations_agree_in_float32() -> None:
    inputs = draw(dtype=torch.float32, Q=50, A=4, D=8, P=4)
    by_bag = embedding_bag_attention(inputs[0], SHAPES, *inputs[1:])
    by_grid = grid_sample_attention(inputs[0], SHAPES, *inputs[1:])
    probe = torch.randn_like(by_grid)
    found_gradients = torch.autograd.grad((by_bag * probe).sum(), inputs)
    wanted_gradients = torch.autograd.grad((by_grid * probe).sum(), inputs)
    pairs = zip((by_bag, *found_gradients), (by_grid, *wanted_gradients), strict=True)
    for found, wanted in pairs:
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("place", [-3.0, 4.0, -1e30, 1e30])
def test_points_off_the_map_read_zero_and_do_not_move(formulation, place: float) -> None:
    value, locations, weights = draw()
    locations = torch.full_like(locations, place, requires_grad=True)
    result = formulation(value, SHAPES, locations, weights)
    assert result.abs().max() == 0
    for gradient in torch.autograd.grad(result.sum(), (value, locations, weights)):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_point_on_a_pixel_centre_reads_that_pixel(formulation) -> None:
    value = torch.arange(6.0).view(1, 6, 1, 1)
    for token in range(6):
        centre = torch.tensor([(token % 3 + 0.5) / 3, (token // 3 + 0.5) / 2]).view(1, 1, 1, 1, 1, 2)
        result = formulation(value, [(2, 3)], centre, torch.ones(1, 1, 1, 1, 1))
        assert result.item() == pytest.approx(token, abs=1e-5)


def test_points_within_rounding_of_a_pixel_centre_fall_into_the_same_cell() -> None:
    width, num_points = 167, 5000
    value = (torch.arange(width) ** 2).float().view(1, width, 1, 1)  # every cell has its own slope
    centres = (torch.randint(1, width - 1, (num_points,)) + 0.5) / width
    x = centres + torch.randint(-3, 4, (num_points,)) * 6e-8
    locations = torch.stack((x, torch.full_like(x, 0.5)), dim=-1).view(1, num_points, 1, 1, 1, 2).requires_grad_()
    weights = torch.ones(1, num_points, 1, 1, 1)
    slopes = [
        torch.autograd.grad(formulation(value, [(1, width)], locations, weights).sum(), locations)[0][..., 0]
        for formulation in FORMULATIONS
    ]
    different = (slopes[0] - slopes[1]).abs() > 0.5 * width
    assert different.float().mean() <= 2e-3  # 0 where the processor fuses; 1e-2 if the product is formed directly


def test_a_point_in_the_corner_of_the_map_loses_what_lies_outside() -> None:
    value = torch.full((1, 4, 1, 1), 8.0)
    corner = torch.zeros(1, 1, 1, 1, 1, 2)  # three of the four neighbours are off the map
    assert embedding_bag_attention(value, [(2, 2)], corner, torch.ones(1, 1, 1, 1, 1)).item() == 2.0


def test_the_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(Q=5)

    def compute() -> list[Tensor]:
        result = embedding_bag_attention(inputs[0], SHAPES, *inputs[1:])
        return [result, *torch.autograd.grad(result.square().sum(), inputs)]

    whole = compute()
    monkeypatch.setattr(module, "_FORWARD_CHUNK", 3)
    monkeypatch.setattr(module, "_BACKWARD_CHUNK", 7)
    for found, wanted in zip(compute(), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_frozen_value_gets_no_gradient_and_the_others_keep_theirs() -> None:
    value, locations, weights = draw()
    both = torch.autograd.grad(embedding_bag_attention(value, SHAPES, locations, weights).sum(), (locations, weights))
    frozen = embedding_bag_attention(value.detach(), SHAPES, locations, weights).sum()
    torch.testing.assert_close(torch.autograd.grad(frozen, (locations, weights)), both)


def test_images_do_not_see_each_other() -> None:
    value, locations, weights = draw(B=3)
    together = embedding_bag_attention(value, SHAPES, locations, weights)
    for b in range(3):
        alone = embedding_bag_attention(value[b : b + 1], SHAPES, locations[b : b + 1], weights[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_location_that_is_not_finite_does_not_crash(poison: float) -> None:
    value, locations, weights = draw()
    with torch.no_grad():
        locations[0, 0, 0, 0, 0, 0] = poison
    result = embedding_bag_attention(value, SHAPES, locations, weights)
    result.sum().backward()
    assert torch.isnan(result[0, 0]).any() == math.isnan(poison)
    assert torch.isfinite(result[1]).all()


def test_the_device_chooses_the_formulation(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(module, "embedding_bag_attention", lambda *_: called.append("embedding_bag"))
    monkeypatch.setattr(module, "grid_sample_attention", lambda *_: called.append("grid_sample"))
    value, locations, weights = (tensor.detach() for tensor in draw())
    deformable_attention(value, SHAPES, locations, weights)
    deformable_attention(value.to("meta"), SHAPES, locations.to("meta"), weights.to("meta"))
    assert called == ["embedding_bag", "grid_sample"]


def test_wrong_arguments_are_explained() -> None:
    value, locations, weights = draw()
    with pytest.raises(ValueError, match="hold 17 tokens in 2 levels, but value has 29 tokens and locations 3"):
        deformable_attention(value, [(1, 2), (3, 5)], locations, weights)
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        DeformableAttention(10, num_heads=4, num_levels=1, num_points=1)


def test_the_module_has_the_published_parameters_and_start() -> None:
    layer = DeformableAttention(16, num_heads=8, num_levels=3, num_points=4)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (192, 16),
        "sampling_offsets.bias": (192,),
        "attention_weights.weight": (96, 16),
        "attention_weights.bias": (96,),
        "value_proj.weight": (16, 16),
        "value_proj.bias": (16,),
        "output_proj.weight": (16, 16),
        "output_proj.bias": (16,),
    }
    offsets = layer.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    compass = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    for level in range(3):
        for point in range(4):
            torch.testing.assert_close(offsets[:, level, point], compass * (point + 1), atol=1e-5, rtol=0)
    for parameter in (layer.sampling_offsets.weight, layer.attention_weights.weight, layer.attention_weights.bias):
        assert parameter.abs().max() == 0


def test_the_module_is_projection_sampling_projection() -> None:
    layer = DeformableAttention(8, num_heads=2, num_levels=3, num_points=2).double()
    nn.init.normal_(layer.sampling_offsets.weight)
    nn.init.normal_(layer.attention_weights.weight)
    num_tokens = sum(height * width for height, width in SHAPES)
    query, tokens = torch.randn(2, 5, 8).double(), torch.randn(2, num_tokens, 8).double()
    references = torch.rand(5, 2).double()
    locations = torch.empty(2, 5, 2, 3, 2, 2).double()
    offsets = layer.sampling_offsets(query).view(2, 5, 2, 3, 2, 2)
    for level, (height, width) in enumerate(SHAPES):
        locations[:, :, :, level, :, 0] = references[:, None, None, 0] + offsets[:, :, :, level, :, 0] / width
        locations[:, :, :, level, :, 1] = references[:, None, None, 1] + offsets[:, :, :, level, :, 1] / height
    weights = layer.attention_weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 3, 2)
    expected = naive_attention(layer.value_proj(tokens).view(2, -1, 2, 4), SHAPES, locations, weights)
    torch.testing.assert_close(layer(query, references, tokens, SHAPES), layer.output_proj(expected))


@pytest.mark.gpu
def test_formulations_agree_across_devices() -> None:
    inputs = draw(dtype=torch.float32, Q=50, A=4, D=8, P=4)
    on_cpu = deformable_attention(inputs[0], SHAPES, *inputs[1:])
    on_gpu = deformable_attention(inputs[0].cuda(), SHAPES, *(tensor.cuda() for tensor in inputs[1:]))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)
