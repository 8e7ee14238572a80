# SPDX-License-Identifier: Apache-2.0
"""Deformable attention by the compiled operator of Deformable DETR and Mask2Former, where a user has built it.

The extension is the module ``MultiScaleDeformableAttention`` that those projects build and install; it runs on CUDA
alone. ``MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION compiled`` asks for it; without it the formulation in PyTorch is used,
which gives the same numbers.
"""

import functools
import importlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MODULE = "MultiScaleDeformableAttention"
_IMAGES_AT_ONCE = 64  # that the operator handles in one call; must divide the batch


@functools.cache
def compiled_operator() -> Any:
    """The extension, None if it cannot be imported; the log says so, once."""
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION is 'compiled', but %s cannot be imported (%s): attention is "
            "computed by PyTorch. The module is built by ops/make.sh of Mask2Former or Deformable DETR",
            _MODULE,
            error,
        )
        return None


def compiled_attention(
    operator: Any, value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Arguments and result as in ``padding.modeling.deformable_attention.deformable_attention``, all on CUDA.

    Args:
        operator: from ``compiled_operator``.
        value: (B, N, A, D) float.
        spatial_shapes: (H, W) of each level.
        locations: (B, Q, A, L, P, 2) float.
        weights: (B, Q, A, L, P) float.
    """
    shapes = torch.tensor(spatial_shapes, dtype=torch.int64, device=value.device)
    sizes = shapes.prod(dim=1)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    step = math.gcd(len(value), _IMAGES_AT_ONCE)
    contiguous = (value.contiguous(), shapes, starts, locations.contiguous(), weights.contiguous())
    return _CompiledAttention.apply(operator, step, *contiguous)


class _CompiledAttention(torch.autograd.Function):
    """The extension's two functions as one; gradients of value, locations and weights, once."""

    @staticmethod
    def forward(ctx: Any, operator: Any, step: int, *tensors: Tensor) -> Tensor:
        ctx.operator, ctx.step = operator, step
        ctx.save_for_backward(*tensors)
        return operator.ms_deform_attn_forward(*tensors, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.operator.ms_deform_attn_backward(
            *ctx.saved_tensors, grad.contiguous(), ctx.step
        )
        return None, None, value, None, None, locations, weights
