# SPDX-License-Identifier: Apache-2.0
"""Maps that leave the pixel decoder: sizes, precision, position handling, top-down path."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor

from padding.modeling.pixel_decoder import DeformableEncoder, PixelDecoder, pixel_centres

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def build(
    encoder_features: tuple[str, ...] = ("res3", "res4", "res5"), *, num_layers: int = 1, **kwargs
) -> PixelDecoder:
    shapes = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}
    transformer = DeformableEncoder(
        32, num_levels=len(encoder_features), num_layers=num_layers, num_heads=2, num_points=2, dim_feedforward=16
    )
    decoder = PixelDecoder(
        shapes, transformer=transformer, transformer_in_features=encoder_features, mask_dim=12, **kwargs
    )
    return decoder.eval()


def backbone_maps(height: int = 64, width: int = 96, batch: int = 2) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, CHANNELS[name], height // STRIDES[name], width // STRIDES[name]) for name in CHANNELS
    }


def test_sizes_of_the_maps() -> None:
    mask_features, maps = build()(backbone_maps())
    assert mask_features.shape == (2, 12, 16, 24)
    assert [tuple(level.shape) for level in maps] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]


def test_two_top_down_steps_supply_the_third_map() -> None:
    decoder = build(("res4", "res5"))
    names = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    assert names == {"input_proj", "transformer", "adapter_1", "layer_1", "adapter_2", "layer_2", "mask_features"}
    assert decoder.get_submodule("adapter_1").in_channels == CHANNELS["res2"]
    mask_features, maps = decoder(backbone_maps())
    assert mask_features.shape == (2, 12, 16, 24)
    assert [tuple(level.shape[-2:]) for level in maps] == [(2, 3), (4, 6), (8, 12)]


def test_the_top_down_step_adds_the_enlarged_coarser_map() -> None:
    decoder, features = build(), backbone_maps()
    mask_features, maps = decoder(features)
    enlarged = F.interpolate(maps[-1], scale_factor=2, mode="bilinear", align_corners=False)
    summed = decoder.get_submodule("adapter_1")(features["res2"]) + enlarged
    torch.testing.assert_close(mask_features, decoder.mask_features(decoder.get_submodule("layer_1")(summed)))


def test_without_layers_the_maps_are_the_projected_ones() -> None:
    decoder, features = build(num_layers=0), backbone_maps()
    _, maps = decoder(features)
    for level, project, name in zip(maps, decoder.input_proj, ("res5", "res4", "res3"), strict=True):
        torch.testing.assert_close(level, project(features[name]))


def test_it_computes_in_float32_under_autocast() -> None:
    decoder, features = build(), backbone_maps()
    expected = decoder(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask_features, maps = decoder({name: feature.double() for name, feature in features.items()})
    assert {mask_features.dtype, *(level.dtype for level in maps)} == {torch.float32}
    torch.testing.assert_close(mask_features, expected[0])
    torch.testing.assert_close(maps, expected[1])


def test_every_parameter_gets_a_gradient_once_offsets_depend_on_the_query() -> None:
    decoder = build(num_layers=2).train()
    for layer in decoder.transformer.encoder["layers"]:  # zero at the start, which hides the level embedding
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight)
    mask_features, maps = decoder(backbone_maps())
    sum((output * torch.randn_like(output)).sum() for output in (mask_features, *maps)).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_pixel_centres_count_from_half_a_pixel() -> None:
    centres = pixel_centres([(1, 2), (2, 1)])
    torch.testing.assert_close(centres, torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]))


def test_the_norm_of_the_top_down_path_is_a_setting() -> None:
    assert build(norm="").get_submodule("adapter_1").bias is not None
    with_norm = build(norm="GN").get_submodule("adapter_1")
    assert with_norm.bias is None
    assert isinstance(with_norm.norm, torch.nn.GroupNorm)


def test_strides_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="COMMON_STRIDE 2; expected one map per power of two"):
        build(common_stride=2)
    with pytest.raises(ValueError, match=r"finest stride 8 to .*COMMON_STRIDE 16"):
        build(common_stride=16)
