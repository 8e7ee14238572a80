# SPDX-License-Identifier: Apache-2.0
"""The head on ResNet-50 against names and numbers of the published Mask2Former (tests/goldens/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import Tensor, nn

import padding.modeling  # noqa: F401  (registers the head)
from padding.modeling.config import add_mask2former_config
from padding.modeling.criterion import MaskCriterion
from padding.modeling.matcher import HungarianMatcher

GOLDENS = Path(__file__).parents[2] / "goldens"
BEFORE_THE_FIRST_MASK = ("res5", "mask_features", "ms0", "ms2", "aux0_logits")
AFTER_THE_FIRST_MASK = ("pred_logits", "pred_masks", "aux4_masks")


def published_config() -> CfgNode:
    """Model part of the official COCO panoptic R50 config."""
    cfg = get_cfg()
    add_mask2former_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.merge_from_other_cfg(CfgNode({"NAME": "build_resnet_backbone", "FREEZE_AT": 0}))
    cfg.MODEL.RESNETS.merge_from_other_cfg(
        CfgNode({"DEPTH": 50, "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res2", "res3", "res4", "res5"]})
    )
    cfg.MODEL.SEM_SEG_HEAD.merge_from_other_cfg(
        CfgNode(
            {
                "NAME": "MaskFormerHead",
                "IN_FEATURES": ["res2", "res3", "res4", "res5"],
                "NUM_CLASSES": 133,
                "CONVS_DIM": 256,
                "TRANSFORMER_ENC_LAYERS": 6,
            }
        )
    )
    cfg.MODEL.MASK_FORMER.merge_from_other_cfg(CfgNode({"DROPOUT": 0.0, "DEC_LAYERS": 10}))
    return cfg


def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Rule of tests/goldens/README.md."""
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        a = 1 + 0.1 * np.abs(a)
    elif name.endswith(("running_mean", "bias")):
        a = 0.1 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a
    elif not name.endswith(("query_feat.weight", "query_embed.weight", "level_embed.weight", "level_embed")):
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(a, dtype=np.float32))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    cfg = published_config()
    network = nn.Module()
    network.backbone = build_backbone(cfg)
    network.sem_seg_head = build_sem_seg_head(cfg, network.backbone.output_shape())
    network.criterion = MaskCriterion(
        num_classes=133,
        matcher=HungarianMatcher(2.0, 5.0, 5.0, num_points=16),
        weight_dict={"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        no_object_weight=0.1,
        num_points=16,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    weights = {
        name: golden_weight(name, tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
        if name != "criterion.empty_weight"
    }
    network.load_state_dict(weights, strict=False)
    return network.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "mask2former_r50_forward.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def computed(network: nn.Module, golden: dict[str, np.ndarray]) -> dict[str, Tensor]:
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    with torch.no_grad():
        features = network.backbone(((torch.from_numpy(golden["image"]).float() - mean) / std)[None])
        mask_features, maps = network.sem_seg_head.pixel_decoder(features)
        outputs = network.sem_seg_head.predictor(maps, mask_features, with_aux=True)
    return {
        "res5": features["res5"][0, :8],
        "mask_features": mask_features[0, :8],
        "ms0": maps[0][0, :8],
        "ms2": maps[2][0, :8],
        "pred_logits": outputs["pred_logits"][0],
        "pred_masks": outputs["pred_masks"][0, ::5],
        "aux0_logits": outputs["aux_outputs"][0]["pred_logits"][0],
        "aux4_masks": outputs["aux_outputs"][4]["pred_masks"][0, ::10],
    }


def test_names_and_shapes_are_the_published_ones(network: nn.Module) -> None:
    published = json.loads((GOLDENS / "mask2former_r50_keys.json").read_text())
    ours = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in network.state_dict().items()
    }
    assert len(published) == 558
    assert ours == published


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_MASK)
def test_arrays_before_the_first_mask_equal_the_published_ones(
    name: str, computed: dict[str, Tensor], golden: dict[str, np.ndarray]
) -> None:
    difference = np.abs(computed[name].numpy() - golden[name])
    assert difference.max() <= 1e-4 * np.abs(golden[name]).max()


@pytest.mark.parametrize("name", AFTER_THE_FIRST_MASK)
def test_arrays_after_a_thresholded_mask_equal_the_published_ones(
    name: str, computed: dict[str, Tensor], golden: dict[str, np.ndarray]
) -> None:
    relative = np.abs(computed[name].numpy() - golden[name]) / np.abs(golden[name])
    assert np.median(relative) <= 1e-4
    assert (relative <= 1e-3).mean() >= 0.99


def test_the_head_joins_both_decoders(network: nn.Module) -> None:
    head = network.sem_seg_head
    features = {
        name: torch.randn(1, channels, 64 // stride, 64 // stride)
        for name, channels, stride in (("res2", 256, 4), ("res3", 512, 8), ("res4", 1024, 16), ("res5", 2048, 32))
    }
    with torch.no_grad():
        mask_features, maps = head.pixel_decoder(features)
        expected = head.predictor(maps, mask_features, with_aux=False)
        outputs = head(features, with_aux=False)
    assert outputs["aux_outputs"] == []
    torch.testing.assert_close(outputs["pred_masks"], expected["pred_masks"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder", "'BasePixelDecoder', expected 'MSDeformAttnPixelDec"),
        ("MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder", "expected 'MultiScaleMaskedTransformer"),
        ("MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "expected 'multi_scale_pixel_decoder'"),
        ("MASK_FORMER.DEC_LAYERS", 0, "DEC_LAYERS is 0, expected >= 1"),
        ("SEM_SEG_HEAD.IN_FEATURES", ["res2", "res6"], r"IN_FEATURES is \['res2', 'res6'\].*the backbone.*\['res6'\]"),
        ("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", [], "expected at least one of"),
    ],
)
def test_settings_that_cannot_work_are_explained(key: str, value: object, message: str) -> None:
    cfg = published_config()
    cfg.merge_from_list([f"MODEL.{key}", value])
    shapes = {name: ShapeSpec(channels=4, stride=4 * 2**i) for i, name in enumerate(("res2", "res3", "res4", "res5"))}
    with pytest.raises(ValueError, match=message):
        build_sem_seg_head(cfg, shapes)
