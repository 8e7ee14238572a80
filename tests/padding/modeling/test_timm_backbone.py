# SPDX-License-Identifier: Apache-2.0
"""timm's networks behind Detectron2's interface: the same numbers as timm's, strides, dilation, nothing unused."""

import re

import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from timm.layers import DropPath
from torch import nn

from padding.errors import ConfigError
from padding.modeling.config import add_mask2former_config
from padding.modeling.timm_backbone import TimmBackbone

STAGES = ["res2", "res3", "res4", "res5"]
SMALL = "convnext_atto"  # 40, 80, 160, 320 channels


def timm_cfg(*options: object) -> CfgNode:
    cfg = get_cfg()
    add_mask2former_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.merge_from_list(["MODEL.TIMM.NAME", SMALL, *options])
    return cfg


def shapes_of(backbone: TimmBackbone) -> dict[str, tuple[int, int]]:
    return {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}


def test_convnext_gives_timms_maps_after_a_norm_of_each() -> None:
    backbone = TimmBackbone(SMALL).eval()
    plain = timm.create_model(SMALL, features_only=True).eval()
    plain.load_state_dict(backbone.network.state_dict())
    for norm in backbone.output_norms.values():  # so that they do more than standardise
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = backbone(images), plain(images)
    assert list(maps) == STAGES
    for name, features in zip(STAGES, expected, strict=True):
        norm = backbone.output_norms[name]
        deviation = features.var(dim=1, keepdim=True, unbiased=False).add(1e-6).sqrt()
        scaled = (features - features.mean(dim=1, keepdim=True)) / deviation
        scaled = scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(maps[name], scaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [(SMALL, [40, 80, 160, 320]), ("densenet121", [256, 512, 1024, 1024])])
@pytest.mark.parametrize(("output_stride", "strides"), [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])])
def test_output_stride_changes_the_strides_that_it_announces(
    name: str, channels: list[int], output_stride: int, strides: list[int]
) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name, output_stride=output_stride).eval()
        maps = backbone(torch.empty(1, 3, 64, 96))
    assert list(shapes_of(backbone).values()) == list(zip(channels, strides, strict=True))
    assert [tuple(f.shape) for f in maps.values()] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]


def test_dilated_densenet_equals_the_strided_one_at_its_cells() -> None:
    """Dilation 2 without pooling sees, at every second cell, what the convolution saw after taking every second one."""
    dense = TimmBackbone("densenet121", output_stride=16).eval()
    block = dense.network["features_denseblock4"]
    plain = timm.create_model("densenet121", features_only=True)["features_denseblock4"].eval()
    plain.load_state_dict(block.state_dict())
    features = torch.randn(1, 512, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(features)[..., ::2, ::2], plain(features[..., ::2, ::2]), rtol=1e-4, atol=1e-4)
    assert isinstance(dense.network["features_transition3"].pool, nn.Identity)
    assert isinstance(dense.network["features_transition2"].pool, nn.AvgPool2d)


def test_densenet_taps_end_in_norm_and_relu() -> None:
    backbone = TimmBackbone("densenet121", output_stride=16).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert all((features >= 0).all() and (features > 0).any() for features in maps.values())
    # Origin: the specification of SalSeg, taps of DenseNet-121.
    assert shapes_of(backbone) == {"res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (1024, 16)}


@pytest.mark.parametrize("name", [SMALL, "densenet121"])
def test_every_parameter_is_trained_with_the_first_and_last_map_alone(name: str) -> None:
    backbone = TimmBackbone(name, out_features=("res2", "res5")).train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert list(maps) == ["res2", "res5"]
    sum(features.square().mean() for features in maps.values()).backward()
    assert [parameter for parameter, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "mobilevitv2_050"])
@pytest.mark.parametrize("freeze_at", [0, 2, 4])
def test_nothing_stands_behind_the_last_map(name: str, freeze_at: int) -> None:
    whole = TimmBackbone(name, freeze_at=freeze_at).eval()
    backbone = TimmBackbone(name, out_features=("res2", "res4"), freeze_at=freeze_at).train()
    backbone.load_state_dict({key: value for key, value in whole.state_dict().items() if key in backbone.state_dict()})
    maps = backbone(torch.randn(2, 3, 64, 64))
    if freeze_at < 4:
        sum(features.square().mean() for features in maps.values()).backward()
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    images = torch.randn(1, 3, 64, 64)
    whole.load_state_dict(backbone.state_dict(), strict=False)
    for stage, features in backbone.eval()(images).items():
        torch.testing.assert_close(features, whole(images)[stage])


def test_freezing_past_the_last_map_keeps_the_whole_network() -> None:
    for name in ("resnet18", "tf_efficientnet_lite0"):
        backbone = TimmBackbone(name, out_features=("res2", "res3"), freeze_at=5)
        assert not [key for key, p in backbone.named_parameters() if p.requires_grad]


def test_an_image_of_another_size_than_a_network_takes_is_named() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("vit_tiny_patch16_224")
        with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 cannot take images of 96 x 160 .*224"):
            backbone(torch.zeros(1, 3, 96, 160))
        assert backbone(torch.zeros(1, 3, 224, 224))["res5"].shape[0] == 1


