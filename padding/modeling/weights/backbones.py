# SPDX-License-Identifier: Apache-2.0
"""Brings published ImageNet weights to the names of our backbones, whatever names their file gives them.

Layouts: torchvision's and timm's ResNet, Detectron2's ``.pkl``, torchvision's and timm's DenseNet, timm's and the
authors' ConvNeXt, and of PVT v1 the authors' (https://github.com/whai362/PVT, keys and values in one matrix) and that
of ``transformers`` (``PvtModel``, keys and values apart). Only names and layout change, never a value. What serves
classification alone is left out and listed.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from padding.modeling.weights.renaming import Fusion, Imported, Layout, normalise_keys


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


def _pvt_stage(template: str) -> Callable[[re.Match[str]], str]:
    """Stages count from 1 there and from 0 here."""

    def rename(match: re.Match[str]) -> str:
        stage, *rest = match.groups()
        return template.format(int(stage) - 1, *rest)

    return rename


_BLOCK, _POSITIONS = "stages.{}.blocks.{}.", ".absolute_pos_embed"
_LAYOUTS = (
    Layout(
        "ResNet of torchvision or timm",
        (
            (r"conv1\.weight", "stem.conv1.weight"),
            (r"bn1\.(.+)", "stem.conv1.norm.{}"),
            (r"layer(\d)\.(\d+)\.(.+)", _resnet_stage),
        ),
        mark="layer1.0.conv1.weight",
        classifier=r"fc\.",
    ),
    Layout("ResNet of Detectron2", mark="stem.conv1.weight", classifier=r"stem\.fc\."),
    Layout(
        "DenseNet of torchvision or timm",
        (
            # As torchvision.org's files write the layers of a block.
            (r"features\.(.+\.denselayer\d+\.)(norm|conv)\.(\d)\.(.+)", "network.features_{}{}{}.{}"),
            (r"features\.(.+)", "network.features_{}"),
        ),
        mark="features.conv0.weight",
        classifier=r"classifier\.",
    ),
    Layout(
        "ConvNeXt of timm",
        ((r"(stem|stages)\.(\d)\.(.+)", "network.{}_{}.{}"),),
        mark="stages.0.blocks.0.conv_dw.weight",
        classifier=r"(head|norm_pre)\.",
    ),
    Layout(
        "ConvNeXt of its authors",
        (
            (r"downsample_layers\.0\.(\d)\.(.+)", "network.stem_{}.{}"),
            (r"downsample_layers\.(\d)\.(\d)\.(.+)", "network.stages_{}.downsample.{}.{}"),
            (r"stages\.(\d)\.(\d+)\.dwconv\.(.+)", "network.stages_{}.blocks.{}.conv_dw.{}"),
            (r"stages\.(\d)\.(\d+)\.pwconv([12])\.(.+)", "network.stages_{}.blocks.{}.mlp.fc{}.{}"),
            (r"stages\.(\d)\.(\d+)\.(gamma|norm\..+)", "network.stages_{}.blocks.{}.{}"),
        ),
        mark="downsample_layers.0.0.weight",
        classifier=r"(head|norm)\.",
    ),
    Layout(
        "PVT of its authors",
        (
            (r"patch_embed(\d)\.(.+)", _pvt_stage("stages.{}.embed.{}")),
            (r"pos_embed(\d)", _pvt_stage("stages.{}.embed" + _POSITIONS)),
            (r"block(\d)\.(\d+)\.(.+)", _pvt_stage(_BLOCK + "{}")),
        ),
        mark="patch_embed1.proj.weight",
        classifier=r"cls_token|norm\.|head\.",
        class_row=_POSITIONS,
    ),
    Layout(
        "PVT of transformers",
        (
            (r"encoder\.patch_embeddings\.(\d)\.projection\.(.+)", "stages.{}.embed.proj.{}"),
            (r"encoder\.patch_embeddings\.(\d)\.layer_norm\.(.+)", "stages.{}.embed.norm.{}"),
            (r"encoder\.patch_embeddings\.(\d)\.position_embeddings", "stages.{}.embed" + _POSITIONS),
            (r"encoder\.block\.(\d)\.(\d+)\.layer_norm_(\d)\.(.+)", _BLOCK + "norm{}.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.query\.(.+)", _BLOCK + "attn.q.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.(key|value)\.(.+)", _BLOCK + "attn.{}.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.sequence_reduction\.(.+)", _BLOCK + "attn.sr.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.self\.layer_norm\.(.+)", _BLOCK + "attn.norm.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.attention\.output\.dense\.(.+)", _BLOCK + "attn.proj.{}"),
            (r"encoder\.block\.(\d)\.(\d+)\.mlp\.dense(\d)\.(.+)", _BLOCK + "mlp.fc{}.{}"),
        ),
        mark="encoder.patch_embeddings.0.projection.weight",
        classifier=r"encoder\.patch_embeddings\.\d\.cls_token|encoder\.layer_norm\.|classifier\.",
        class_row=_POSITIONS,
        fusion=Fusion(r"(.*\.attn\.)(key|value)\.(.+)", ("key", "value"), "{}kv.{}"),
    ),
)
_OURS = Layout("backbone of this project")
_PREFIXES = ("backbone.", "pvt.")


def import_backbone(state: Mapping[str, Tensor]) -> Imported:
    """Bring the names of a weight file to those of our backbones, deciding by the names alone.

    A name that no rule knows is kept, so that loading reports it.

    Args:
        state: name -> tensor as in the file.

    Raises:
        CheckpointError: if some of the tensors to be joined are not there.
    """
    imported = Imported(normalise_keys(state)[0])
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in imported.state)), "")
    imported.skip([name for name in imported.state if not name.startswith(prefix)], "not of the backbone")
    imported.rename_all(lambda name: name.removeprefix(prefix))
    imported.apply(next((layout for layout in _LAYOUTS if layout.mark in imported.state), _OURS))
    return imported
