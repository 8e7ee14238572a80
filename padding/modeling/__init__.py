# SPDX-License-Identifier: Apache-2.0
"""Models that methods share; importing this package registers them with Detectron2."""

from padding.modeling import head, maskformer, segment_classifier, small_resnet, timm_backbone

__all__ = ["head", "maskformer", "segment_classifier", "small_resnet", "timm_backbone"]
