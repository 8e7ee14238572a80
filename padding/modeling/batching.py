# SPDX-License-Identifier: Apache-2.0
"""Between lists of samples and padded tensors: images, label maps and targets in, logits back to the original size."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn

from padding.errors import ConfigError, SampleError

Sample = Mapping[str, Any]
_MAPS_AT_A_TIME = 8


def sample_name(sample: Sample) -> str:
    """What errors call a sample: its file and its id, as far as known."""
    name = str(sample.get("file_name", "without a file name"))
    return f"{name} (id {sample['image_id']})" if "image_id" in sample else name


def require_keys(batched_inputs: Sequence[Sample], keys: Sequence[str], model_name: str) -> None:
    """Check that every sample has what a model trains on.

    Raises:
        SampleError: names the first missing key and its sample.
    """
    for sample in batched_inputs:
        for key in keys:
            if key not in sample:
                raise SampleError(
                    f"sample {sample_name(sample)} has no '{key}', which {model_name} trains on (needed: "
                    f"{', '.join(keys)}; there: {', '.join(sorted(sample))}); choose a mapper that makes it "
                    "(INPUT.DATASET_MAPPER_NAME)"
                )


def register_pixel_statistics(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a model the buffers ``pixel_mean`` and ``pixel_std``, (C, 1, 1) float, from numbers of each channel."""
    # Not persistent: they are the config's, and a checkpoint of other numbers must not replace them silently.
    model.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
    model.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), persistent=False)


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Bring values to a device; from the CPU to another one without waiting for what that is doing."""
    return values.to(device, non_blocking=torch.device(device).type != "cpu")


def normalize_image(image: Tensor, pixel_mean: Tensor, pixel_std: Tensor) -> Tensor:
    """(C, H, W) uint8 or float in [0, 255] -> float on the device of the statistics, 0 for the mean colour."""
    return (image.to(pixel_mean.device, non_blocking=True) - pixel_mean) / pixel_std


def original_size(sample: Sample) -> tuple[int, int]:
    """(h, w) that a prediction of a sample has: its ``height`` and ``width``, else the size of its ``image``."""
    height, width = sample["image"].shape[-2:]
    return int(sample.get("height", height)), int(sample.get("width", width))


def map_size(maps: Tensor) -> tuple[int, int]:
    """(H, W) of maps (..., H, W)."""
    return maps.shape[-2], maps.shape[-1]


def batch_images(
    batched_inputs: Sequence[Sample],
    *,
    pixel_mean: Tensor,
    pixel_std: Tensor,
    size_divisibility: int,
    key: str = "image",
) -> ImageList:
    """Normalise images and pad them to one size, on the right and below, with the mean colour.

    Args:
        batched_inputs: samples with ``key``, (C, H_i, W_i) uint8 or float in [0, 255].
        pixel_mean: (C, 1, 1) float, on the device where the batch will live.
        pixel_std: (C, 1, 1) float.
        size_divisibility: H and W of the batch become multiples of it; <= 1 for no constraint.
        key: which image of the samples.

    Returns:
        ImageList: ``tensor`` (B, C, H, W) float, ``image_sizes`` the true (H_i, W_i).

    Raises:
        ValueError: if an image is no (C, H, W) tensor of the expected channels; names the sample.
    """
    images = []
    for sample in batched_inputs:
        image = sample[key]
        if image.dim() != 3 or image.shape[0] != pixel_mean.shape[0]:
            raise ValueError(
                f"image of sample {sample_name(sample)} has shape {tuple(image.shape)}; expected "
                f"({pixel_mean.shape[0]}, height, width)"
            )
        images.append(normalize_image(image, pixel_mean, pixel_std))
    # After the normalisation, so that the zeros of the padding are the mean colour.
    return ImageList.from_tensors(images, size_divisibility=max(size_divisibility, 0))


def batch_label_maps(
    batched_inputs: Sequence[Sample],
    *,
    padded_size: tuple[int, int],
    ignore_label: int,
    device: torch.device | str,
    key: str = "sem_seg",
) -> Tensor:
    """Pad label maps to the size of the image batch.

    Args:
        batched_inputs: samples with ``key``, (H_i, W_i) of any dtype.
        padded_size: (H, W) of the image batch.
        ignore_label: value of the padding.
        device: where the batch lives.
        key: which map of the samples.

    Returns:
        (B, H, W), dtype of the maps.

    Raises:
        ValueError: if a map and its image differ in size, or a map exceeds the batch; names the sample.
    """
    maps = []
    for sample in batched_inputs:
        label_map = sample[key]
        _check_same_size(sample, key, tuple(label_map.shape[-2:]), padded_size)
        maps.append(_pad_to(label_map.to(device, non_blocking=True), padded_size, ignore_label))
    return torch.stack(maps)


def batch_valid_masks(
    batched_inputs: Sequence[Sample], *, padded_size: tuple[int, int], device: torch.device | str
) -> Tensor:
    """Where a batch shows an image: (B, H, W) bool, False in all padding.

    Args:
        batched_inputs: samples with ``image`` and, where a mapper padded or rotated it, ``valid`` (H_i, W_i) bool.
        padded_size: (H, W) of the image batch.
        device: where the batch lives.

    Raises:
        ValueError: as ``batch_label_maps``.
    """
    masks = [
        {**s, "valid": s["valid"] if "valid" in s else torch.ones(s["image"].shape[-2:], dtype=torch.bool)}
        for s in batched_inputs
    ]
    return batch_label_maps(masks, padded_size=padded_size, ignore_label=False, device=device, key="valid")


def prepare_targets(
    batched_inputs: Sequence[Sample],
    padded_size: tuple[int, int],
    device: torch.device | str,
    *,
    num_classes: int | None = None,
    keep_empty: bool = False,
) -> list[dict[str, Tensor]]:
    """Classes and padded masks of the segments of each image; segments without a pixel are left out.

    Args:
        batched_inputs: samples with ``instances``: ``gt_classes`` (N,) int64 and ``gt_masks`` (N, H_i, W_i) bool or
            BitMasks.
        padded_size: (H, W) of the image batch.
        device: where the targets live.
        num_classes: if given, classes are checked to lie in [0, num_classes).
        keep_empty: segments without a pixel stay.

    Returns:
        Per image ``labels`` (M,) int64 and ``masks`` (M, H, W) bool.

    Raises:
        ValueError: if masks and image differ in size or a class is out of range; names the sample.
    """
    targets = []
    for sample in batched_inputs:
        instances = sample["instances"]
        labels = instances.gt_classes
        masks = getattr(instances.gt_masks, "tensor", instances.gt_masks).bool()
        _check_same_size(sample, "instances.gt_masks", tuple(masks.shape[-2:]), padded_size)
        if num_classes is not None:
            _check_classes(sample, labels, num_classes)
        if not keep_empty:
            # A crop may have cut a segment off: it has no pixel that a point could fall on.
            keep = masks.flatten(1).view(torch.uint8).amax(dim=1).bool()  # ten times as fast as any()
            if not keep.all():  # a copy of all masks, which are usually all kept
                masks, labels = masks[keep], labels[keep]
        masks = masks.to(device, non_blocking=True)
        targets.append(
            {"labels": labels.to(device, non_blocking=True), "masks": _pad_to(masks, padded_size, value=False)}
        )
    return targets


def resize_logits(
    logits: Tensor,
    *,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    padded_size: tuple[int, int] | None = None,
) -> Tensor:
    """Bring maps of one image from the network's resolution to the original image's.

    Bilinear to the padded input, the padding cut off, bilinear to the output: the published post-processing.

    Args:
        logits: (N, H', W') float; N may be 0.
        image_size: (H_i, W_i) of the image inside the padded input.
        output_size: (h, w) of the original image.
        padded_size: (H, W) of the network's input; None if ``logits`` have that size already.

    Returns:
        (N, h, w) float.
    """

    def resize(maps: Tensor) -> Tensor:
        maps = maps if padded_size is None else _bilinear(maps, padded_size)
        return _bilinear(maps[:, : image_size[0], : image_size[1]], output_size)

    # A few maps at a time on a CPU: the padded ones need not be there all together.
    if logits.device.type != "cpu" or len(logits) <= _MAPS_AT_A_TIME:
        return resize(logits)
    resized = logits.new_empty(len(logits), *output_size)
    for start in range(0, len(logits), _MAPS_AT_A_TIME):
        part = slice(start, start + _MAPS_AT_A_TIME)
        resized[part] = resize(logits[part])
    return resized


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if len(maps) == 0:  # F.interpolate refuses an empty batch on some devices
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _check_same_size(sample: Sample, key: str, size: tuple[int, ...], padded_size: tuple[int, int]) -> None:
    expected = tuple(sample["image"].shape[-2:]) if "image" in sample else size
    if size != expected or size[0] > padded_size[0] or size[1] > padded_size[1]:
        raise ValueError(
            f"'{key}' of sample {sample_name(sample)} has size {size}, its image {expected}, the batch "
            f"{tuple(padded_size)}; the mapper must transform and pad labels like the image"
        )


def _check_classes(sample: Sample, labels: Tensor, num_classes: int) -> None:
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if lowest < 0 or highest >= num_classes:
        raise ConfigError(
            f"sample {sample_name(sample)} has classes from {lowest} to {highest}; the model knows 0 to "
            f"{num_classes - 1}. Check MODEL.SEM_SEG_HEAD.NUM_CLASSES and the ids the data set was registered with."
        )


def _pad_to(maps: Tensor, size: tuple[int, int], value: float) -> Tensor:
    return F.pad(maps, (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2]), value=value)