def test_swin_gives_maps_with_channels_first_at_any_size() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("swin_tiny_patch4_window7_224").eval()
        maps = backbone(torch.empty(2, 3, 64, 96))
    assert [tuple(features.shape) for features in maps.values()] == [
        (2, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in backbone.output_shape().values()
    ]


def test_stochastic_depth_is_timms() -> None:
    rates = [m.drop_prob for m in TimmBackbone("convnext_small", drop_path=0.3).modules() if isinstance(m, DropPath)]
    assert rates[0] > 0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert not any(isinstance(m, DropPath) for m in TimmBackbone(SMALL).modules())


def test_it_is_built_from_the_config_by_name() -> None:
    cfg = timm_cfg("MODEL.TIMM.OUTPUT_STRIDE", 16, "MODEL.TIMM.DROP_PATH", 0.2, "MODEL.TIMM.OUT_FEATURES", ["res5"])
    backbone = build_backbone(cfg)
    assert shapes_of(backbone) == {"res5": (320, 16)}
    assert any(isinstance(m, DropPath) for m in backbone.modules())
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.TIMM.NAME", "convnext_smal"], "has no network called 'convnext_smal'"),
        (["MODEL.TIMM.NAME", "hf-hub:timm/resnet18.a1_in1k"], "has no network called 'hf-hub:timm"),
        (["MODEL.TIMM.OUTPUT_STRIDE", 4], "OUTPUT_STRIDE of convnext_atto is 4; expected 8, 16 or 32"),
        (["MODEL.TIMM.OUT_FEATURES", ["res1"]], "OUT_FEATURES of convnext_atto is .*expected some of res2"),
        (["MODEL.TIMM.OUT_FEATURES", []], "OUT_FEATURES of convnext_atto is .*expected some of res2"),
        (["MODEL.TIMM.NAME", "densenet121", "MODEL.TIMM.DROP_PATH", 0.1], "timm cannot build densenet121 with .* 0.1"),
        (["MODEL.TIMM.NAME", "pvt_v2_b0", "MODEL.TIMM.OUTPUT_STRIDE", 16], "timm cannot build pvt_v2_b0"),
    ],
)
def test_wrong_keys_are_refused(options: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(timm_cfg(*options))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    TimmBackbone(SMALL)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "densenet121", "pvt_v2_b0"])
def test_channels_last_changes_no_number(name: str) -> None:
    plain, last = TimmBackbone(name).eval(), TimmBackbone(name, channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = last(images), plain(images)
    for stage in STAGES:
        torch.testing.assert_close(maps[stage], expected[stage], rtol=1e-3, atol=1e-4)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in last.parameters() if p.dim() == 4)


FIRST_OF = {  # first parameter of each part that FREEZE_AT counts: stem, res2, res3, res4, res5
    "resnet18": ["conv1.", "layer1.", "layer2.", "layer3.", "layer4."],
    "tf_efficientnet_lite0": ["conv_stem.", "blocks.1.", "blocks.2.", "blocks.3.", "blocks.5."],
    "convnext_atto": ["stem_0.", "stages_0.", "stages_1.", "stages_2.", "stages_3."],
    "mobilevitv2_050": ["stem.", "stages_1.", "stages_2.", "stages_3.", "stages_4."],
}


@pytest.mark.parametrize("name", FIRST_OF)
@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_keeps_the_first_parts(name: str, freeze_at: int) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name, freeze_at=freeze_at)
    trained = [key for key, p in backbone.network.named_parameters() if p.requires_grad]
    first = next(iter(trained), "")
    assert first.startswith([*FIRST_OF[name], ""][freeze_at] or first)
    assert bool(trained) == (freeze_at < 5)


def test_frozen_parts_keep_their_statistics_in_training() -> None:
    backbone = TimmBackbone("tf_efficientnet_lite0", freeze_at=2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert any("running_mean" in name for name in moved)
    assert not [name for name in moved if re.match(r"network\.(conv_stem|bn1|blocks\.[01])\.", name)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_frozen_norms_train_as_the_network_evaluates(name: str) -> None:
    plain, frozen = TimmBackbone(name).eval(), TimmBackbone(name, norm="FrozenBN").train()
    for key, buffer in plain.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    frozen.load_state_dict({key: value for key, value in plain.state_dict().items() if "num_batches" not in key})
    images = torch.randn(2, 3, 64, 64)
    for stage, features in frozen(images).items():
        torch.testing.assert_close(features, plain(images)[stage], rtol=1e-3, atol=1e-4)
    assert not any("bn" in key for key, _ in frozen.named_parameters())


def test_norms_of_all_processes_are_chosen_by_name() -> None:
    with torch.device("meta"):
        networks = [TimmBackbone(name, norm="SyncBN", freeze_at=1) for name in ("resnet18", "convnext_atto")]
    kinds = [
        {type(m) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} for network in networks
    ]
    assert kinds == [{nn.SyncBatchNorm}, set()]


def test_without_drop_path_no_network_drops_anything() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("swin_tiny_patch4_window7_224")
    assert not [m for m in backbone.modules() if isinstance(m, DropPath) and m.drop_prob > 0]


def test_wrong_norm_and_freeze_at_are_named() -> None:
    with pytest.raises(ConfigError, match=r"NORM of resnet18 is 'GN'.*BN, SyncBN, FrozenBN"):
        build_backbone(timm_cfg("MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.NORM", "GN"))
    with pytest.raises(ConfigError, match="FREEZE_AT of resnet18 is 6; expected 0"):
        build_backbone(timm_cfg("MODEL.TIMM.NAME", "resnet18", "MODEL.BACKBONE.FREEZE_AT", 6))
    options = ("MODEL.TIMM.NAME", "resnet18", "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.TIMM.CHANNELS_LAST", True)
    backbone = build_backbone(timm_cfg(*options))
    assert not backbone.network.conv1.weight.requires_grad
    assert backbone.network.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
