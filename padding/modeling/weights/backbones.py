# SPDX-License-Identifier: Apache-2.0
"""Puts published ImageNet weights into a backbone, whatever names their file gives them.

Layouts: torchvision's and timm's ResNet, Detectron2's ``.pkl``, torchvision's and timm's DenseNet, timm's and the
authors' ConvNeXt, and of PVT v1 the authors' (https://github.com/whai362/PVT, keys and values in one matrix) and that
of ``transformers`` (``PvtModel``, keys and values apart). Only names and layout change, never a value. What serves
classification alone is left out and listed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import CheckpointReport, load_into, normalise_keys, read_checkpoint

__all__ = ["BackboneWeights", "convert_backbone_weights", "load_backbone_weights"]

State = dict[str, Tensor]
_Target = str | Callable[[re.Match[str]], str]


@dataclass
class BackboneWeights:
    """A file in the names of our backbones.

    Attributes:
        layout: whose names the file has.
        state: name -> tensor.
        renamed: name in the file -> name here; two old names may have become one.
        skipped: name in the file -> why it is left out.
    """

    layout: str
    state: State = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layout:
    """Names of one kind of file.

    Attributes:
        name: for messages.
        mark: a name that only this kind has.
        rules: pattern of a name in the file -> name here; {} are the groups of the pattern.
        classifier: names of what serves classification alone.
    """

    name: str
    mark: str
    rules: tuple[tuple[str, _Target], ...]
    classifier: str = "(?!)"


def _resnet_stage(match: re.Match[str]) -> str:
    """Stages count from 1 there and are called res2 to res5 here."""
    stage, block, part = match.groups()
    for old, new in (
        (r"bn(\d)\.", r"conv\1.norm."),
        (r"downsample\.0\.", "shortcut."),
        (r"downsample\.1\.", "shortcut.norm."),
    ):
        part = re.sub(f"^{old}", new, part)
    return f"res{int(stage) + 1}.{block}.{part}"


def _pvt_stage(template: str, first: int) -> Callable[[re.Match[str]], str]:
    """Stages count from ``first`` there and from 0 here."""

    def rename(match: re.Match[str]) -> str:
        stage, *rest = match.groups()
        return template.format(int(stage) - first, *rest)

    return rename


_BLOCK = "stages.{}.blocks.{}."
_LAYOUTS = (
    _Layout(
        "ResNet of torchvision or timm",
        "layer1.0.conv1.weight",
        (
            (r"conv1\.weight", "stem.conv1.weight"),
            (r"bn1\.(.+)", "stem.conv1.norm.{}"),
            (r"layer(\d)\.(\d+)\.(.+)", _resnet_stage),
        ),
        r"fc\.",
    ),
    _Layout("ResNet of Detectron2", "stem.conv1.weight", (), r"stem\.fc\."),
    _Layout(
        "DenseNet of torchvision or timm",
        "features.conv0.weight",
        (
            # As torchvision.org's files write the layers of a block.
            (r"features\.(.+\.denselayer\d+\.)(norm|conv)\.(\d)\.(.+)", "network.features_{}{}{}.{}"),
            (r"features\.(.+)", "network.features_{}"),
        ),
        r"classifier\.",
    ),
    _Layout(
        "ConvNeXt of timm",
        "stages.0.blocks.0.conv_dw.weight",
        ((r"(stem|stages)\.(\d)\.(.+)", "network.{}_{}.{}"),),
        r"(head|norm_pre)\.",
    ),
    _Layout(
        "ConvNeXt of its authors",
        "downsample_layers.0.0.weight",
        (
            (r"downsample_layers\.0\.(\d)\.(.+)", "network.stem_{}.{}"),
            (r"downsample_layers\.(\d)\.(\d)\.(.+)", "network.stages_{}.downsample.{}.{}"),
            (r"stages\.(\d)\.(\d+)\.dwconv\.(.+)", "network.stages_{}.blocks.{}.conv_dw.{}"),
            (r"stages\.(\d)\.(\d+)\.pwconv([12])\.(.+)", "network.stages_{}.blocks.{}.mlp.fc{}.{}"),
            (r"stages\.(\d)\.(\d+)\.(gamma|norm\..+)", "network.stages_{}.blocks.{}.{}"),
        ),
        r"(head|norm)\.",
    ),
    _Layout(
        "PVT of its authors",
        "patch_embed1.proj.weight",
        (
            (r"patch_embed(\d)\.(.+)", _pvt_stage("stages.{}.embed.{}", 1)),
            (r"pos_embed(\d)", _pvt_stage("stages.{}.embed.absolute_pos_embed", 1)),
            (r"block(\d)\.(\d+)\.(.+)", _pvt_stage(_BLOCK + "{}", 1)),
        ),
        r"cls_token|norm\.|head\.",
    ),
    _Layout(
        "PVT of transformers",
        "encoder.patch_embeddings.0.projection.weight",
        (
            (r"encoder\.patch_embeddings\.(\d)\.projection\.(.+)", "stages.{}.embed.proj.{}"),
            (r"encoder\.patch_embeddings\.(\d)\.layer_norm\.(.+)", "stages.{}.embed.norm.{}"),
            (r"encoder\.patch_embeddings\.(\d)\.position_embeddings", "stages.{}.embed.absolute_pos_embed"),
            (r"encoder\.block\.(\d)\.(\d+)\.layer_norm_(\d)\.(.+)", _BLOCK + "norm{}.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.query\.(.+)", _BLOCK + "attn.q.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.(key|value)\.(.+)", _BLOCK + "attn.{}.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.sequence_reduction\.(.+)", _BLOCK + "attn.sr.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.layer_norm\.(.+)", _BLOCK + "attn.norm.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.output\.dense\.(.+)", _BLOCK + "attn.proj.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.mlp\.dense(\d)\.(.+)", _BLOCK + "mlp.fc{}.{}"),
        ),
        r"encoder\.patch_embeddings\.\d\.cls_token|encoder\.layer_norm\.|classifier\.",
    ),
)
_OURS = _Layout("backbone of this project", "", ())
_PREFIXES = ("backbone.", "pvt.")


def load_backbone_weights(backbone: nn.Module, path: str | Path, *, key: str) -> CheckpointReport:
    """Load a file into a backbone, in place.

    Args:
        backbone: any of ours.
        path: local file that ``read_checkpoint`` reads.
        key: that names the backbone in the configuration, for messages.

    Returns:
        What was used, renamed, left out, and what the file does not have; names start with ``backbone.``.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it cannot be read, or does not hold the whole backbone; the backbone is then unchanged.
    """
    weights = convert_backbone_weights(read_checkpoint(path))
    try:
        report = load_into(
            nn.ModuleDict({"backbone": backbone}),
            {f"backbone.{name}": tensor for name, tensor in weights.state.items()},
            allow_missing=("backbone.output_norms.",),  # only the dense network has them
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} has the names of a {weights.layout} and does not fit this backbone. Compare {key} with the "
            f"file's network and its depth.\n{error}"
        ) from error
    report.renamed = {old: f"backbone.{new}" for old, new in weights.renamed.items()}
    report.skipped |= weights.skipped
    return report


def convert_backbone_weights(state: Mapping[str, Tensor]) -> BackboneWeights:
    """Bring the names of a weight file to those of our backbones, deciding by the names alone.

    A name that no rule knows is kept, so that loading reports it.

    Args:
        state: name -> tensor as in the file.
    """
    published, _ = normalise_keys(state)
    names, old_names = _without_prefix(published)
    # The first layout whose mark is there: marks are names that no other layout has.
    layout = next((layout for layout in _LAYOUTS if layout.mark in names), _OURS)
    result = BackboneWeights(layout.name)
    used = set(old_names.values())
    result.skipped = {name: "not of the backbone" for name in published if name not in used}
    for name, tensor in names.items():
        if re.match(layout.classifier, name):
            result.skipped[old_names[name]] = "serves classification alone"
            continue
        new = _renamed(name, layout.rules)
        result.state[new] = tensor
        if new != old_names[name]:
            result.renamed[old_names[name]] = new
    if layout.name.startswith("PVT"):
        _drop_class_row(result)
        _fuse_keys_and_values(result)
    return result


def _without_prefix(state: Mapping[str, Tensor]) -> tuple[State, dict[str, str]]:
    """Names without what a larger network puts before them, and for each its name in the file."""
    for prefix in _PREFIXES:
        inside = [name for name in state if name.startswith(prefix)]
        if inside:
            old_names = {name.removeprefix(prefix): name for name in inside}
            return {name: state[old] for name, old in old_names.items()}, old_names
    return dict(state), {name: name for name in state}


def _renamed(name: str, rules: tuple[tuple[str, _Target], ...]) -> str:
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return target(match) if callable(target) else target.format(*match.groups())
    return name


def _drop_class_row(weights: BackboneWeights) -> None:
    """Published tables of the last stage have a row for the class token before those of the grid."""
    for name, table in weights.state.items():
        rows = table.shape[1] if name.endswith(".absolute_pos_embed") else 0
        # h0 w0 + 1 rows in place of a square number.
        if rows > 1 and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
            weights.state[name] = table[:, 1:]
            weights.skipped[f"{name}[0]"] = "position of the class token"


def _fuse_keys_and_values(weights: BackboneWeights) -> None:
    """Stack ``key`` and ``value`` to ``kv``, in this order."""
    for name in [name for name in weights.state if ".attn.key." in name]:
        partner = name.replace(".attn.key.", ".attn.value.")
        if partner not in weights.state:
            raise CheckpointError(f"{name} is there but {partner} is not; the file is damaged")
        fused = name.replace(".attn.key.", ".attn.kv.")
        weights.state[fused] = torch.cat([weights.state.pop(name), weights.state.pop(partner)])
        weights.renamed = {old: fused if new in (name, partner) else new for old, new in weights.renamed.items()}
