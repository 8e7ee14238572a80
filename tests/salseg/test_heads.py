# SPDX-License-Identifier: Apache-2.0
"""Saliency branch: Eq. 2 to 4 by hand, the values at initialization, every reading, the pyramid's choices."""

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from padding.modeling.deeplab import ASPP, DeepLabDecoder, DeepLabOptions
from salseg.heads import READINGS, SaliencyBranch, build_pyramid, saliency_logits
from tests.tiny_salseg import tiny_salseg_cfg

OPTIONS = DeepLabOptions(project_channels=4, aspp_channels=8, decoder_channels=6, dilations=(1, 2, 3))


def branch(reading: str = "softmax", num_maps: int = 5) -> SaliencyBranch:
    torch.manual_seed(0)
    decoder = DeepLabDecoder(low_channels=3, high_channels=8, num_classes=num_maps, options=OPTIONS)
    return SaliencyBranch(middle_channels=8, num_maps=num_maps, reading=reading, decoder=decoder)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 16, 24, generator=generator), torch.randn(2, 8, 4, 6, generator=generator)


def test_saliency_is_the_weighted_sum_of_the_maps() -> None:
    module = branch().eval()
    nn.init.normal_(module.weigh.weight)
    low, middle = features()
    found = module((low, middle), (64, 96))
    assert found.shape == (2, 1, 64, 96)
    assert module.decoder is not None
    maps = nn.functional.interpolate(module.decoder(low, middle)[0], size=(64, 96), mode="bilinear")
    for b in range(2):
        # GAP and 1x1 convolution are linear: pooling first gives the same.
        s = torch.sigmoid(module.weigh.weight[:, :, 0, 0] @ middle[b].mean(dim=(1, 2)) + module.weigh.bias)
        y = sum(s[i] * maps[b].softmax(dim=0)[i] for i in range(5))
        torch.testing.assert_close(found[b, 0].sigmoid(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
def test_saliency_is_a_probability_with_a_finite_logit(reading: str) -> None:
    maps = 200 * torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    maps, weights = maps.requires_grad_(), weights.requires_grad_()
    found = saliency_logits(maps, weights, reading)
    assert torch.isfinite(found).all()
    assert ((found.sigmoid() >= 0) & (found.sigmoid() <= 1)).all()
    found.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize(
    ("reading", "expected"), [("softmax", 0.5), ("logit", 0.5), ("softmax_no_background", 0.4), ("sigmoid", 0.25)]
)
def test_saliency_of_zeros_follows_from_the_formula(reading: str, expected: float) -> None:
    """s = sigmoid(0) = 0.5 and five equal maps."""
    module = branch(reading)
    for parameter in (module.weigh.weight, module.decoder.predictor.weight):  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    found = module.eval()(features(), (32, 48)).sigmoid()
    torch.testing.assert_close(found, torch.full_like(found, expected))


def test_salient_and_not_salient_sum_to_one_with_the_softmax() -> None:
    maps, weights = torch.randn(2, 5, 8, 8), torch.rand(2, 5)
    salient = saliency_logits(maps, weights, "softmax").sigmoid()
    other = saliency_logits(maps, 1 - weights, "softmax").sigmoid()
    torch.testing.assert_close(salient + other, torch.ones_like(salient))


def test_map_of_the_background_does_not_count_without_it() -> None:
    maps, weights = torch.randn(1, 3, 4, 4), torch.rand(1, 3)
    expected = saliency_logits(maps, weights * torch.tensor([0.0, 1.0, 1.0]), "softmax")
    torch.testing.assert_close(saliency_logits(maps, weights, "softmax_no_background"), expected)


def test_branch_without_decoder_takes_the_class_logits() -> None:
    module = SaliencyBranch(middle_channels=8, num_maps=5, reading="softmax", decoder=None)
    low, middle = features()
    logits = torch.randn(2, 5, 16, 24, requires_grad=True)
    module((low, middle), (64, 96), logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_unknown_readings_and_too_few_maps() -> None:
    with pytest.raises(ValueError, match=r"SALIENCY\.READING is 'sum'"):
        branch("sum")
    with pytest.raises(ValueError, match=r"SALIENCY\.CHANNELS is 2: reading 'softmax_no_background' needs"):
        branch("softmax_no_background", 2)


def test_pyramid_is_separable_plain_or_a_single_convolution() -> None:
    def node(*opts: object) -> CfgNode:
        return tiny_salseg_cfg(*opts).MODEL.SALSEG

    def millions(*opts: object) -> int:
        return sum(p.numel() for p in build_pyramid(node(*opts), 16).parameters())

    separable, plain = millions(), millions("MODEL.SALSEG.ASPP.DSC", False)
    # Three 3x3 convolutions 16 -> 8 against depthwise 3x3 and 1x1, nothing in between.
    assert plain - separable == 3 * (9 * 16 * 8 - 9 * 16 - 16 * 8)
    assert isinstance(build_pyramid(node(), 16), ASPP)
    single = build_pyramid(node("MODEL.SALSEG.ASPP.ENABLED", False), 16)
    assert sum(p.numel() for p in single.parameters()) == 16 * 8 + 2 * 8
    assert single(torch.randn(2, 16, 4, 4)).shape == (2, 8, 4, 4)
