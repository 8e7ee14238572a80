# SPDX-License-Identifier: Apache-2.0
"""Models that methods share; whoever adds their keys to a configuration registers them with Detectron2."""

__all__ = ["register_models"]


def register_models() -> None:
    """Make the models, heads and backbones of this package known to Detectron2; a second call changes nothing."""
    from padding.modeling import head, maskformer, segment_classifier, small_resnet, timm_backbone  # noqa: F401
