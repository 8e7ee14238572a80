# SPDX-License-Identifier: Apache-2.0
"""Training samples of the sizes that a configuration asks for, without any file: what a rehearsed step is fed with."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from padding.data.mappers import augmentation_kind
from padding.data.sample import strong_view_names

SEGMENTS = 8  # of an image, about as many as COCO's panoptic images have


def training_size(cfg: CfgNode, image_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the largest training image that the INPUT keys make of photographs of one size."""
    keys, kind = cfg.INPUT, augmentation_kind(cfg)
    if kind == "jitter":
        return (keys.IMAGE_SIZE, keys.IMAGE_SIZE)
    if kind in ("scale_crop", "resize"):
        return (keys.CROP.SIZE[0], keys.CROP.SIZE[1])
    if keys.SIZE_DIVISIBILITY > 0:
        return (keys.SIZE_DIVISIBILITY, keys.SIZE_DIVISIBILITY)
    height, width = resized(image_size, max(keys.MIN_SIZE_TRAIN), keys.MAX_SIZE_TRAIN)
    if keys.CROP.ENABLED and keys.CROP.TYPE == "absolute":
        return (min(height, keys.CROP.SIZE[0]), min(width, keys.CROP.SIZE[1]))
    return (height, width)


def resized(image_size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """(h, w) with the shorter side ``shortest`` unless the other would exceed ``longest``; 0 leaves it as it is."""
    if shortest == 0:
        return image_size
    factor = min(shortest / min(image_size), longest / max(image_size))
    return (round(image_size[0] * factor), round(image_size[1] * factor))


def stand_in_sample(
    cfg: CfgNode, size: tuple[int, int], num_classes: int, *, image_id: int = 0, labeled: bool = True
) -> dict[str, Any]:
    """Noise with as many rectangular segments as an image has, in every form that a method may ask for.

    Args:
        cfg: its INPUT keys name further views.
        size: (H, W).
        num_classes: K; labels go round.
        image_id: of the sample, and seed of its noise.
        labeled: whether it has class labels.
    """
    noise = torch.Generator().manual_seed(image_id)
    image = torch.randint(0, 256, (3, *size), generator=noise, dtype=torch.uint8)
    name = f"stand-in {image_id}"
    sample: dict[str, Any] = {"image": image, "height": size[0], "width": size[1], "image_id": image_id}
    sample |= {"file_name": name, "is_labeled": labeled, "valid": torch.ones(size, dtype=torch.bool)}
    if cfg.INPUT.STRONG_VIEW:
        sample |= {view: image.clone() for view in strong_view_names(cfg.INPUT.STRONG_VIEWS)}
    if labeled:
        # Vertical stripes.
        index = torch.arange(size[1]).mul(SEGMENTS).div(size[1], rounding_mode="floor").expand(size)
        classes = (torch.arange(SEGMENTS) + image_id) % num_classes
        instances = Instances(size)
        instances.gt_classes = classes
        instances.gt_masks = index[None] == torch.arange(SEGMENTS)[:, None, None]
        sample |= {"instances": instances, "sem_seg": classes[index]}
    return sample


def add_saliency(sample: dict[str, Any]) -> dict[str, Any]:
    """Mark the left half of a sample as salient."""
    height, width = sample["image"].shape[-2:]
    saliency = torch.zeros(1, height, width)
    saliency[..., : width // 2] = 1.0
    return {**sample, "saliency": saliency, "saliency_valid": torch.ones(height, width, dtype=torch.bool)}
