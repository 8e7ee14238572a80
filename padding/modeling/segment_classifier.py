# SPDX-License-Identifier: Apache-2.0
"""SegmentClassifier: trains a backbone to name given segments, at every level of its features.

The stand-in for ImageNet weights where there are none (generated data): its checkpoint keeps the backbone under
``backbone.``, so that a segmentation network loads it and leaves its own head at the initial values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from padding.modeling.batching import batch_images, prepare_targets, register_pixel_statistics, require_keys
from padding.modeling.label_space import training_split
from padding.modeling.memory_order import build_ordered_backbone


def pool_segments(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature of each segment.

    Args:
        features: (C, h, w) float.
        masks: (N, H, W) bool, of the same image in full resolution; none is empty.

    Returns:
        (N, C) float. A mask is brought to (h, w) by the share of each cell that it covers, so that a segment smaller
        than a cell still has a mean.
    """
    share = F.interpolate(masks[None].to(features.dtype), size=features.shape[-2:], mode="area")[0].flatten(1)
    # (N, h w) @ (h w, C): a weighted mean of the cells.
    return share @ features.flatten(1).T / share.sum(dim=1, keepdim=True)


@META_ARCH_REGISTRY.register()
class SegmentClassifier(nn.Module):
    """Backbone, mean of each level's features over each true segment, one linear layer per level.

    ``forward`` takes samples with ``image`` (3, H, W) and ``instances``; it returns ``{"loss_cls_<level>"}`` in
    training and ``[{"label_logits": (N, C)}]``, the mean over the levels, in evaluation. Every level is trained,
    because a mask classification head reads every level.
    """

    required_train_keys = ("image", "instances")

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        feature_channels: Mapping[str, int],
        num_classes: int,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: image -> features by name.
            feature_channels: levels that are trained, and their channels.
            num_classes: C.
            size_divisibility: H and W of a batch are multiples of it.
            pixel_mean: per channel, in the channel order of the input.
            pixel_std: per channel.
        """
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.size_divisibility = size_divisibility
        self.classifiers = nn.ModuleDict(
            {level: nn.Linear(channels, num_classes) for level, channels in feature_channels.items()}
        )
        register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config; the classes are those of the first training set."""
        backbone = build_ordered_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "feature_channels": {name: shapes[name].channels for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES},
            "num_classes": training_split(cfg).num_classes,
            "size_divisibility": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, backbone.size_divisibility),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, class logits of the given segments in evaluation.

        Raises:
            KeyError: if a sample lacks a key.
            ValueError: if a label is out of range.
        """
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        images = batch_images(
            batched_inputs,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=self.size_divisibility,
        )
        padded_size = tuple(images.tensor.shape[-2:])
        targets = prepare_targets(batched_inputs, padded_size, self.device, num_classes=self.num_classes)
        features = self.backbone(images.tensor)
        masks = [target["masks"] for target in targets]
        # (sum of N, C) logits of each level
        logits = {
            level: layer(torch.cat([pool_segments(f, m) for f, m in zip(features[level], masks, strict=True)]))
            for level, layer in self.classifiers.items()
        }
        if not self.training:
            mean = torch.stack(list(logits.values())).mean(dim=0)
            return [{"label_logits": rows} for rows in mean.split([len(m) for m in masks])]
        labels = torch.cat([target["labels"] for target in targets])
        # The sum divided by at least 1 is the mean, and 0 with a gradient for a batch without segments.
        return {
            f"loss_cls_{level}": F.cross_entropy(rows.float(), labels, reduction="sum") / max(len(labels), 1)
            for level, rows in logits.items()
        }
