# SPDX-License-Identifier: Apache-2.0
"""The masked-attention decoder against torch's attention and against a slow decoder in the published order."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padding.modeling.position_encoding import sine_position_encoding
from padding.modeling.transformer_decoder import (
    MaskedTransformerDecoder,
    MultiHeadAttention,
    attention_allowed,
    mask_logits,
)

SIZES = [(2, 3), (4, 6), (8, 12)]


def build(**changes) -> MaskedTransformerDecoder:
    settings = {
        "in_channels": 8,
        "mask_dim": 6,
        "num_classes": 5,
        "hidden_dim": 8,
        "num_queries": 7,
        "num_heads": 2,
        "dim_feedforward": 16,
        "num_layers": 4,
    }
    return MaskedTransformerDecoder(**{**settings, **changes})


def draw(channels: int = 8, batch: int = 2) -> tuple[list[Tensor], Tensor]:
    return [torch.randn(batch, channels, *size) for size in SIZES], torch.randn(batch, 6, 16, 24)


def published_order(decoder: MaskedTransformerDecoder, maps: list[Tensor], mask_features: Tensor) -> list[Tensor]:
    """Masks of all predictions: full masks at every layer, resized, copied for each head, nn.MultiheadAttention."""

    def attend(ours: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None) -> Tensor:
        theirs = nn.MultiheadAttention(query.shape[-1], ours.num_heads, batch_first=True)
        theirs.load_state_dict(ours.state_dict())
        return theirs(query, key, value, attn_mask=blocked)[0]

    B, num_heads = mask_features.shape[0], decoder.transformer_self_attention_layers[0].self_attn.num_heads
    x = decoder.query_feat.weight.repeat(B, 1, 1)
    position = decoder.query_embed.weight.repeat(B, 1, 1)
    masks = [torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(decoder.decoder_norm(x)), mask_features)]
    for i, (cross, own, ffn) in enumerate(
        zip(
            decoder.transformer_cross_attention_layers,
            decoder.transformer_self_attention_layers,
            decoder.transformer_ffn_layers,
            strict=True,
        )
    ):
        level = maps[i % 3]
        resized = F.interpolate(masks[-1], size=level.shape[-2:], mode="bilinear", align_corners=False)
        blocked = (resized.sigmoid().flatten(2)[:, None].repeat(1, num_heads, 1, 1).flatten(0, 1) < 0.5).detach()
        blocked[blocked.sum(-1) == blocked.shape[-1]] = False
        memory = level.flatten(2).transpose(1, 2) + decoder.level_embed.weight[i % 3]
        encoding = sine_position_encoding(*level.shape[-2:], 8).flatten(2).transpose(1, 2)
        x = cross.norm(x + attend(cross.multihead_attn, x + position, memory + encoding, memory, blocked))
        x = own.norm(x + attend(own.self_attn, x + position, x + position, x, None))
        x = ffn.norm(x + ffn.linear2(F.relu(ffn.linear1(x))))
        masks.append(torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(decoder.decoder_norm(x)), mask_features))
    return masks


def test_attention_equals_torch_with_the_same_parameters() -> None:
    ours, theirs = MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(3, 4, 8), torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    allowed = torch.rand(3, 4, 6) < 0.5
    allowed[..., 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~allowed.repeat_interleave(2, dim=0))
    torch.testing.assert_close(ours(query, key, value, allowed), expected)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])
    with pytest.raises(ValueError, match="width 8 is not a multiple of 3 heads"):
        MultiHeadAttention(8, 3)


def test_every_prediction_equals_the_published_order() -> None:
    decoder, (maps, mask_features) = build(num_layers=5), draw()
    outputs = decoder(maps, mask_features, with_aux=True)
    masks = [aux["pred_masks"] for aux in outputs["aux_outputs"]] + [outputs["pred_masks"]]
    expected = published_order(decoder, maps, mask_features)
    assert len(masks) == 6
    for found, wanted in zip(masks, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_leaving_out_the_intermediate_predictions_changes_nothing_else(pre_norm: bool) -> None:
    decoder, (maps, mask_features) = build(pre_norm=pre_norm), draw()
    full, short = (decoder(maps, mask_features, with_aux=with_aux) for with_aux in (True, False))
    assert short["aux_outputs"] == []
    assert len(full["aux_outputs"]) == 4
    for key in ("pred_logits", "pred_masks", "pred_embeddings"):
        torch.testing.assert_close(short[key], full[key])


def test_products_are_the_masks_read_by_image_and_query() -> None:
    decoder, (maps, mask_features) = build(), draw()
    whole, products = (decoder(maps, mask_features, with_aux=True, as_products=kind) for kind in (False, True))
    for full, product in zip((whole, *whole["aux_outputs"]), (products, *products["aux_outputs"]), strict=True):
        torch.testing.assert_close(product["pred_logits"], full["pred_logits"])
        for image, masks in enumerate(full["pred_masks"]):
            torch.testing.assert_close(product["pred_masks"][image], masks)
            chosen = torch.tensor([2, 0])
            torch.testing.assert_close(product["pred_masks"][image, chosen], masks[chosen])
            assert product["pred_masks"][image, chosen[:0]].shape == (0, *masks.shape[1:])


def test_resizing_commutes_with_the_dot_product() -> None:
    embeddings, features = torch.randn(2, 7, 6), torch.randn(2, 6, 16, 24)
    for size in SIZES:
        late = F.interpolate(mask_logits(embeddings, features), size=size, mode="bilinear", align_corners=False)
        early = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(mask_logits(embeddings, early), late, rtol=1e-5, atol=1e-5)


def test_outputs_have_the_agreed_shapes_and_belong_together() -> None:
    decoder, (maps, mask_features) = build(), draw()
    outputs = decoder(maps, mask_features, with_aux=True)
    assert outputs["pred_logits"].shape == (2, 7, 6)
    assert outputs["pred_masks"].shape == (2, 7, 16, 24)
    assert outputs["pred_embeddings"].shape == (2, 7, 8)
    torch.testing.assert_close(decoder.class_embed(outputs["pred_embeddings"]), outputs["pred_logits"])
    for aux in outputs["aux_outputs"]:
        assert {key: tuple(value.shape) for key, value in aux.items()} == {
            "pred_logits": (2, 7, 6),
            "pred_masks": (2, 7, 16, 24),
        }


def test_a_query_that_blocks_everything_may_look_everywhere() -> None:
    logits = torch.tensor([[[-1.0, 2.0], [-3.0, 0.0]], [[-1.0, -2.0], [-3.0, -0.1]]])[None]
    allowed = attention_allowed(logits)
    assert allowed.tolist() == [[[False, True, False, True], [True, True, True, True]]]


def test_a_decoder_without_layers_predicts_from_the_learned_queries() -> None:
    decoder, (maps, mask_features) = build(num_layers=0), draw()
    outputs = decoder(maps, mask_features, with_aux=True)
    assert outputs["aux_outputs"] == []
    torch.testing.assert_close(
        outputs["pred_embeddings"], decoder.decoder_norm(decoder.query_feat.weight).expand(2, -1, -1)
    )


def test_maps_of_another_width_are_projected() -> None:
    assert [name for name in build().state_dict() if name.startswith("input_proj")] == []
    expected = [f"input_proj.{level}.{part}" for level in range(3) for part in ("weight", "bias")]
    assert [name for name in build(project_input=True).state_dict() if name.startswith("input_proj")] == expected
    decoder, (maps, mask_features) = build(in_channels=4), draw(channels=4)
    assert [name for name in decoder.state_dict() if name.startswith("input_proj")] == expected
    assert decoder(maps, mask_features, with_aux=False)["pred_masks"].shape == (2, 7, 16, 24)


def test_every_parameter_gets_a_gradient() -> None:
    decoder, (maps, mask_features) = build(), draw()
    outputs = decoder(maps, mask_features, with_aux=True)
    predictions = [outputs, *outputs["aux_outputs"]]
    sum(p[key].square().sum() for p in predictions for key in ("pred_logits", "pred_masks")).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
