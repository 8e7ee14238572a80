# SPDX-License-Identifier: Apache-2.0
"""Models that methods share; importing this package registers them with Detectron2."""

from padding.modeling import crop_classifier, head, maskformer, small_resnet

__all__ = ["crop_classifier", "head", "maskformer", "small_resnet"]
