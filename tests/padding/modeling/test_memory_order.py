# SPDX-License-Identifier: Apache-2.0
"""Channels-last order changes where numbers lie, not what they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.modeling.memory_order import build_ordered_backbone

MakeSample = Callable[..., dict[str, Any]]


@pytest.fixture
def ordered_cfg(tiny_cfg: CfgNode) -> CfgNode:
    cfg = tiny_cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.CHANNELS_LAST = True
    return cfg


def test_maps_keep_the_order_and_the_numbers(tiny_cfg: CfgNode, ordered_cfg: CfgNode) -> None:
    plain, ordered = build_ordered_backbone(tiny_cfg).eval(), build_ordered_backbone(ordered_cfg).eval()
    ordered.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, found = plain(images), ordered(images)
    assert found.keys() == expected.keys()
    for name, features in found.items():
        assert features.is_contiguous(memory_format=torch.channels_last), name
        torch.testing.assert_close(features, expected[name])


def test_gradients_are_equal(tiny_cfg: CfgNode, ordered_cfg: CfgNode) -> None:
    plain, ordered = (build_ordered_backbone(cfg).double() for cfg in (tiny_cfg, ordered_cfg))
    ordered.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for backbone in (plain, ordered):
        sum(features.square().mean() for features in backbone(images).values()).backward()
    assert ordered.stem.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for (name, found), expected in zip(ordered.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_a_model_in_that_order_trains(ordered_cfg: CfgNode, make_sample: MakeSample) -> None:
    model = build_model(ordered_cfg).train()
    losses = model([make_sample([0, 3, 2], image_id=1), make_sample([1], (40, 50), image_id=2)])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.backbone.stem.conv1.weight.is_contiguous(memory_format=torch.channels_last)
