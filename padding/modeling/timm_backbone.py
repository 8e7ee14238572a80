# SPDX-License-Identifier: Apache-2.0
"""Backbones of timm behind Detectron2's interface, always with random weights: nothing is ever downloaded.

Maps are called res2 to res5 like a ResNet's, so that every head here takes them. What a dense network needs beyond the
classifier is added where they leave: a LayerNorm (ConvNeXt, 2201.03545; Swin, as in Mask2Former), a batch norm and ReLU
(DenseNet, whose blocks end in bare convolutions). Channels-last memory order gives the same numbers; networks of
depthwise convolutions take three quarters of the time with it on a CPU.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice

_STAGES = ("res2", "res3", "res4", "res5")
NORMS = ("BN", "SyncBN", "FrozenBN")


class TimmBackbone(Backbone):
    """The last four levels of a timm network, or some of them.

    ``forward`` takes (B, 3, H, W) float and returns (B, C, about H/s, W/s) by name, see ``output_shape``.

    Attributes:
        network: timm's feature extractor; its parameters have timm's names, "stages_0.…" for "stages.0.…".
        output_norms: one module per returned map.
        name: of the network in timm.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        out_features: Sequence[str] = _STAGES,
        norm: str = "BN",
        freeze_at: int = 0,
        channels_last: bool = False,
    ) -> None:
        """Build the network with random weights.

        Args:
            name: of a network in timm, without a tag of weights.
            in_channels: of the image.
            output_stride: of the last map, 8, 16 or 32; the stages behind it are dilated.
            drop_path: probability of stochastic depth in the last block, as far as the network has it.
            out_features: which maps are returned; only these get a norm, so that every parameter is used.
            norm: "BN" leaves the network as timm has it; "SyncBN" takes its batch norms' statistics over all
                processes, "FrozenBN" keeps statistics, scale and offset of them at what the weights say. Networks
                without batch norms are the same with each.
            freeze_at: as for Detectron2's ResNet: 0 trains everything, 1 keeps what stands before res2, 2 also res2,
                up to 5, the whole network; batch norms of kept parts are frozen ones.
            channels_last: keep weights and maps in channels-last memory order.

        Raises:
            ConfigError: for a name that timm does not have, a wrong stride, an unknown map or norm, or a freeze_at
                beyond 0 to 5.
        """
        super().__init__()
        _check(name, output_stride, out_features, norm, freeze_at)
        self.name = name
        self._names = tuple(stage for stage in _STAGES if stage in out_features)
        indices = tuple(_STAGES.index(stage) - len(_STAGES) for stage in self._names)
        network = _create(name, output_stride, drop_path, in_chans=in_channels, out_indices=indices)
        strides = [min(stride, output_stride) for stride in network.feature_info.reduction()]
        channels = network.feature_info.channels()
        self._specs = {
            stage: ShapeSpec(channels=c, stride=s) for stage, c, s in zip(self._names, channels, strides, strict=True)
        }
        self._channels_last = getattr(network, "output_fmt", "") == "NHWC"  # Swin's and a few others' maps
        self.network = network
        self.output_norms = nn.ModuleDict(
            {stage: _output_norm(name, stage, spec) for stage, spec in self._specs.items()}
        )
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._freeze(norm, freeze_at)
        self.to(memory_format=self._memory_format)

    @property
    def size_divisibility(self) -> int:
        """Sides of the images are multiples of it: patch embeddings cut off the rest."""
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by name.

        Raises:
            ConfigError: the network takes images of one size alone, and these have another.
        """
        try:
            maps = self.network(images.contiguous(memory_format=self._memory_format))
        except AssertionError as error:  # how timm says so
            height, width = images.shape[-2:]
            raise ConfigError(
                f"MODEL.TIMM.NAME {self.name} cannot take images of {height} x {width} ({error}); choose a network for "
                "images of any size, such as a Swin, or crop and resize to the size it names"
            ) from error
        if self._channels_last:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        named = zip(self._names, maps, strict=True)
        return {stage: self.output_norms[stage](features) for stage, features in named}

    def _freeze(self, norm: str, freeze_at: int) -> None:
        """Switch off what is not trained; see ``__init__``."""
        from timm.layers import convert_sync_batchnorm
        from timm.utils.model import freeze_batch_norm_2d

        if norm == "SyncBN":
            self.network = convert_sync_batchnorm(self.network)
        kept = self._parts_up_to(freeze_at)
        for part in kept:
            self.network.get_submodule(part).requires_grad_(False)
        if norm == "FrozenBN":
            self.network = freeze_batch_norm_2d(self.network)
            return
        for part in kept:
            parent, _, name = part.rpartition(".")
            # A batch norm by itself becomes another module.
            self.network.get_submodule(parent).add_module(name, freeze_batch_norm_2d(self.network.get_submodule(part)))

    def _parts_up_to(self, freeze_at: int) -> list[str]:
        """Names of the parts that lie before res2 (1), or up to the end of res2 (2), res3 ..."""
        if freeze_at == 0:
            return []
        taps = [entry["module"] for entry in self.network.feature_info.info][-len(_STAGES) :]
        names = [name for name, _ in self.network.named_modules() if name]
        tap = taps[max(freeze_at - 2, 0)]
        last = next((name for name in names if name in (tap, tap.replace(".", "_"), f"model.{tap}")), None)
        if last is None:  # behind the last map that is asked for
            return [name for name, _ in self.network.named_children()]
        # timm registers parts in the order of computing.
        before = list(itertools.takewhile(lambda name: name != last, names))
        parts = [*before, last] if freeze_at >= 2 else before
        # Ancestors of the last part hold later ones as well.
        return [name for name in parts if not last.startswith(f"{name}.")]


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network that ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT`` describe."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        in_channels=input_shape.channels,
        output_stride=node.OUTPUT_STRIDE,
        drop_path=node.DROP_PATH,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        channels_last=node.CHANNELS_LAST or cfg.MODEL.BACKBONE.CHANNELS_LAST,
    )


def _check(name: str, output_stride: int, out_features: Sequence[str], norm: str, freeze_at: int) -> None:
    import timm

    # Also refuses "hf-hub:…", which timm would look up in the network.
    if not timm.is_model(name):
        raise ConfigError(f"timm {timm.__version__} has no network called '{name}'; timm.list_models() names them all")
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"OUTPUT_STRIDE of {name} is {output_stride}; expected 8, 16 or 32")
    unknown = [stage for stage in out_features if stage not in _STAGES]
    if unknown or not out_features:
        raise ConfigError(f"OUT_FEATURES of {name} is {list(out_features)}; expected some of {', '.join(_STAGES)}")
    check_choice(f"NORM of {name}", norm, NORMS)
    if not 0 <= freeze_at <= len(_STAGES) + 1:
        raise ConfigError(f"FREEZE_AT of {name} is {freeze_at}; expected 0 (train everything) to {len(_STAGES) + 1}")


def _create(name: str, output_stride: int, drop_path: float, **options: Any) -> Any:
    import timm
    from timm.layers import DropPath

    from padding.modeling.swin import fill_windows, swin_options

    is_densenet = name.startswith("densenet")  # timm cannot dilate it
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    if output_stride != 32 and not is_densenet:
        options["output_stride"] = output_stride
    if _is_swin(name):
        options |= swin_options()
    try:
        network: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
    except TypeError as error:
        raise ConfigError(
            f"timm cannot build {name} with OUTPUT_STRIDE {output_stride} and DROP_PATH {drop_path} ({error}); "
            "32 and 0 are what every network has"
        ) from error
    for module in network.modules():
        if isinstance(module, DropPath) and drop_path == 0:
            module.drop_prob = 0.0  # Swin has it without being asked
    if hasattr(network, "blocks") and (stages := [entry.get("stage", 0) for entry in network.feature_info.get_dicts()]):
        # EfficientNet and MobileNet would compute the stages behind the last map as well, and leave them untrained.
        network.blocks = network.blocks[: max(stages) or None]
    if is_densenet:
        _dilate_densenet(network, output_stride)
    if _is_swin(name):
        fill_windows(network)
    return network


def _is_swin(name: str) -> bool:
    """Whether a network is a Swin of the first version; Swin v2 and its kin have other blocks."""
    return name.startswith(("swin_tiny", "swin_small", "swin_base", "swin_large"))


def _output_norm(name: str, stage: str, spec: ShapeSpec) -> nn.Module:
    from timm.layers import BatchNormAct2d, LayerNorm2d

    if name.startswith("convnext"):
        return LayerNorm2d(spec.channels)
    if _is_swin(name):
        return LayerNorm2d(spec.channels, eps=1e-5)  # that of Swin's own norms
    if name.startswith("densenet") and stage != _STAGES[-1]:  # the last map carries timm's own
        return BatchNormAct2d(spec.channels)
    return nn.Identity()


def _dilate_densenet(network: nn.ModuleDict, output_stride: int) -> None:
    """Keep the resolution from ``output_stride`` on: no pooling before the blocks, their 3x3 convolutions dilated."""
    dilation = 1
    for index, stride in ((3, 16), (4, 32)):  # blocks 3 and 4, and what their stride would be
        if stride > output_stride:
            dilation *= 2
            network[f"features_transition{index - 1}"].pool = nn.Identity()
            for module in network[f"features_denseblock{index}"].modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.dilation = module.padding = (dilation, dilation)
