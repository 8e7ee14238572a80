# SPDX-License-Identifier: Apache-2.0
"""Brings published segmentors to the parameter names of this project: official Mask2Former, Hugging Face Mask2Former.

Only names and layout change, never a value: the projections of queries, keys and values that ``transformers`` keeps
apart become the rows of one matrix, as in ``torch.nn.MultiheadAttention``. Everything is decided by the names in the
file; a name that no rule knows is an error, because a network that is loaded in part predicts nonsense in silence.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from padding.errors import CheckpointError
from padding.modeling.weights.renaming import NOT_NEEDED, Fusion, Imported, Layout, Rule, normalise_keys, renamed

_ATTENTION = r"(in_proj_(weight|bias)|out_proj\.(weight|bias))"
_WB = r"\.(weight|bias)"
# Every name of a Mask2Former with a ResNet of Detectron2, or with another backbone of this project.
BODY_NAMES = re.compile(
    rf"""^(?:
    backbone\..+
    | sem_seg_head\.pixel_decoder\.(?:
        input_proj\.\d+\.[01]{_WB}
        | transformer\.level_embed
        | transformer\.encoder\.layers\.\d+\.(?:
            self_attn\.(?:sampling_offsets|attention_weights|value_proj|output_proj){_WB}
            | norm[12]{_WB} | linear[12]{_WB})
        | mask_features{_WB}
        | (?:adapter|layer)_\d+\.(?:weight|bias|norm{_WB}))
    | sem_seg_head\.predictor\.(?:
        transformer_self_attention_layers\.\d+\.(?:self_attn\.{_ATTENTION}|norm{_WB})
        | transformer_cross_attention_layers\.\d+\.(?:multihead_attn\.{_ATTENTION}|norm{_WB})
        | transformer_ffn_layers\.\d+\.(?:linear[12]|norm){_WB}
        | input_proj\.\d+{_WB}
        | decoder_norm{_WB} | class_embed{_WB} | mask_embed\.layers\.\d+{_WB}
        | (?:query_feat|query_embed|level_embed)\.weight)
    | criterion\.empty_weight
    )$""",
    re.VERBOSE,
)
# Without these nothing can be segmented; their absence means another kind of file.
_ESSENTIAL = (
    "backbone.",
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.",
    "sem_seg_head.predictor.transformer_cross_attention_layers.0.",
    "sem_seg_head.predictor.query_feat.",
    "sem_seg_head.predictor.class_embed.",
    "sem_seg_head.predictor.mask_embed.",
)


def layout_of(state: Mapping[str, Tensor]) -> str:
    """Kind of file, by its names: "mask2former", "pading" or "huggingface".

    Raises:
        CheckpointError: if it is none of them.
    """
    names = list(normalise_keys(state)[0])
    if any(re.match(r"(model\.)?(pixel_level_module|transformer_module)\.", name) for name in names):
        return "huggingface"
    if any(name.startswith("sem_seg_head.predictor.") for name in names):
        return "pading" if any(name.startswith(("new_fc.", "generator.")) for name in names) else "mask2former"
    raise CheckpointError(
        f"no layout has names like {names[0] if names else 'none'!r}: expected sem_seg_head.predictor.* (Mask2Former, "
        "PADing) or model.transformer_module.* (transformers)"
    )


def import_mask2former(state: Mapping[str, Tensor], more_names: re.Pattern[str] | None = None) -> Imported:
    """Official Mask2Former file; its oldest names are brought up to date.

    Args:
        state: name -> tensor as in the file.
        more_names: names that are known beside ``BODY_NAMES``.

    Raises:
        CheckpointError: for names that no Mask2Former has, or if an essential part is absent.
    """
    imported = Imported(*normalise_keys(state))
    if _SWIN_MARK in imported.state:
        imported.apply(_OFFICIAL_SWIN)
    _finish(imported, more_names)
    return imported


def _merged_later(template: str) -> Callable[[re.Match[str]], str]:
    """Patches are merged at the end of a stage there, and at the beginning of the next one in timm."""

    def rename(match: re.Match[str]) -> str:
        return template.format(int(match[1]) + 1, match[2])

    return rename


def _map_norm(offset: int) -> Callable[[re.Match[str]], str]:
    """Norm of a map, which is called res2 to res5 here."""
    return lambda match: f"backbone.output_norms.res{int(match[1]) + offset}.{match[2]}"


_SWIN_MARK = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
_MERGE = "backbone.network.layers_{}.downsample.{}"
_OFFICIAL_SWIN = Layout(
    "Mask2Former with Swin",
    (
        (r"backbone\.patch_embed\.(.+)", "backbone.network.patch_embed.{}"),
        (r"backbone\.layers\.(\d)\.downsample\.(.+)", _merged_later(_MERGE)),
        (r"backbone\.layers\.(\d)\.blocks\.(.+)", "backbone.network.layers_{}.blocks.{}"),
        (r"backbone\.norm(\d)\.(.+)", _map_norm(2)),
    ),
)


def _finish(imported: Imported, more_names: re.Pattern[str] | None = None) -> None:
    """Drop what no network needs, and refuse unknown names and files that lack an essential part."""
    imported.skip([name for name in imported.state if NOT_NEEDED.search(name)], "not needed")
    known = (BODY_NAMES,) if more_names is None else (BODY_NAMES, more_names)
    unknown = [name for name in imported.state if not any(names.match(name) for names in known)]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} names of the file are unknown in this layout: {', '.join(unknown[:5])}. It holds another "
            "network, or another version of it."
        )
    absent = [part for part in _ESSENTIAL if not any(name.startswith(part) for name in imported.state)]
    if absent:
        raise CheckpointError(f"the file lacks {', '.join(part + '*' for part in absent)}; it is no complete segmentor")


# ----------------------------------------------------------------------------------------------- transformers

_ENCODER = r"(?:model\.)?pixel_level_module\.encoder\."
_DECODER = r"(?:model\.)?pixel_level_module\.decoder\."
_TRANSFORMER = r"(?:model\.)?transformer_module\."
_LAYER = _TRANSFORMER + r"decoder\.layers\.(\d+)\."
_HEAD = "sem_seg_head."
_HERE_ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder.layers."
_SELF = "sem_seg_head.predictor.transformer_self_attention_layers."
_CROSS = "sem_seg_head.predictor.transformer_cross_attention_layers."
_FFN = "sem_seg_head.predictor.transformer_ffn_layers."
_CONV_PARTS = {"convolution": "", "normalization": ".norm"}


def _resnet(match: re.Match[str]) -> str:
    """Stages count from 0 there and are called res2 to res5 here; so do the convolutions of a block."""
    stage, block, place, part, leaf = match.groups()
    unit = "shortcut" if place == "shortcut" else f"conv{int(place.removeprefix('layer.')) + 1}"
    return f"backbone.res{int(stage) + 2}.{block}.{unit}{_CONV_PARTS[part]}.{leaf}"


def _numbered_block(match: re.Match[str]) -> str:
    """``adapter_1.0`` is the convolution, ``adapter_1.1`` its norm."""
    name, index, leaf = match.groups()
    return f"{_HEAD}pixel_decoder.{name}{'.norm' if index == '1' else ''}.{leaf}"


_ENCODER_RULES: tuple[Rule, ...] = (
    (_ENCODER + r"embedder\.embedder\.convolution\.(.+)", "backbone.stem.conv1.{}"),
    (_ENCODER + r"embedder\.embedder\.normalization\.(.+)", "backbone.stem.conv1.norm.{}"),
    (
        _ENCODER + r"encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.\d)\.(convolution|normalization)\.(.+)",
        _resnet,
    ),
)
# Names of files on the hub, and those that versions from 5 on write: "attention.self.query" is "attention.q_proj".
_SWIN = _ENCODER + r"(?:swin\.)?"
_BLOCK = _SWIN + r"encoder\.layers\.(\d)\.blocks\.(\d+)\."
_HERE_BLOCK = "backbone.network.layers_{}.blocks.{}."


def _swin_projection(match: re.Match[str]) -> str:
    """Queries, keys and values by one name, to be joined."""
    stage, block, part, leaf = match.groups()
    return f"{_HERE_BLOCK.format(stage, block)}attn.{part[0]}_proj.{leaf}"


_SWIN_RULES: tuple[Rule, ...] = (
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.(.+)", "backbone.network.patch_embed.proj.{}"),
    (_SWIN + r"embeddings\.norm\.(.+)", "backbone.network.patch_embed.norm.{}"),
    (_BLOCK + r"layernorm_before\.(.+)", _HERE_BLOCK + "norm1.{}"),
    (_BLOCK + r"layernorm_after\.(.+)", _HERE_BLOCK + "norm2.{}"),
    (_BLOCK + r"attention\.(?:self|relative_position_bias)\.(relative_position_\w+)", _HERE_BLOCK + "attn.{}"),
    (_BLOCK + r"attention\.(?:self\.)?(query|key|value|[qkv]_proj)\.(.+)", _swin_projection),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", _HERE_BLOCK + "attn.proj.{}"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", _HERE_BLOCK + "mlp.fc1.{}"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", _HERE_BLOCK + "mlp.fc2.{}"),
    (_SWIN + r"encoder\.layers\.(\d)\.downsample\.(.+)", _merged_later(_MERGE)),
    (_SWIN + r"layernorm\.(.+)", "backbone.network.norm.{}"),
    (_ENCODER + r"hidden_states_norms\.stage(\d)\.(.+)", _map_norm(1)),
)
_RULES: tuple[Rule, ...] = (
    *_ENCODER_RULES,
    *_SWIN_RULES,
    (_DECODER + r"input_projections\.(.+)", _HEAD + "pixel_decoder.input_proj.{}"),
    (_DECODER + r"level_embed", _HEAD + "pixel_decoder.transformer.level_embed"),
    (_DECODER + r"encoder\.layers\.(\d+)\.self_attn\.(.+)", _HERE_ENCODER + "{}.self_attn.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", _HERE_ENCODER + "{}.norm1.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", _HERE_ENCODER + "{}.norm2.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.fc([12])\.(.+)", _HERE_ENCODER + "{}.linear{}.{}"),
    (_DECODER + r"mask_projection\.(.+)", _HEAD + "pixel_decoder.mask_features.{}"),
    (_DECODER + r"((?:adapter|layer)_\d+)\.([01])\.(.+)", _numbered_block),
    (_TRANSFORMER + r"queries_embedder\.(.+)", _HEAD + "predictor.query_embed.{}"),
    (_TRANSFORMER + r"queries_features\.(.+)", _HEAD + "predictor.query_feat.{}"),
    (_TRANSFORMER + r"level_embed\.(.+)", _HEAD + "predictor.level_embed.{}"),
    (_TRANSFORMER + r"input_projections\.(\d+)\.(.+)", _HEAD + "predictor.input_proj.{}.{}"),
    (_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", _SELF + "{}.self_attn.{}_proj.{}"),
    (_LAYER + r"self_attn\.(out_proj\..+)", _SELF + "{}.self_attn.{}"),
    (_LAYER + r"self_attn_layer_norm\.(.+)", _SELF + "{}.norm.{}"),
    (_LAYER + r"cross_attn\.(.+)", _CROSS + "{}.multihead_attn.{}"),
    (_LAYER + r"cross_attn_layer_norm\.(.+)", _CROSS + "{}.norm.{}"),
    (_LAYER + r"fc([12])\.(.+)", _FFN + "{}.linear{}.{}"),
    (_LAYER + r"final_layer_norm\.(.+)", _FFN + "{}.norm.{}"),
    (_TRANSFORMER + r"decoder\.layernorm\.(.+)", _HEAD + "predictor.decoder_norm.{}"),
    (
        _TRANSFORMER + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        _HEAD + "predictor.mask_embed.layers.{}.{}",
    ),
    (r"(?:model\.)?class_predictor\.(.+)", _HEAD + "predictor.class_embed.{}"),
    (r"(?:model\.)?criterion\.empty_weight", "criterion.empty_weight"),
)
_LAYOUT = Layout(
    "Mask2Former of transformers",
    _RULES,
    fusion=Fusion(
        r"(sem_seg_head\..*\.self_attn\.)([qkv]_proj)\.(weight|bias)", ("q_proj", "k_proj", "v_proj"), "{}in_proj_{}"
    ),
)

_SWIN_ATTENTION = Layout(
    _LAYOUT.name,
    classifier=r"backbone\.network\.norm\.",
    fusion=Fusion(r"(backbone\..*\.attn\.)([qkv]_proj)\.(weight|bias)", ("q_proj", "k_proj", "v_proj"), "{}qkv.{}"),
)


def import_huggingface(state: Mapping[str, Tensor]) -> Imported:
    """Mask2Former of ``transformers`` (``Mask2FormerForUniversalSegmentation``) with a ResNet or a Swin as backbone.

    Args:
        state: name -> tensor as in ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        CheckpointError: if its backbone is neither, or for names that no rule knows.
    """
    _refuse_other_backbones(state)
    imported = Imported(dict(state))
    imported.apply(_LAYOUT)
    imported.apply(_SWIN_ATTENTION)
    _finish(imported)
    return imported


def _refuse_other_backbones(state: Mapping[str, Tensor]) -> None:
    encoder = [name.removeprefix("model.") for name in state if "pixel_level_module.encoder." in name]
    rules = (*_ENCODER_RULES, *_SWIN_RULES)
    foreign = next((name for name in encoder if renamed(name, rules) == name), None)
    if encoder and foreign is None:
        return
    raise CheckpointError(
        f"the backbone of this file is neither a ResNet nor a Swin of transformers (first name: {foreign or 'none'}); "
        "only these can be imported: train with one of the backbones of configs/ instead"
    )
