# SPDX-License-Identifier: Apache-2.0
"""Tests of the aggregation modules: the formula, what is sampled or pooled, observations, the two rivals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from psi import add_psi_config
from psi.aggregation import (
    AggregationOptions,
    PatternPropagation,
    SemanticFlowAggregation,
    UpsampleAggregation,
    build_aggregation,
    warp,
)
from psi.pattern_propagation import BACKENDS, propagate_patterns

SHAPES = {
    "res2": ShapeSpec(channels=3, stride=4),
    "res3": ShapeSpec(channels=4, stride=8),
    "res4": ShapeSpec(channels=5, stride=16),
    "res5": ShapeSpec(channels=6, stride=16),
}
PIXELS = (70, 101)


def draw(pixels: tuple[int, int] = PIXELS, images: int = 2) -> dict[str, Tensor]:
    """Backbone features, and one that nobody asked for."""
    maps = {
        name: torch.randn(images, shape.channels, -(-pixels[0] // shape.stride), -(-pixels[1] // shape.stride))
        for name, shape in SHAPES.items()
    }
    return {"stem": torch.zeros(1), **{name: value.requires_grad_() for name, value in maps.items()}}


def options(**changes) -> AggregationOptions:
    return AggregationOptions(**{"channels": 8, **changes})


def build(name: str = "cpp", **changes) -> nn.Module:
    module = build_aggregation(name, SHAPES, options(**changes))
    assert module is not None
    return module


def observed(module: nn.Module, *inputs: Any) -> dict[str, float]:
    """What one pass notes for the log."""
    with EventStorage() as storage:
        module(*inputs)
    return {name: value for name, (value, _) in storage.latest().items()}


def psi_node() -> CfgNode:
    cfg = get_cfg()
    add_psi_config(cfg)
    return cfg.MODEL.PSI


def test_defaults_of_config_and_options_are_the_same() -> None:
    node = psi_node()
    assert AggregationOptions.from_node(node.CPP) == AggregationOptions()
    assert isinstance(build_aggregation(node.AGGREGATION, SHAPES, options()), PatternPropagation)
    assert build_aggregation("none", SHAPES, options()) is None


@pytest.mark.parametrize("name", ["cpp", "up", "sf"])
@pytest.mark.parametrize("destination", SHAPES)
def test_result_lies_on_the_destination_and_everything_is_trained(name: str, destination: str) -> None:
    module = build(name, destination=destination, scale="learned")
    for alignment in getattr(module, "alignments", {}).values():
        nn.init.normal_(alignment.flow.weight)  # the first step from 0 trains only it
    features = draw()
    result = module(features)
    assert result.shape == (2, module.out_channels, *features[destination].shape[2:])
    (result * torch.randn(result.shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    # A bias before a batch norm changes nothing.
    silent = {name for name, parameter in module.named_parameters() if not parameter.grad.abs().max() > 1e-5}
    assert silent <= {f"transforms.{level}.bias" for level in SHAPES}
    assert all(features[level].grad.abs().max() > 0 for level in SHAPES)


def test_formula() -> None:
    module = build(norm="").eval()
    for transform in module.transforms.values():
        nn.init.normal_(transform.bias)
    features = draw()
    projected = module.laterals(features)
    query = projected["res5"] * 8**-0.5
    weighted = 0
    for name, values in projected.items():
        # W_l applied to every neighbor before the weighting, the bias once per level.
        transformed = [F.conv2d(maps, module.transforms[name].weight) for maps in projected.values()]
        aggregates = propagate_patterns(query, list(projected.values()), transformed, module.graph).aggregates
        weighted = weighted + aggregates[list(projected).index(name)] + module.transforms[name].bias[:, None, None]
        assert values.min() == 0
    torch.testing.assert_close(module(features), weighted.relu())


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_end_does_not_matter(backend: str) -> None:
    auto, module = (
        build(destination="res3", radii=(3, 2, 1, 2)),
        build(destination="res3", radii=(3, 2, 1, 2), backend=backend),
    )
    module.load_state_dict(auto.state_dict())
    features = draw()
    torch.testing.assert_close(module(features), auto(features), rtol=1e-5, atol=1e-5)
    assert observed(module, features) == pytest.approx(observed(auto, features), rel=1e-5, abs=1e-5)


def test_cells_that_nobody_sees_are_not_projected() -> None:
    module = build()
    features = draw()
    before = module(features)
    assert sum(len(window.offsets) for window in module.graph.windows) == 52
    seen = torch.ones(features["res2"].shape[2:], dtype=torch.bool)
    seen[::4, ::4] = False
    with torch.no_grad():
        features["res2"][:, :, seen] = 1e3  # neither values nor batch statistics know it
    torch.testing.assert_close(module(features), before)
    assert module.laterals(features)["res2"].shape[2:] == features["res5"].shape[2:]
    # Sampling and then projecting is projecting and then sampling, once the statistics are fixed.
    module.eval()
    whole = module.laterals["res2"](features["res2"])
    torch.testing.assert_close(module.laterals(features)["res2"], whole[:, :, ::4, ::4])
    # A window of more than one cell needs them all.
    wide = build(radii=(2, 1, 1, 4))
    assert wide.laterals(features)["res2"].shape[2:] == features["res2"].shape[2:]


def test_pooling_averages_what_lies_in_a_destination_cell() -> None:
    module = build(lateral_pool=True).eval()
    features = draw()
    projected = module.laterals(features)["res2"]
    lateral = module.laterals["res2"]
    corner = features["res2"][:, :, 16:, 24:]  # 18 x 26 cells: the last window holds 2 x 2
    assert corner.shape[2:] == (2, 2)
    torch.testing.assert_close(projected[:, :, -1:, -1:], lateral(corner.mean(dim=(2, 3), keepdim=True)))
    first = features["res2"][:, :, :4, :4].mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(projected[:, :, :1, :1], lateral(first))
    assert module(features).shape == (2, 8, 5, 7)


def test_padding_of_a_batch_changes_nothing() -> None:
    module = build(radii=(2, 1, 3, 4)).eval()
    features = draw()
    alone = module(features)
    padded = {}
    for name, shape in SHAPES.items():
        maps = features[name]
        more = (0, -(-160 // shape.stride) - maps.shape[3], 0, -(-96 // shape.stride) - maps.shape[2])
        padded[name] = F.pad(maps, more, value=7.0)
    valid = torch.zeros(2, 96, 160, dtype=torch.bool)
    valid[:, : PIXELS[0], : PIXELS[1]] = True
    torch.testing.assert_close(module(padded, valid)[:, :, :5, :7], alone)
    assert not torch.allclose(module(padded)[:, :, :5, :7], alone)


def test_observations_are_of_training_and_leave_padding_out() -> None:
    module = build()
    features = draw()
    assert observed(module.eval(), features) == {}
    whole = observed(module.train(), features)
    assert set(whole) == {"psi/self_weight", "psi/entropy"}
    assert 0 < whole["psi/self_weight"] < 1
    assert observed(module, features, torch.ones(2, *PIXELS, dtype=torch.bool)) == pytest.approx(whole, rel=1e-5)
    assert observed(module, features, torch.zeros(2, *PIXELS, dtype=torch.bool))["psi/entropy"] == 0


def test_literal_logits_see_only_the_node_itself() -> None:
    """The reason for the defaults (A3): without scale the softmax is one-hot at the start, with it it is not."""
    shapes = {name: ShapeSpec(channels=256, stride=16) for name in SHAPES}
    features = {name: torch.randn(1, 256, 12, 12) for name in shapes}
    weights = {}
    for scale in ("none", "sqrt_dim", "dim"):
        torch.manual_seed(0)
        module = PatternPropagation(shapes, AggregationOptions(scale=scale))
        weights[scale] = observed(module, features)["psi/self_weight"]
    assert weights["none"] > 0.99
    assert 0.3 < weights["sqrt_dim"] < 0.99
    assert weights["dim"] < 0.06


def test_learned_scale_starts_at_the_default() -> None:
    learned, fixed = build(scale="learned"), build()
    fixed.load_state_dict(learned.state_dict(), strict=False)
    features = draw()
    torch.testing.assert_close(learned(features), fixed(features))
    with torch.no_grad():
        learned.log_scale.fill_(1.0)
    assert not torch.allclose(learned(features), fixed(features))


@pytest.mark.parametrize("similarity", ["inner", "cosine", "euclidean"])
def test_similarities_train_in_mixed_precision(similarity: str) -> None:
    module = build(similarity=similarity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(draw())
    result.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("changes", "negative"),
    [({"norm": "", "activation": False}, True), ({"norm": "GN", "channels": 32}, False), ({"lateral_norm": ""}, False)],
)
def test_norms_and_activations(changes: dict, negative: bool) -> None:
    for name in ("cpp", "up", "sf"):
        assert (build(name, **changes)(draw()).min() < 0) == negative
    unbounded = build(lateral_activation=False).laterals(draw())
    assert all(maps.min() < 0 for maps in unbounded.values())


def test_wrong_choices_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.PSI\.AGGREGATION is 'fpn'; expected one of none, cpp, up, sf"):
        build("fpn")
    with pytest.raises(ValueError, match=r"CPP\.DESTINATION is 'res6'.*\(res2, res3, res4, res5\)"):
        build("up", destination="res6")
    with pytest.raises(ValueError, match=r"CPP\.SCALE is 'half'; expected one of sqrt_dim"):
        build(scale="half")
    with pytest.raises(ValueError, match=r"CPP\.BACKEND is 'flash'; expected one of auto, dense"):
        build(backend="flash")
    with pytest.raises(ValueError, match=r"CPP\.SIMILARITY is 'dot'; expected one of inner"):
        build(similarity="dot")
    with pytest.raises(ValueError, match=r"CPP\.RADII names 3 radii for 4 levels"):
        build(radii=(1, 1, 4))


@pytest.mark.parametrize(("destination", "size"), [("res3", (8, 12)), ("res5", (4, 6))])
def test_upsampling_adds_resized_levels(destination: str, size: tuple[int, int]) -> None:
    module = build("up", destination=destination, norm="", activation=False).eval()
    assert isinstance(module, UpsampleAggregation)
    features = draw((64, 96))
    maps = module.laterals(features)
    resized = [
        F.avg_pool2d(value, value.shape[2] // size[0])  # every cell counts
        if value.shape[2] > size[0]
        else F.interpolate(value, size=size, mode="bilinear", align_corners=False)
        for value in maps.values()
    ]
    torch.testing.assert_close(module(features), module.fuse(sum(resized)))


def test_flow_starts_as_bilinear_resizing() -> None:
    module = build("sf", destination="res2").eval()
    assert isinstance(module, SemanticFlowAggregation)
    assert module.order == ["res5", "res4", "res3", "res2"]
    features = draw()
    maps = module.laterals(features)
    joined = maps["res5"] + maps["res4"]
    for name in ("res3", "res2"):
        joined = maps[name] + F.interpolate(joined, size=maps[name].shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(features), module.fuse(joined), rtol=1e-4, atol=1e-4)
    assert observed(module.train(), features)["psi/flow"] == 0


def test_a_flow_of_two_is_one_cell() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 2.0
    torch.testing.assert_close(warp(maps, flow)[0, 0], maps[0, 0][:, [1, 2, 3, 3]])
    flow[:, 0], flow[:, 1] = 0.0, -1.0
    torch.testing.assert_close(warp(maps, flow)[0, 0, 1], maps[0, 0, :2].mean(dim=0))
    assert warp(maps.half(), flow.half()).dtype == torch.float16


def test_flow_moves_with_what_it_is_trained_for() -> None:
    """A map shifted by two cells is found by the flow alone."""
    torch.manual_seed(0)
    fine = torch.zeros(1, 4, 12, 12)
    fine[:, :, 4:8, 4:8] = 1.0
    module = build("sf")
    alignment = module.alignments["res4"]
    alignment = type(alignment)(4)
    coarse = fine.roll(2, dims=3)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.05)
    errors = []
    for _ in range(60):
        error = (warp(coarse, alignment(fine, coarse)) - fine).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]
