# SPDX-License-Identifier: Apache-2.0
"""Importing published segmentors: every name of the published list, values, refusals, and the real class if there."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.loading import load_into
from padding.modeling.weights.segmentors import import_huggingface, import_mask2former, layout_of
from tests.hf_layout import to_huggingface

State = dict[str, Tensor]


@pytest.fixture
def published(goldens: Path) -> State:
    """The 558 entries of the published R50 network, one number wide where the true shape does not matter."""
    shapes = json.loads((goldens / "mask2former_r50_keys.json").read_text())
    # Three rows, so that queries, keys and values can be told apart.
    return {name: torch.full((3,), float(i)) + torch.arange(3) / 4 for i, name in enumerate(shapes)}


def test_published_layout_goes_through_unchanged(published: State) -> None:
    imported = import_mask2former(published)
    assert layout_of(published) == "mask2former"
    torch.testing.assert_close(imported.state, published)
    assert not imported.renamed
    assert not imported.skipped


def test_early_names_and_constants_of_published_files(published: State) -> None:
    early = {name.replace("query_feat", "static_query"): tensor for name, tensor in published.items()}
    early |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    imported = import_mask2former(early)
    torch.testing.assert_close(imported.state, published)
    new = "sem_seg_head.predictor.query_feat.weight"
    assert imported.renamed == {"sem_seg_head.predictor.static_query.weight": new}
    assert imported.skipped == {"pixel_mean": "not needed", "pixel_std": "not needed"}
    table = str(imported.report())
    assert "558 of 558 tensors" in table
    assert "loaded, renamed" in table
    assert "skipped" in table


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_huggingface_layout_round_trips(published: State, tmp_path: Path, suffix: str) -> None:
    there = to_huggingface(published)
    assert len(there) == 558 + 2 * 18 + 53  # q, k, v of nine layers apart; counters of 53 norms
    path = tmp_path / f"model{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(there, path)
    state = read_checkpoint(path)
    assert layout_of(state) == "huggingface"
    imported = import_huggingface(state)
    torch.testing.assert_close(imported.state, published)
    assert set(imported.skipped.values()) == {"not needed"}
    assert len(imported.skipped) == 53
    assert len(imported.renamed) + len(imported.skipped) + 1 == len(there)  # criterion.empty_weight has its name
    query = "model.transformer_module.decoder.layers.3.self_attn.q_proj.bias"
    fused = "sem_seg_head.predictor.transformer_self_attention_layers.3.self_attn.in_proj_bias"
    assert imported.renamed[query] == imported.renamed[query.replace("q_proj", "v_proj")] == fused


def test_order_of_queries_keys_and_values(published: State) -> None:
    there = to_huggingface(published)
    parts = [f"model.transformer_module.decoder.layers.0.self_attn.{which}_proj.weight" for which in "qkv"]
    there |= {part: torch.full((2, 2), float(i)) for i, part in enumerate(parts)}
    fused = import_huggingface(there).state[
        "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight"
    ]
    assert fused[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_damaged_huggingface_file_is_refused(published: State) -> None:
    there = to_huggingface(published)
    del there["model.transformer_module.decoder.layers.4.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.4\.self_attn\.k_proj\.weight is not; the file is damaged"):
        import_huggingface(there)


def test_other_backbones_are_refused_by_name(published: State) -> None:
    there = {name: t for name, t in to_huggingface(published).items() if "pixel_level_module.encoder." not in name}
    other = {"model.pixel_level_module.encoder._backbone.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"neither a ResNet nor a Swin .*first name: .*_backbone\.conv1"):
        import_huggingface(there | other)


@pytest.mark.parametrize("convert", [dict, to_huggingface])
def test_unknown_names_are_an_error(published: State, convert: Callable[[State], State]) -> None:
    state = convert(published) | {"model.surprise.weight": torch.zeros(1)}
    importer = import_mask2former if convert is dict else import_huggingface
    with pytest.raises(CheckpointError, match=r"1 names of the file are unknown in this layout: model\.surprise"):
        importer(state)


def test_incomplete_files_are_an_error(published: State) -> None:
    part = {name: tensor for name, tensor in published.items() if not name.startswith("backbone.")}
    with pytest.raises(CheckpointError, match=r"lacks backbone\.\*; it is no complete segmentor"):
        import_mask2former(part)
    with pytest.raises(CheckpointError, match=r"no layout has names like 'conv1\.weight'"):
        layout_of({"conv1.weight": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ the real class

STAGES = (8, 16, 32, 64)  # output channels of a ResNet-50 narrowed 32 times


def narrow_resnet50(cfg: CfgNode) -> nn.Module:
    """The tiny network with a narrow ResNet-50 for a backbone."""
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STRIDE_IN_1X1", False),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", STAGES[0], "MODEL.RESNETS.WIDTH_PER_GROUP", STAGES[0] // 4),
        ]
    )
    return build_model(cfg).eval()


@pytest.mark.reference
def test_equals_the_network_of_transformers(tiny_cfg: CfgNode) -> None:
    """Names are right when the outputs are: random weights, random running statistics, an odd size."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        depths=[3, 4, 6, 3], hidden_sizes=list(STAGES), embedding_size=8, layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    head, decoder = tiny_cfg.MODEL.SEM_SEG_HEAD, tiny_cfg.MODEL.MASK_FORMER
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=head.NUM_CLASSES,
        feature_size=head.CONVS_DIM,
        mask_feature_size=head.MASK_DIM,
        encoder_layers=head.TRANSFORMER_ENC_LAYERS,
        encoder_feedforward_dim=head.TRANSFORMER_ENC_DIM_FEEDFORWARD,
        hidden_dim=decoder.HIDDEN_DIM,
        num_queries=decoder.NUM_OBJECT_QUERIES,
        decoder_layers=decoder.DEC_LAYERS,
        dim_feedforward=decoder.DIM_FEEDFORWARD,
        num_attention_heads=decoder.NHEADS,
    )
    theirs = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor) if "running_var" in name else 0.05 * torch.randn_like(tensor))
    ours = narrow_resnet50(tiny_cfg)
    report = load_into(ours, import_huggingface(theirs.state_dict()).state)
    assert not report.missing
    assert not report.skipped
    size = (96, 160)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(pixel_values=image)
        outputs = ours.predict_queries(ImageList(image, [size]))
    for got, want in (
        (outputs["pred_logits"], expected.class_queries_logits),
        (outputs["pred_masks"], expected.masks_queries_logits),
    ):
        assert want.std() > 0.1
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
