# SPDX-License-Identifier: Apache-2.0
"""Swin: windows filled up before they are shifted, and published segmentors with it under their own names."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.swin import FilledSwinBlock
from padding.modeling.timm_backbone import TimmBackbone
from padding.modeling.weights.loading import load_backbone_weights, load_into
from padding.modeling.weights.segmentors import import_huggingface, import_mask2former, layout_of
from tests.hf_layout import to_huggingface

NAME = "swin_tiny_patch4_window7_224"
WIDTH, DEPTHS, HEADS, WINDOW = 8, (1, 2, 2, 2), (1, 1, 2, 2), 4
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Swin of timm is narrow, shallow and has small windows."""
    create = timm.create_model
    sizes = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **sizes))


def attention_by_hand(block: FilledSwinBlock, x: Tensor) -> Tensor:
    """Window attention of a map (h, w, C) window by window, after Swin's text: fill up, shift, attend, shift back."""
    height, width, channels = x.shape
    window, shift = block.window_size[0], block.shift_size[0]
    rows, columns = (-(-side // window) * window for side in (height, width))
    filled = F.pad(x, (0, 0, 0, columns - width, 0, rows - height)).roll((-shift, -shift), (0, 1))
    # Pixels that the shift brought together from opposite borders do not see each other.
    row_part = torch.arange(rows).ge(rows - window).long() + torch.arange(rows).ge(rows - shift).long() * bool(shift)
    col_part = torch.arange(columns).ge(columns - window).long()
    col_part = col_part + torch.arange(columns).ge(columns - shift).long() * bool(shift)
    region = (3 * row_part[:, None] + col_part) * bool(shift)
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"), -1).view(-1, 2)
    offsets = places[:, None] - places + window - 1
    table = block.attn.relative_position_bias_table.view(2 * window - 1, 2 * window - 1, -1)
    bias = table[offsets[..., 0], offsets[..., 1]].permute(2, 0, 1)
    heads = bias.shape[0]
    out = torch.empty_like(filled)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            part = (slice(top, top + window), slice(left, left + window))
            q, k, v = block.attn.qkv(filled[part].reshape(-1, channels)).view(-1, 3, heads, channels // heads).unbind(1)
            scores = torch.einsum("ihd,jhd->hij", q, k) * (channels // heads) ** -0.5 + bias
            labels = region[part].reshape(-1)
            scores = scores.masked_fill(labels[:, None] != labels, -100.0 if shift else 0.0)
            mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(-1, channels)
            out[part] = block.attn.proj(mixed).view(window, window, channels)
    return out.roll((shift, shift), (0, 1))[:height, :width]


@pytest.mark.parametrize("size", [(8, 12), (6, 9), (3, 5)])
def test_windows_are_filled_up_before_they_are_shifted(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(NAME).eval()
    blocks = [m for m in backbone.modules() if isinstance(m, FilledSwinBlock)]
    assert [block.shift_size[0] for block in blocks] == [0, 0, 2, 0, 2, 0, 2]  # in the last stage too
    for block in blocks[1:3]:
        nn.init.normal_(block.attn.relative_position_bias_table)
        x = torch.randn(*size, 2 * WIDTH)
        with torch.no_grad():
            got = block._attn(x[None])[0]
        torch.testing.assert_close(got, attention_by_hand(block, x), rtol=1e-4, atol=1e-5)


def swin_segmentor(cfg: CfgNode) -> nn.Module:
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", NAME])
    return build_model(cfg).eval()


def official_name(name: str) -> str:
    """Names of Mask2Former's own files with Swin."""
    name = re.sub(
        r"^backbone\.network\.layers_(\d)\.downsample", lambda m: f"backbone.layers.{int(m[1]) - 1}.downsample", name
    )
    name = re.sub(r"^backbone\.network\.layers_(\d)\.", r"backbone.layers.\1.", name)
    name = re.sub(r"^backbone\.output_norms\.res(\d)\.", lambda m: f"backbone.norm{int(m[1]) - 2}.", name)
    return name.replace("backbone.network.patch_embed", "backbone.patch_embed")


_HUB = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_NEW = {
    **_HUB,
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def huggingface_state(state: State, names: dict[str, str]) -> State:
    """The whole file in the names of ``transformers``, those of the hub or of versions from 5 on."""
    is_new = names is _NEW
    encoder = "model.pixel_level_module.encoder."
    swin = encoder + ("swin." if is_new else "")
    there = to_huggingface({n: t for n, t in state.items() if not n.startswith("backbone.")})
    for name, tensor in state.items():
        if not name.startswith("backbone."):
            continue
        rest = name.removeprefix("backbone.network.")
        if name.startswith("backbone.output_norms.res"):
            rest = name.removeprefix("backbone.output_norms.res")
            there[f"{encoder}hidden_states_norms.stage{int(rest[0]) - 1}{rest[1:]}"] = tensor
        elif "downsample" in rest:
            stage, leaf = re.fullmatch(r"layers_(\d)\.(downsample\..+)", rest).groups()
            there[f"{swin}encoder.layers.{int(stage) - 1}.{leaf}"] = tensor
        elif rest.startswith("patch_embed"):
            part, leaf = rest.rsplit(".", 1)
            there[f"{swin}{names[part]}.{leaf}"] = tensor
        else:
            block, leaf = re.fullmatch(r"(layers_\d\.blocks\.\d)\.(.+)", rest).groups()
            place = swin + "encoder." + block.replace("layers_", "layers.")
            if leaf.startswith("attn.qkv"):
                for which, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    kind = f"attention.{which[0]}_proj" if is_new else f"attention.self.{which}"
                    there[f"{place}.{kind}.{leaf.rsplit('.', 1)[1]}"] = part.clone()
            elif leaf in names:
                there[f"{place}.{names[leaf]}"] = tensor
            else:
                part, end = leaf.rsplit(".", 1)
                there[f"{place}.{names[part]}.{end}"] = tensor
    index = "attention.self.relative_position_index"
    there[f"{swin}encoder.layers.0.blocks.0.{index}"] = torch.zeros(16, 16, dtype=torch.int64)
    if is_new:
        there |= {f"{swin}layernorm.{leaf}": torch.ones(8 * WIDTH) for leaf in ("weight", "bias")}
    return there


@pytest.mark.parametrize(
    ("layout", "convert"),
    [
        ("mask2former", lambda state: {official_name(name): tensor for name, tensor in state.items()}),
        ("huggingface", lambda state: huggingface_state(state, _HUB)),
        ("huggingface", lambda state: huggingface_state(state, _NEW)),
    ],
    ids=["official", "hub", "transformers 5"],
)
def test_published_names_fill_the_whole_network(
    layout: str, convert: Callable[[State], State], tiny_cfg: CfgNode
) -> None:
    model = swin_segmentor(tiny_cfg)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    there = convert(expected)
    assert layout_of(there) == layout
    imported = (import_mask2former if layout == "mask2former" else import_huggingface)(there)
    torch.testing.assert_close(imported.state, expected)
    fresh = build_model(tiny_cfg)
    report = load_into(fresh, imported.state)
    assert not report.missing
    assert not report.skipped


def test_a_file_that_lacks_values_is_damaged(tiny_cfg: CfgNode) -> None:
    there = huggingface_state(swin_segmentor(tiny_cfg).state_dict(), _HUB)
    gone = next(name for name in there if name.endswith("layers.1.blocks.0.attention.self.value.bias"))
    del there[gone]
    with pytest.raises(CheckpointError, match=r"v_proj\.bias is not; the file is damaged"):
        import_huggingface(there)


@pytest.mark.reference
def test_equals_the_swin_segmentor_of_transformers(tiny_cfg: CfgNode) -> None:
    """Random weights and a size at which the windows of two stages are filled up."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    backbone = transformers.SwinConfig(
        embed_dim=WIDTH, depths=list(DEPTHS), num_heads=list(HEADS), window_size=WINDOW,
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
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
    ours = swin_segmentor(tiny_cfg)
    report = load_into(ours, import_huggingface(theirs.state_dict()).state)
    assert not report.missing
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


def test_published_swin_weights_start_a_backbone(tmp_path: Path) -> None:
    """Swin's own ImageNet files, whose patches are merged at the end of a stage; the classifier is left out."""
    backbone = TimmBackbone(NAME)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)
    state = {
        official_name(f"backbone.{name}").removeprefix("backbone."): tensor.clone()
        for name, tensor in backbone.state_dict().items()
        if not name.startswith("output_norms.")
    }
    state |= {"norm.weight": torch.ones(8 * WIDTH), "head.weight": torch.ones(10, 8 * WIDTH)}
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "swin.pth")
    fresh = TimmBackbone(NAME)
    report = load_backbone_weights(fresh, tmp_path / "swin.pth", key="MODEL.TIMM.NAME")
    assert all(name.startswith("backbone.output_norms.") for name in report.missing)
    assert report.unexpected == []
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(fresh.network.state_dict()[name], tensor), name
