# SPDX-License-Identifier: Apache-2.0
"""A warning where images are normalised in another way than published weights expect, and no other."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from padding.modeling.timm_backbone import TimmBackbone
from padding.modeling.weights.loading import load_backbone_weights, load_initial_weights
from padding.modeling.weights.normalisation import published_pixels, warn_of_other_pixels

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize(("name", "pixels"), [("tf_efficientnet_lite0", HALF), ("resnet18", IMAGENET)])
def test_networks_of_timm_have_their_own(name: str, pixels: tuple[tuple[float, ...], ...]) -> None:
    with torch.device("meta"):
        known = published_pixels(TimmBackbone(name))
    assert len(known) >= 1
    assert any(entry == pytest.approx(pixels[0]) for entry, _ in known)
    assert any(entry == pytest.approx(pixels[1]) for _, entry in known)


@pytest.mark.parametrize(
    ("name", "pixels", "warned"),
    [
        ("tf_efficientnet_lite0", HALF, False),
        ("tf_efficientnet_lite0", IMAGENET, True),
        ("tf_efficientnet_lite0", (IMAGENET[0][::-1], (1.0, 1.0, 1.0)), True),
        ("resnet18", IMAGENET, False),
        ("resnet18", ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), False),
        ("resnet18", (IMAGENET[0][::-1], IMAGENET[1][::-1]), True),  # BGR
    ],
)
def test_other_normalisations_are_named(
    name: str, pixels: tuple[tuple[float, ...], ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    with caplog.at_level(logging.WARNING):
        warn_of_other_pixels(backbone, *pixels, path="weights.pth")
    assert bool(caplog.records) == warned
    if warned:
        assert "weights.pth" in caplog.text
        assert "MODEL.PIXEL_MEAN" in caplog.text


class WithBackbone(nn.Module):
    """A model as far as loading looks at it."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.backbone = TimmBackbone("mobilenetv2_050")
        self.head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET[1]).view(3, 1, 1), persistent=False)


def test_loading_warns_of_a_bare_backbone_and_not_of_a_models_own_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "published.pth")
    torch.save({"model": WithBackbone(0.0).state_dict()}, tmp_path / "own.pth")
    model = WithBackbone(0.0)
    with caplog.at_level(logging.WARNING):
        load_initial_weights(model, model.backbone, str(tmp_path / "own.pth"))
        assert not [r for r in caplog.records if "expect" in r.message]
        load_initial_weights(model, model.backbone, str(tmp_path / "published.pth"))
    assert "published.pth, expect [123.675" in caplog.text
    caplog.clear()
    load_backbone_weights(model.backbone, tmp_path / "published.pth", key="MODEL.TCC.CNN.BACKBONE", pixels=IMAGENET)
    assert not caplog.records
