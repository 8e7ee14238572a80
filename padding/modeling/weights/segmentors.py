# SPDX-License-Identifier: Apache-2.0
"""Brings published segmentors to the parameter names of this project: official Mask2Former, Hugging Face Mask2Former.

Only names and layout change, never a value: the projections of queries, keys and values that ``transformers`` keeps
apart become the rows of one matrix, as in ``torch.nn.MultiheadAttention``. Everything is decided by the names in the
file; a name that no rule knows is an error, because a network that is loaded in part predicts nonsense in silence.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import CheckpointReport, normalise_keys

__all__ = ["BODY_NAMES", "Imported", "finish_import", "import_huggingface", "import_mask2former", "layout_of"]

State = dict[str, Tensor]

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
_NOT_NEEDED = re.compile(r"(^|\.)(pixel_mean|pixel_std|num_batches_tracked|relative_position_index|attn_mask)$")
# Without these nothing can be segmented; their absence means another kind of file.
_ESSENTIAL = (
    "backbone.",
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.",
    "sem_seg_head.predictor.transformer_cross_attention_layers.0.",
    "sem_seg_head.predictor.query_feat.",
    "sem_seg_head.predictor.class_embed.",
    "sem_seg_head.predictor.mask_embed.",
)


@dataclass
class Imported:
    """A file in the names of this project.

    Attributes:
        state: name -> tensor.
        renamed: name in the file -> name here; several old names may have become one.
        skipped: name in the file -> why it was left out.
        notes: what else was done, one sentence each.
    """

    state: State
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def report(self) -> CheckpointReport:
        """What became of every name of the file."""
        return CheckpointReport(matched=list(self.state), renamed=self.renamed, skipped=self.skipped)


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


def import_mask2former(state: Mapping[str, Tensor]) -> Imported:
    """Official Mask2Former file; its oldest names are brought up to date.

    Args:
        state: name -> tensor as in the file.

    Raises:
        CheckpointError: for names that no Mask2Former has, or if an essential part is absent.
    """
    named, renamed = normalise_keys(state)
    return finish_import(Imported(named, renamed))


def finish_import(imported: Imported, more_names: re.Pattern[str] | None = None) -> Imported:
    """Drop what no network needs, and refuse unknown names and files that lack an essential part.

    Args:
        imported: after renaming.
        more_names: names that are known beside ``BODY_NAMES``.
    """
    before = {new: old for old, new in imported.renamed.items()}
    unneeded = [name for name in imported.state if _NOT_NEEDED.search(name)]
    imported.skipped |= {before.get(name, name): "not needed" for name in unneeded}
    state = {name: tensor for name, tensor in imported.state.items() if not _NOT_NEEDED.search(name)}
    imported.renamed = {old: new for old, new in imported.renamed.items() if new in state}
    unknown = [name for name in state if not (BODY_NAMES.match(name) or (more_names and more_names.match(name)))]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} names of the file are unknown in this layout: {', '.join(unknown[:5])}. It holds another "
            "network, or another version of it."
        )
    absent = [part for part in _ESSENTIAL if not any(name.startswith(part) for name in state)]
    if absent:
        raise CheckpointError(f"the file lacks {', '.join(part + '*' for part in absent)}; it is no complete segmentor")
    imported.state = state
    return imported


# ----------------------------------------------------------------------------------------------- transformers

_ENCODER = r"pixel_level_module\.encoder\."
_DECODER = r"pixel_level_module\.decoder\."
_LAYER = r"transformer_module\.decoder\.layers\.(\d+)\."
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


# Name in transformers (without the leading "model.") -> name here; {} are the groups of the pattern.
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (_ENCODER + r"embedder\.embedder\.convolution\.(.+)", "backbone.stem.conv1.{}"),
    (_ENCODER + r"embedder\.embedder\.normalization\.(.+)", "backbone.stem.conv1.norm.{}"),
    (
        _ENCODER + r"encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.\d)\.(convolution|normalization)\.(.+)",
        _resnet,
    ),
    (_DECODER + r"input_projections\.(.+)", _HEAD + "pixel_decoder.input_proj.{}"),
    (_DECODER + r"level_embed", _HEAD + "pixel_decoder.transformer.level_embed"),
    (_DECODER + r"encoder\.layers\.(\d+)\.self_attn\.(.+)", _HERE_ENCODER + "{}.self_attn.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", _HERE_ENCODER + "{}.norm1.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", _HERE_ENCODER + "{}.norm2.{}"),
    (_DECODER + r"encoder\.layers\.(\d+)\.fc([12])\.(.+)", _HERE_ENCODER + "{}.linear{}.{}"),
    (_DECODER + r"mask_projection\.(.+)", _HEAD + "pixel_decoder.mask_features.{}"),
    (_DECODER + r"((?:adapter|layer)_\d+)\.([01])\.(.+)", _numbered_block),
    (r"transformer_module\.queries_embedder\.(.+)", _HEAD + "predictor.query_embed.{}"),
    (r"transformer_module\.queries_features\.(.+)", _HEAD + "predictor.query_feat.{}"),
    (r"transformer_module\.level_embed\.(.+)", _HEAD + "predictor.level_embed.{}"),
    (r"transformer_module\.input_projections\.(\d+)\.(.+)", _HEAD + "predictor.input_proj.{}.{}"),
    (_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", _SELF + "{}.self_attn.{}_proj.{}"),
    (_LAYER + r"self_attn\.(out_proj\..+)", _SELF + "{}.self_attn.{}"),
    (_LAYER + r"self_attn_layer_norm\.(.+)", _SELF + "{}.norm.{}"),
    (_LAYER + r"cross_attn\.(.+)", _CROSS + "{}.multihead_attn.{}"),
    (_LAYER + r"cross_attn_layer_norm\.(.+)", _CROSS + "{}.norm.{}"),
    (_LAYER + r"fc([12])\.(.+)", _FFN + "{}.linear{}.{}"),
    (_LAYER + r"final_layer_norm\.(.+)", _FFN + "{}.norm.{}"),
    (r"transformer_module\.decoder\.layernorm\.(.+)", _HEAD + "predictor.decoder_norm.{}"),
    (
        r"transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        _HEAD + "predictor.mask_embed.layers.{}.{}",
    ),
    (r"class_predictor\.(.+)", _HEAD + "predictor.class_embed.{}"),
    (r"criterion\.empty_weight", "criterion.empty_weight"),
)
_COMPILED = [(re.compile(pattern), target) for pattern, target in _RULES]
_SPLIT_PROJECTION = re.compile(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)")


def import_huggingface(state: Mapping[str, Tensor]) -> Imported:
    """Mask2Former of ``transformers`` (``Mask2FormerForUniversalSegmentation``) with a ResNet backbone.

    Args:
        state: name -> tensor as in ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        CheckpointError: if its backbone is no ResNet, or for names that no rule knows.
    """
    _refuse_other_backbones(state)
    renamed = {name: _name_here(name) for name in state}
    named = {new: state[old] for old, new in renamed.items()}
    fused = _fuse_projections(named)
    renamed = {old: _SPLIT_PROJECTION.sub(r"\1in_proj_\3", new) for old, new in renamed.items()}
    return finish_import(Imported(fused, {old: new for old, new in renamed.items() if old != new}))


def _name_here(name: str) -> str:
    short = name.removeprefix("model.")
    for pattern, target in _COMPILED:
        match = pattern.fullmatch(short)
        if match is not None:
            return target(match) if callable(target) else target.format(*match.groups())
    return name


def _refuse_other_backbones(state: Mapping[str, Tensor]) -> None:
    encoder = [name.removeprefix("model.") for name in state if "pixel_level_module.encoder." in name]
    known = [name for name in encoder if any(pattern.fullmatch(name) for pattern, _ in _COMPILED[:3])]
    if len(known) == len(encoder) and encoder:
        return
    foreign = next((name for name in encoder if name not in set(known)), "none")
    is_swin = any(".patch_embeddings." in name or ".relative_position_" in name for name in encoder)
    kind = "a Swin Transformer" if is_swin else "no ResNet of transformers"
    raise CheckpointError(
        f"the backbone of this file is {kind} (first name: {foreign}), which this project does not have; only ResNet "
        "backbones can be imported from transformers. Published Swin models have no counterpart here: train with one "
        "of the backbones of configs/ instead."
    )


def _fuse_projections(state: State) -> State:
    """Stack ``q_proj``, ``k_proj`` and ``v_proj`` to ``in_proj``, in this order."""
    fused: State = {}
    for name, tensor in state.items():
        match = _SPLIT_PROJECTION.fullmatch(name)
        if match is None:
            fused[name] = tensor
            continue
        prefix, _, leaf = match.groups()
        parts = [f"{prefix}{which}_proj.{leaf}" for which in "qkv"]
        absent = [part for part in parts if part not in state]
        if absent:
            raise CheckpointError(f"{name} is there but {absent[0]} is not; the file is damaged")
        # PyTorch's joint projection has the rows of q, k and v below each other.
        fused[f"{prefix}in_proj_{leaf}"] = torch.cat([state[part] for part in parts])
    return fused
