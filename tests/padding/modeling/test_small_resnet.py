# SPDX-License-Identifier: Apache-2.0
"""The small backbone, alone and in the tiny Mask2Former for generated data."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import nn

import padding.modeling  # noqa: F401  (registers backbone and head)
from padding.modeling.config import add_mask2former_config


def tiny_config() -> CfgNode:
    """The network for generated data."""
    cfg = get_cfg()
    add_mask2former_config(cfg)
    cfg.MODEL.BACKBONE.merge_from_other_cfg(CfgNode({"NAME": "build_small_resnet_backbone", "FREEZE_AT": 0}))
    cfg.MODEL.SEM_SEG_HEAD.merge_from_other_cfg(
        CfgNode(
            {
                "NAME": "MaskFormerHead",
                "IN_FEATURES": ["res2", "res3", "res4", "res5"],
                "NUM_CLASSES": 35,
                "CONVS_DIM": 64,
                "MASK_DIM": 64,
                "TRANSFORMER_ENC_LAYERS": 1,
                "TRANSFORMER_ENC_DIM_FEEDFORWARD": 256,
                "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 4,
            }
        )
    )
    cfg.MODEL.MASK_FORMER.merge_from_other_cfg(
        CfgNode(
            {
                "HIDDEN_DIM": 64,
                "NUM_OBJECT_QUERIES": 16,
                "NHEADS": 4,
                "DIM_FEEDFORWARD": 256,
                "DEC_LAYERS": 4,
                "DROPOUT": 0.0,
            }
        )
    )
    return cfg


def build_tiny(cfg: CfgNode) -> nn.ModuleDict:
    backbone = build_backbone(cfg)
    return nn.ModuleDict({"backbone": backbone, "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape())})


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_maps_have_the_strides_and_channels_it_announces() -> None:
    backbone = build_backbone(tiny_config())
    announced = backbone.output_shape()
    assert {name: (spec.channels, spec.stride) for name, spec in announced.items()} == {
        "res2": (24, 4),
        "res3": (48, 8),
        "res4": (96, 16),
        "res5": (96, 32),
    }
    for name, feature in backbone(torch.randn(2, 3, 64, 96)).items():
        spec = announced[name]
        assert feature.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_widths_blocks_and_norm_come_from_the_config() -> None:
    cfg = tiny_config()
    cfg.MODEL.SMALL_RESNET.merge_from_other_cfg(
        CfgNode(
            {"STEM_OUT_CHANNELS": 8, "OUT_CHANNELS": [8, 8, 16, 32], "NUM_BLOCKS": [1, 3, 1, 1], "NORM": "FrozenBN"}
        )
    )
    backbone = build_backbone(cfg, ShapeSpec(channels=1))
    assert [len(getattr(backbone, stage)) for stage in ("res2", "res3", "res4", "res5")] == [1, 3, 1, 1]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert [f.shape[1] for f in backbone(torch.randn(1, 1, 64, 64)).values()] == [8, 8, 16, 32]


def test_output_stride_16_keeps_the_size_of_the_last_map() -> None:
    cfg = tiny_config()
    cfg.MODEL.SMALL_RESNET.OUTPUT_STRIDE = 16
    backbone = build_backbone(cfg)
    assert [spec.stride for spec in backbone.output_shape().values()] == [4, 8, 16, 16]
    assert backbone(torch.randn(1, 3, 64, 96))["res5"].shape[-2:] == (4, 6)
    cfg.MODEL.SMALL_RESNET.OUTPUT_STRIDE = 8
    with pytest.raises(ValueError, match="OUTPUT_STRIDE is 8, expected 16 or 32"):
        build_backbone(cfg)


def test_freeze_at_freezes_stem_and_first_stage() -> None:
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    frozen = {name.split(".")[0] for name, p in build_backbone(cfg).named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


def test_a_wrong_number_of_stages_is_refused() -> None:
    cfg = tiny_config()
    cfg.MODEL.SMALL_RESNET.NUM_BLOCKS = [2, 2, 2]
    with pytest.raises(ValueError, match=r"NUM_BLOCKS is \[2, 2, 2\], expected one number for each of res2, res3"):
        build_backbone(cfg)


def test_the_tiny_mask2former_has_its_size() -> None:
    network = build_tiny(tiny_config())
    assert num_parameters(network["backbone"]) == pytest.approx(0.565e6, rel=0.02)
    assert num_parameters(network) == pytest.approx(0.89e6, rel=0.02)


def test_training_reaches_every_parameter_of_the_tiny_mask2former() -> None:
    network = build_tiny(tiny_config()).train()
    attention = network["sem_seg_head"].pixel_decoder.transformer.encoder["layers"][0].self_attn
    # Zero at the start by definition, so that the only encoder layer does not look at positions in its first step.
    nn.init.normal_(attention.sampling_offsets.weight)
    nn.init.normal_(attention.attention_weights.weight)
    outputs = network["sem_seg_head"](network["backbone"](torch.randn(2, 3, 64, 64)), with_aux=True)
    assert outputs["pred_masks"].shape == (2, 16, 16, 16)
    predictions = [outputs, *outputs["aux_outputs"]]
    assert len(predictions) == 4
    sum(p[key].square().mean() for p in predictions for key in ("pred_logits", "pred_masks")).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
