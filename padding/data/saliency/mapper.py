# SPDX-License-Identifier: Apache-2.0
"""Mappers of images with saliency: alone, in a geometry of their own, or together with class labels.

Photographs of salient objects have about 400 x 300 pixels and one object; the crops of a street scene would not suit
them, so they are resized whole or scaled and cropped (INPUT.SALIENCY). Images with both labels keep the geometry of the
class labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from fvcore.transforms.transform import Transform

from padding.data.augmentation import AugmentationPlan, View, color_jitter, resize_to, scale_and_crop
from padding.data.mappers import MAPPER_REGISTRY, Mapper, SemanticMapper
from padding.data.saliency.maps import read_saliency, saliency_target, saliency_to_bytes
from padding.data.targets import pad_to_size
from padding.errors import ConfigError

_MOSTLY_KNOWN = 128  # of 255: a resized pixel is known if more than half of what it was made of is


def saliency_plan(cfg: CfgNode) -> AugmentationPlan:
    """Augmentation of the images with saliency alone, by INPUT.SALIENCY.MODE.

    Raises:
        ConfigError: the mode is unknown, or a size is no size.
    """
    keys, flip = cfg.INPUT.SALIENCY, cfg.INPUT.RANDOM_FLIP
    if keys.MODE == "resize":
        plan = resize_to(size=keys.SIZE, flip=flip)
    elif keys.MODE == "scale_crop":
        plan = scale_and_crop(factors=keys.SCALE_FACTORS, sampling="choice", crop_size=keys.CROP, flip=flip)
    else:
        raise ConfigError(f"INPUT.SALIENCY.MODE is '{keys.MODE}'; choose 'resize' or 'scale_crop'")
    return replace(plan, photometric=color_jitter(cfg.INPUT.FORMAT)) if cfg.INPUT.COLOR_AUG_SSD else plan


def transform_saliency(
    saliency: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], transform: Transform
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Move saliency with its image.

    A new pixel is the mean of the *known* ones it is made of: void beside an object does not dilute it.

    Args:
        saliency: (h, w) in [0, 1].
        known: (h, w).
        transform: geometric transform of the image.

    Returns:
        Grey values (H, W) 0 to 255, 0 where unknown, and the mask of known pixels.
    """
    grey = transform.apply_image(saliency_to_bytes(saliency * known))
    weight = transform.apply_image(known.astype(np.uint8) * np.uint8(255))
    now_known = weight >= _MOSTLY_KNOWN
    if weight.size and weight.min() < 255:
        # Saliency times known over known, both resized: the mean over known pixels alone.
        mean = np.rint(grey.astype(np.float32) * np.float32(255) / np.maximum(weight, 1))
        grey = np.where(now_known, np.minimum(mean, 255), 0).astype(np.uint8)
    return grey, now_known


def _add_saliency(sample: dict[str, Any], view: View, size: tuple[int, int] | None, *, binarize: bool) -> None:
    """Put ``saliency`` and ``saliency_valid`` into a sample whose image has been transformed and padded to ``size``."""
    grey, known = transform_saliency(*read_saliency(sample), view.transforms)
    name = str(sample["file_name"])
    target = pad_to_size(saliency_target(grey, binarize=binarize), size, 0, name=name)
    sample["saliency"] = torch.from_numpy(np.ascontiguousarray(target))[None]
    sample["saliency_valid"] = torch.from_numpy(np.ascontiguousarray(pad_to_size(known, size, False, name=name)))


@MAPPER_REGISTRY.register()
class SaliencyMapper(Mapper):
    """Image with ``saliency`` (1, H, W) float32 in [0, 1] and ``saliency_valid`` (H, W) bool, without class labels.

    ``saliency_valid`` is False in the padding and where saliency is unknown. ``is_labeled`` is False: there are no
    class labels.
    """

    @configurable
    def __init__(self, *, binarize: bool, **settings: Any) -> None:
        """Add to the settings of ``Mapper``: whether grey values become 0 and 1."""
        super().__init__(**settings)
        self.binarize = binarize

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings from the INPUT keys; the geometry in training is INPUT.SALIENCY's.

        Raises:
            ValueError: see ``saliency_plan``.
        """
        settings = {**cls._base_arguments(cfg, is_train), "extra_maps": (), "strong_views": 0}
        if is_train:
            settings["plan"] = saliency_plan(cfg)
        return {**settings, "binarize": cfg.INPUT.SALIENCY.BINARIZE}

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add the saliency."""
        sample["is_labeled"] = False
        _add_saliency(sample, view, self.plan.output_size, binarize=self.binarize)


@MAPPER_REGISTRY.register()
class JointSaliencyMapper(SemanticMapper):
    """The sample of ``SemanticMapper`` with ``saliency`` and ``saliency_valid`` of the same pixels."""

    @configurable
    def __init__(
        self,
        *,
        binarize: bool,
        num_classes: int,
        ignore_label: int,
        with_masks: bool,
        label_map: Mapping[int, int] | None = None,
        **settings: Any,
    ) -> None:
        """Add to the settings of ``SemanticMapper``: whether grey values become 0 and 1."""
        super().__init__(
            num_classes=num_classes,
            ignore_label=ignore_label,
            with_masks=with_masks,
            label_map=label_map,
            **settings,
        )
        self.binarize = binarize

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings of the semantic mapper, the same geometry included."""
        return {**super().from_config(cfg, is_train), "binarize": cfg.INPUT.SALIENCY.BINARIZE}

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add class labels and saliency."""
        super().add_targets(sample, view)
        _add_saliency(sample, view, self.plan.output_size, binarize=self.binarize)
