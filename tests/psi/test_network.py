# SPDX-License-Identifier: Apache-2.0
"""PSI's network: every aggregation and decoder at any size of image, its size, what padding may change."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from padding.engine.commands import load_config
from padding.modeling.deeplab import DeepLabOptions
from psi.aggregation import AggregationOptions, build_aggregation
from psi.network import SegmentationHead, SegmentationNetwork, build_network
from tests.tiny_psi import tiny_psi_cfg

NODE = "MODEL.PSI."
RESNET_101 = {
    "res2": ShapeSpec(channels=256, stride=4),
    "res3": ShapeSpec(channels=512, stride=8),
    "res4": ShapeSpec(channels=1024, stride=16),
    "res5": ShapeSpec(channels=2048, stride=16),
}
K = 5


def build(*opts: Any) -> SegmentationNetwork:
    return build_network(tiny_psi_cfg(*opts), K)


def num_parameters(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


DECODERS = [("aspp", False), ("aspp", True), ("res5", False), ("res5", True)]


@pytest.mark.parametrize("size", [(71, 125), (64, 96), (33, 50)])
@pytest.mark.parametrize(
    ("aggregation", "high_level", "pre_reduce"),
    [("none", "aspp", False), *((name, *decoder) for name in ("cpp", "up", "sf") for decoder in DECODERS)],
)
def test_logits_at_a_quarter_of_any_size(
    aggregation: str, high_level: str, pre_reduce: bool, size: tuple[int, int]
) -> None:
    decoder = (NODE + "DECODER.HIGH_LEVEL", high_level, NODE + "DECODER.PRE_REDUCE", pre_reduce)
    network = build(NODE + "AGGREGATION", aggregation, *decoder).train()
    valid = torch.ones(2, *size, dtype=torch.bool)
    logits = network(torch.randn(2, 3, *size), valid)
    assert logits.shape == (2, K, -(-size[0] // 4), -(-size[1] // 4))
    (logits * torch.randn_like(logits)).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.no_grad():
        assert torch.isfinite(network.eval()(torch.randn(1, 3, *size))).all()


@pytest.mark.parametrize("destination", ["res2", "res3", "res4", "res5"])
@pytest.mark.parametrize("aggregation", ["cpp", "up", "sf"])
def test_every_destination_fits_the_decoder(aggregation: str, destination: str) -> None:
    options = (NODE + "AGGREGATION", aggregation, NODE + "CPP.DESTINATION", destination)
    network = build(*options, NODE + "DECODER.HIGH_LEVEL", "res5", NODE + "DECODER.PRE_REDUCE", True)
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 71, 50)).shape == (1, K, 18, 13)


def test_network_equals_its_definition() -> None:
    network = build().eval()
    head, images = network.head, torch.randn(1, 3, 64, 96)
    valid = torch.ones(1, 64, 96, dtype=torch.bool)
    valid[:, 48:] = False
    features = network.backbone(images)
    low = head.decoder.project(features["res2"])
    assert head.aspp is not None
    assert head.aggregation is not None
    parts = [head.aspp(features["res5"]), head.aggregation(features, valid)]
    resized = [F.interpolate(x, size=(16, 24), mode="bilinear", align_corners=False) for x in parts]
    expected = head.decoder.predictor(head.decoder.fuse(torch.cat([low, *resized], dim=1)))
    assert torch.equal(network(images, valid), expected)
    assert not torch.equal(network(images), expected)


def test_lateral_map_can_be_the_high_level() -> None:
    head = build(NODE + "DECODER.HIGH_LEVEL", "res5").eval().head
    assert head.aspp is None
    assert head.aggregation is not None
    features = {
        name: torch.randn(1, channels, size, size)
        for name, channels, size in (("res2", 8, 16), ("res3", 8, 8), ("res4", 16, 4), ("res5", 16, 4))
    }
    projected = head.aggregation.laterals(features)
    patterns = head.aggregation.aggregate(projected)
    expected, _ = head.decoder(features["res2"], projected["res5"], [patterns])
    assert torch.equal(head(features), expected)


def test_padding_is_nobody_s_neighbor() -> None:
    """What lies in the padding changes no pattern in the image."""
    network = build().eval()
    aggregation = network.head.aggregation
    assert aggregation is not None
    features = network.backbone(torch.randn(1, 3, 64, 128))
    valid = torch.ones(1, 64, 128, dtype=torch.bool)
    valid[..., 64:] = False
    other = {}
    for name, maps in features.items():
        other[name] = maps.clone()
        other[name][..., maps.shape[-1] // 2 :] += 5.0
    first, second = aggregation(features, valid), aggregation(other, valid)
    assert torch.equal(first[..., :4], second[..., :4])
    assert not torch.equal(aggregation(features)[..., :4], aggregation(other)[..., :4])


def paper_head(*, aggregation: str = "cpp", pre_reduce: bool = False, high_level: str = "aspp") -> SegmentationHead:
    """The head on ResNet-101 with the default sizes and 21 classes; parameters have no values."""
    with torch.device("meta"):
        return SegmentationHead(
            RESNET_101,
            num_classes=21,
            options=DeepLabOptions(),
            aggregation=build_aggregation(aggregation, RESNET_101, AggregationOptions()),
            high_level=high_level,
            pre_reduce=pre_reduce,
        )


def test_decoder_of_560_channels_and_what_pre_reduction_saves() -> None:
    """48 low-level, 256 pyramid and 256 pattern channels; 304 without the last, or joined with the second."""
    plain = paper_head(aggregation="none")
    joined, reduced, lateral = paper_head(), paper_head(pre_reduce=True), paper_head(high_level="res5")
    assert [head.decoder.fuse[0].in_channels for head in (plain, joined, reduced, lateral)] == [304, 560, 304, 560]
    assert num_parameters(joined.decoder) - num_parameters(plain.decoder) == 256 * 256 * 9
    assert num_parameters(reduced.decoder) == num_parameters(plain.decoder)
    assert num_parameters(reduced.reduce) == 512 * 256 + 2 * 256  # the convolution and its batch norm


def test_size_of_the_aggregation() -> None:
    """Four laterals and four transforms of 256 channels: the paper's C is not given, this is ours."""
    laterals = (256 + 512 + 1024 + 2048) * 256 + 4 * 2 * 256
    transforms = 4 * (256 * 256 + 256) + 2 * 256
    assert num_parameters(paper_head().aggregation) == laterals + transforms


