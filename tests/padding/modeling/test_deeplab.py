# SPDX-License-Identifier: Apache-2.0
"""The DeepLabV3+ head: sizes, pooling at any size, norms, extra maps, published sizes and costs."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from padding.modeling.deeplab import ASPP, DeepLabDecoder, DeepLabOptions, DeepLabV3PlusHead

TINY = DeepLabOptions(project_channels=4, aspp_channels=8, decoder_channels=8, dilations=(1, 2, 3))
CHANNELS = {"res2": 6, "res5": 12}


def tiny_head(**options: object) -> DeepLabV3PlusHead:
    return DeepLabV3PlusHead(
        input_channels=CHANNELS, num_classes=5, options=DeepLabOptions(**{**vars(TINY), **options})
    )


def maps(batch: int, height: int, width: int, stride: int = 8) -> dict[str, torch.Tensor]:
    """Features of strides 4 and 4 * stride; the size of the second is rounded up."""
    return {
        "res2": torch.randn(batch, 6, height, width),
        "res5": torch.randn(batch, 12, -(-height // stride), -(-width // stride)),
    }


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("height", "width"), [(16, 24), (32, 32), (13, 30)])
def test_every_stage_has_its_size_at_any_size_of_image(height: int, width: int) -> None:
    features = maps(2, height, width)
    outputs = tiny_head()(features)
    assert outputs["logits"].shape == (2, 5, height, width)
    assert outputs["decoder"].shape == (2, 8, height, width)
    assert outputs["aspp"].shape == (2, 8, *features["res5"].shape[-2:])


def test_pooling_sees_the_whole_map_whatever_its_size() -> None:
    aspp = ASPP(12, TINY).eval()
    with torch.no_grad():
        for conv in list(aspp.convs)[:-1]:
            conv.weight.zero_()  # the image-pooling branch alone
        features = torch.randn(1, 12, 5, 9)
        pooled = aspp(features)
        torch.testing.assert_close(pooled, pooled[..., :1, :1].expand_as(pooled))
        # A value that moves anywhere, far from the corner, moves every cell.
        features[..., 4, 8] += 3.0
        assert not torch.allclose(aspp(features), pooled)


def test_decoder_equals_its_definition() -> None:
    head = tiny_head(dropout=0.0).eval()
    features = maps(1, 16, 16)
    outputs = head(features)
    low = F.relu(head.decoder.project.norm(F.conv2d(features["res2"], head.decoder.project.weight)))
    high = F.interpolate(head.aspp(features["res5"]), size=(16, 16), mode="bilinear", align_corners=False)
    decoded = torch.cat([low, high], dim=1)
    for conv in head.decoder.fuse:
        decoded = F.relu(conv.norm(F.conv2d(decoded, conv.weight, padding=1)))
    torch.testing.assert_close(outputs["decoder"], decoded)
    predictor = head.decoder.predictor
    torch.testing.assert_close(outputs["logits"], F.conv2d(decoded, predictor.weight, predictor.bias))


def test_classifier_starts_near_zero() -> None:
    predictor = DeepLabV3PlusHead(input_channels=CHANNELS, num_classes=150).decoder.predictor
    assert predictor.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert predictor.weight.mean().item() == pytest.approx(0.0, abs=2e-5)
    assert not predictor.bias.any()


def test_extra_maps_join_the_decoder_at_any_size() -> None:
    decoder = DeepLabDecoder(low_channels=6, high_channels=12, num_classes=5, options=TINY, extra_channels=(3, 7))
    extra = [torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 7, 5, 2, requires_grad=True)]
    features = maps(2, 16, 24)
    logits, _ = decoder.train()(features["res2"], features["res5"], extra)
    assert logits.shape == (2, 5, 16, 24)
    logits.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in extra)
    assert decoder.fuse[0].in_channels == 4 + 12 + 3 + 7


def test_one_image_can_be_trained_on() -> None:
    head = tiny_head().train()
    outputs = head(maps(1, 16, 16))
    outputs["logits"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("norm", ["GN", ""])
def test_a_map_of_one_cell_can_be_trained_without_batch_norm(norm: str) -> None:
    outputs = tiny_head(norm=norm).train()(maps(1, 8, 8))
    assert outputs["aspp"].shape[-2:] == (1, 1)
    assert torch.isfinite(outputs["logits"]).all()


def test_a_map_of_one_cell_of_two_images_can_be_trained_with_batch_norm() -> None:
    assert torch.isfinite(tiny_head().train()(maps(2, 8, 8))["logits"]).all()


def test_batch_norm_of_a_single_value_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r'single cell and the batch one image.*NORM to "GN"'):
        tiny_head().train()(maps(1, 8, 8))
    with pytest.raises(ValueError, match=r"image-pooling branch sees one value.*POOL_NORM"):
        tiny_head(pool_norm="BN").train()(maps(1, 16, 16))
    for batch, training in ((2, True), (1, False)):
        assert tiny_head(pool_norm="BN").train(training)(maps(batch, 16, 16))["aspp"].shape[0] == batch


def test_norms_are_where_the_options_say() -> None:
    plain = tiny_head()
    assert plain.aspp.convs[-1][1].norm is None
    assert plain.aspp.convs[-1][1].bias is not None
    assert isinstance(tiny_head(pool_norm="BN").aspp.convs[-1][1].norm, nn.BatchNorm2d)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in tiny_head(norm="").modules())
    # 48 channels are no multiple of Detectron2's 32 groups.
    grouped = DeepLabV3PlusHead(input_channels=CHANNELS, num_classes=5, options=DeepLabOptions(norm="GN"))
    assert grouped.decoder.project.norm.num_groups == 16
    assert grouped.aspp.project.norm.num_groups == 32
    assert tiny_head(norm="GN").aspp.project.norm.num_groups == 4


def test_options_come_from_a_node() -> None:
    node = CfgNode(
        {
            "PROJECT_CHANNELS": 1,
            "ASPP_CHANNELS": 2,
            "DECODER_CHANNELS": 3,
            "ASPP_DILATIONS": [4, 5, 6],
            "ASPP_DROPOUT": 0.5,
            "NORM": "GN",
            "POOL_NORM": "BN",
        }
    )
    assert DeepLabOptions.from_node(node) == DeepLabOptions(1, 2, 3, (4, 5, 6), 0.5, "GN", "BN")


def test_initial_values_of_the_convolutions() -> None:
    """Kaiming's variance is 2 / (outputs of a cell) behind a ReLU; every convolution has it, the pyramid's too."""
    options = DeepLabOptions(init="kaiming", dilations=(1, 2, 3), project_channels=64, separable=True)
    head = DeepLabV3PlusHead(input_channels={"res2": 64, "res5": 128}, num_classes=50, options=options)
    for name, layer in head.named_modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.kernel_size[0] * layer.kernel_size[1]
            fan = layer.in_channels if name == "decoder.predictor" else layer.out_channels * size
            assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.15), name
    plain = DeepLabV3PlusHead(input_channels={"res2": 64, "res5": 128}, num_classes=50, options=DeepLabOptions())
    assert plain.decoder.predictor.weight.std().item() == pytest.approx(0.001, rel=0.1)
    with pytest.raises(ValueError, match="INIT of the head is 'zeros'"):
        DeepLabOptions(init="zeros")


def test_dilations_and_dropout_take_effect() -> None:
    head = tiny_head(dropout=0.5)
    assert [conv.dilation for conv in list(head.aspp.convs)[1:4]] == [(1, 1), (2, 2), (3, 3)]
    features = maps(2, 16, 16)
    dropped = head.train()(features)["aspp"]
    assert (dropped == 0).float().mean() > 0.5  # ReLU and dropout
    with pytest.raises(ValueError, match="expected three numbers"):
        tiny_head(dilations=(1, 2))
    with pytest.raises(ValueError, match="low-level map and a last map"):
        DeepLabV3PlusHead(input_channels={"res5": 3}, num_classes=2)


# Origin: Table 1 of SalSeg prints 59.34 M and 177.78 GMACs with the plain pyramid, 46.81 M and 152.13 with the
# separable one (19 classes, 1024x512, ResNet-101 at stride 16); its counter adds norms, here convolutions count.
@pytest.mark.parametrize(("separable", "millions", "gmacs"), [(False, 59.344, 177.22), (True, 46.816, 151.56)])
def test_size_and_cost_are_those_of_the_published_networks(separable: bool, millions: float, gmacs: float) -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.merge_from_list(["DEPTH", 101, "NORM", "BN", "RES5_DILATION", 2, "STRIDE_IN_1X1", False])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    with torch.device("meta"):
        backbone = build_backbone(cfg).eval()
        channels = {name: shape.channels for name, shape in backbone.output_shape().items()}
        options = DeepLabOptions(separable=separable, pool_norm="BN")
        head = DeepLabV3PlusHead(input_channels=channels, num_classes=19, options=options).eval()
        images = torch.empty(1, 3, 512, 1024)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert head(backbone(images))["logits"].shape == (1, 19, 128, 256)
    assert (num_parameters(backbone) + num_parameters(head)) / 1e6 == pytest.approx(millions, abs=6e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=6e-3)


def test_two_decoders_can_share_a_pyramid() -> None:
    aspp = ASPP(12, TINY)
    decoders = [DeepLabDecoder(low_channels=6, high_channels=8, num_classes=k, options=TINY) for k in (5, 2)]
    features = maps(2, 16, 16)
    pooled = aspp(features["res5"])
    assert [decoder(features["res2"], pooled)[0].shape[1] for decoder in decoders] == [5, 2]
