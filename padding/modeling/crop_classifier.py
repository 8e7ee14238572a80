# SPDX-License-Identifier: Apache-2.0
"""CropClassifier: trains a backbone to name the segment in a small crop.

The stand-in for ImageNet weights where there are none (generated data): its checkpoint keeps the backbone under
``backbone.``, so that a segmentation network loads it and leaves its own head at the initial values.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from padding.modeling.batching import batch_images, require_keys, sample_name
from padding.modeling.label_space import training_split

__all__ = ["CropClassifier"]


@META_ARCH_REGISTRY.register()
class CropClassifier(nn.Module):
    """Backbone, global average of its coarsest feature, linear layer.

    ``forward`` takes samples with ``image`` (3, H, W), all of one size, and ``label`` int; it returns ``{"loss_cls"}``
    in training and ``[{"label_logits": (C,)}]`` in evaluation.
    """

    required_train_keys = ("image", "label")

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        feature_name: str,
        feature_channels: int,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: image -> features by name.
            feature_name: which feature is averaged.
            feature_channels: its channels.
            num_classes: C.
            pixel_mean: per channel, in the channel order of the input.
            pixel_std: per channel.
        """
        super().__init__()
        self.backbone = backbone
        self.feature_name = feature_name
        self.num_classes = num_classes
        self.classifier = nn.Linear(feature_channels, num_classes)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config; the classes are those of the first training set."""
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        coarsest = max(shapes, key=lambda name: shapes[name].stride)
        return {
            "backbone": backbone,
            "feature_name": coarsest,
            "feature_channels": shapes[coarsest].channels,
            "num_classes": training_split(cfg).num_classes,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Loss in training, class logits in evaluation.

        Raises:
            KeyError: if a training sample lacks a key.
            ValueError: if a label is out of range.
        """
        if self.training:
            require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        images = batch_images(
            batched_inputs,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=0,
            device=self.device,
        )
        logits = self.classifier(self.backbone(images.tensor)[self.feature_name].mean(dim=(2, 3)))
        if not self.training:
            return [{"label_logits": row} for row in logits]
        for sample in batched_inputs:
            if not 0 <= sample["label"] < self.num_classes:
                raise ValueError(
                    f"crop of {sample_name(sample)} has label {sample['label']}; expected 0 to {self.num_classes - 1}"
                )
        labels = torch.tensor([sample["label"] for sample in batched_inputs], device=self.device)
        return {"loss_cls": F.cross_entropy(logits.float(), labels)}