@pytest.fixture(scope="module")
def paper_cfg() -> CfgNode:
    base = Path(__file__).parents[2] / "configs" / "_base_" / "psi_r101.yaml"
    return load_config(base, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"])


def test_resnet_101_has_output_stride_16(paper_cfg: CfgNode) -> None:
    """What its maps say of themselves and what they are, on sizes that nothing divides."""
    with torch.device("meta"):
        backbone = build_backbone(paper_cfg)
        maps: dict[str, Tensor] = backbone(torch.zeros(2, 3, 281, 500))
    shapes = {name: backbone.output_shape()[name] for name in paper_cfg.MODEL.PSI.IN_FEATURES}
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 16]
    assert [shape.channels for shape in shapes.values()] == [256, 512, 1024, 2048]
    for name, shape in shapes.items():
        size = (-(-281 // shape.stride), -(-500 // shape.stride))
        assert maps[name].shape == (2, shape.channels, *size)
    assert num_parameters(backbone) == 42_500_160  # ResNet-101 without its classifier


def test_observations_are_those_of_the_aggregation() -> None:
    expected = {"none": set(), "up": set(), "sf": {"flow"}, "cpp": {"self_weight", "entropy"}}
    for name, keys in expected.items():
        network = build(NODE + "AGGREGATION", name).train()
        with EventStorage() as storage:
            network(torch.randn(2, 3, 64, 64))
        assert set(storage.latest()) == {f"psi/{key}" for key in keys}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("AGGREGATION", "cp"), "AGGREGATION is 'cp'; expected one of none, cpp, up, sf"),
        (("DECODER.HIGH_LEVEL", "res4"), "HIGH_LEVEL is 'res4'; expected one of aspp, res5"),
        (("AGGREGATION", "none", "DECODER.HIGH_LEVEL", "res5"), "concern the aggregation"),
        (("AGGREGATION", "none", "DECODER.PRE_REDUCE", True), "concern the aggregation"),
        (("CPP.DESTINATION", "res6"), "DESTINATION is 'res6', which is none of"),
        (("CPP.RADII", (1, 1, 4)), "radii"),
        (("IN_FEATURES", ["res2", "res6"]), "build_small_resnet_backbone gives res2, res3, res4, res5"),
        (("IN_FEATURES", ["res5"]), r"IN_FEATURES is \['res5'\]"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_choices_that_do_not_exist_are_named(opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*(NODE + word if i % 2 == 0 else word for i, word in enumerate(opts)))
