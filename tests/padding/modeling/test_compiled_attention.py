# SPDX-License-Identifier: Apache-2.0
"""The compiled operator: chosen on CUDA alone, its calling convention, the fallback; equality where it is installed."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from padding.errors import ConfigError
from padding.modeling.compiled_attention import compiled_attention, compiled_operator
from padding.modeling.deformable_attention import (
    DeformableAttention,
    deformable_attention,
    embedding_bag_attention,
    grid_sample_attention,
)

SHAPES = [(4, 6), (2, 3)]


def inputs(batch: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, 2, 8, generator=generator)
    locations = torch.rand(batch, tokens, 2, 2, 4, 2, generator=generator)
    weights = torch.rand(batch, tokens, 2, 2, 4, generator=generator)
    return tuple(x.to(device).requires_grad_() for x in (value, locations, weights))


class _Operator(ModuleType):
    """Stands in for the extension: its two functions, by the formulation in PyTorch."""

    def __init__(self) -> None:
        super().__init__("MultiScaleDeformableAttention")
        self.steps: list[int] = []

    def ms_deform_attn_forward(self, value: Tensor, shapes: Tensor, starts: Tensor, *rest: Any) -> Tensor:
        locations, weights, step = rest
        assert starts.tolist() == [0, 24]
        assert len(value) % step == 0
        self.steps.append(step)
        return grid_sample_attention(value, [tuple(size) for size in shapes.tolist()], locations, weights)

    def ms_deform_attn_backward(
        self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, step: int
    ) -> tuple[Tensor, ...]:
        assert grad.is_contiguous()
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        with torch.enable_grad():
            result = self.ms_deform_attn_forward(leaves[0], shapes, starts, leaves[1], leaves[2], step)
            return torch.autograd.grad(result, leaves, grad)


@pytest.mark.parametrize(("batch", "step"), [(2, 2), (3, 1), (96, 32)])
def test_calling_convention_of_the_extension(batch: int, step: int) -> None:
    operator, tensors = _Operator(), inputs(batch)
    value, locations, weights = tensors
    got = compiled_attention(operator, value, SHAPES, locations, weights)
    expected = grid_sample_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(got, expected)
    probe = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, tensors, probe), torch.autograd.grad(expected, tensors, probe), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert set(operator.steps) == {step}


def test_formulations_of_the_key_agree_and_compiled_is_for_cuda_alone() -> None:
    value, locations, weights = inputs()
    expected = deformable_attention(value, SHAPES, locations, weights)
    for formulation in ("grid_sample", "embedding_bag", "compiled"):
        torch.testing.assert_close(deformable_attention(value, SHAPES, locations, weights, formulation), expected)
    assert torch.equal(expected, embedding_bag_attention(value, SHAPES, locations, weights))
    found = deformable_attention(value, SHAPES, locations, weights, "grid_sample")
    assert torch.equal(found, grid_sample_attention(value, SHAPES, locations, weights))
    with pytest.raises(ConfigError, match="DEFORMABLE_ATTENTION is 'cuda'"):
        DeformableAttention(16, num_heads=2, num_levels=2, num_points=4, formulation="cuda")


def test_missing_extension_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled_operator.cache_clear()
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", None)
    assert compiled_operator() is None
    assert compiled_operator() is None
    assert caplog.text.count("cannot be imported") == 1
    operator = _Operator()
    compiled_operator.cache_clear()
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", operator)
    assert compiled_operator() is operator
    compiled_operator.cache_clear()


@pytest.mark.gpu
def test_extension_equals_pytorch() -> None:
    pytest.importorskip("MultiScaleDeformableAttention")
    value, locations, weights = inputs(device="cuda")
    got = deformable_attention(value, SHAPES, locations, weights, "compiled")
    expected = deformable_attention(value, SHAPES, locations, weights, "grid_sample")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    probe = torch.randn_like(got)
    for a, b in zip(
        *(torch.autograd.grad(result, (value, locations, weights), probe) for result in (got, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
