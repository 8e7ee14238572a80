# SPDX-License-Identifier: Apache-2.0
"""The names of this project turned into those of ``transformers``' Mask2Former: the importer's rules the other way.

Written down from the parameter names that ``Mask2FormerForUniversalSegmentation`` 5.23 has, not from the importer.
"""

from torch import Tensor

_PIXEL = "model.pixel_level_module."
_DECODER = "model.transformer_module.decoder."
# Beginning here -> beginning there; tried in this order.
_BEGINNINGS = (
    ("backbone.stem.conv1.norm.", _PIXEL + "encoder.embedder.embedder.normalization."),
    ("backbone.stem.conv1.", _PIXEL + "encoder.embedder.embedder.convolution."),
    ("sem_seg_head.pixel_decoder.input_proj.", _PIXEL + "decoder.input_projections."),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", _PIXEL + "decoder.level_embed"),
    ("sem_seg_head.pixel_decoder.mask_features.", _PIXEL + "decoder.mask_projection."),
    ("sem_seg_head.pixel_decoder.adapter_1.norm.", _PIXEL + "decoder.adapter_1.1."),
    ("sem_seg_head.pixel_decoder.adapter_1.", _PIXEL + "decoder.adapter_1.0."),
    ("sem_seg_head.pixel_decoder.layer_1.norm.", _PIXEL + "decoder.layer_1.1."),
    ("sem_seg_head.pixel_decoder.layer_1.", _PIXEL + "decoder.layer_1.0."),
    ("sem_seg_head.predictor.query_feat.", "model.transformer_module.queries_features."),
    ("sem_seg_head.predictor.query_embed.", "model.transformer_module.queries_embedder."),
    ("sem_seg_head.predictor.level_embed.", "model.transformer_module.level_embed."),
    ("sem_seg_head.predictor.decoder_norm.", _DECODER + "layernorm."),
    ("sem_seg_head.predictor.class_embed.", "class_predictor."),
    ("criterion.", "criterion."),
)
_ENCODER_PARTS = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "fc1", "linear2": "fc2"}
_DECODER_PARTS = {
    "transformer_self_attention_layers": {"self_attn": "self_attn", "norm": "self_attn_layer_norm"},
    "transformer_cross_attention_layers": {"multihead_attn": "cross_attn", "norm": "cross_attn_layer_norm"},
    "transformer_ffn_layers": {"linear1": "fc1", "linear2": "fc2", "norm": "final_layer_norm"},
}


def huggingface_name(name: str) -> str:
    """Name in ``transformers``; those of fused projections end in ``in_proj_*`` still."""
    for here, there in _BEGINNINGS:
        if name.startswith(here):
            return there + name.removeprefix(here)
    words = name.split(".")
    if words[0] == "backbone":  # backbone.res2.0.conv1.norm.weight
        stage, block, unit, *leaf = words[1:]
        place = "shortcut" if unit == "shortcut" else f"layer.{int(unit[-1]) - 1}"
        part = "normalization" if leaf[0] == "norm" else "convolution"
        return f"{_PIXEL}encoder.encoder.stages.{int(stage[-1]) - 2}.layers.{block}.{place}.{part}.{leaf[-1]}"
    if words[1] == "pixel_decoder":  # sem_seg_head.pixel_decoder.transformer.encoder.layers.0.norm1.weight
        layer, part, *leaf = words[5:]
        return ".".join([f"{_PIXEL}decoder.encoder.layers.{layer}", _ENCODER_PARTS.get(part, part), *leaf])
    if words[2] == "mask_embed":  # sem_seg_head.predictor.mask_embed.layers.0.weight
        return f"{_DECODER}mask_predictor.mask_embedder.{words[4]}.0.{words[5]}"
    kind, layer, part, *leaf = words[2:]  # sem_seg_head.predictor.transformer_ffn_layers.0.linear1.weight
    return ".".join([f"{_DECODER}layers.{layer}", _DECODER_PARTS[kind][part], *leaf])


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole state: queries, keys and values of self-attention apart, and the counters that BatchNorm keeps."""
    there: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = huggingface_name(name)
        if "self_attn.in_proj_" in new:
            leaf = new.rsplit("_", 1)[1]
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                there[new.replace(f"in_proj_{leaf}", f"{which}_proj.{leaf}")] = part.clone()
            continue
        there[new] = tensor
        if new.endswith("running_var"):
            there[new.replace("running_var", "num_batches_tracked")] = tensor.new_zeros((), device=tensor.device)
    return there
