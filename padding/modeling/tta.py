# SPDX-License-Identifier: Apache-2.0
"""One image through a network for semantic segmentation: whole or in windows, at several scales and mirrored.

What is averaged are probabilities, each view and each overlap with the same weight. Pure functions of a network, an
image and a plan, so that every method tests its models in the same way; evaluation and ``Predictor`` read one plan.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from padding.errors import ConfigError
from padding.modeling.batching import normalize_image, original_size, to_device

Network = Callable[[Tensor], Mapping[str, Tensor]]
"""(B, C, H, W) -> logits (B, K, h, w) of any resolution by name; one channel is the logit of a yes-or-no map."""

MODES = ("whole", "slide", "center_crop")
_DEFAULT_OVERLAP = 1 / 3


@dataclass(frozen=True)
class SegmentationPlan:
    """How an image is segmented (``TEST.SEM_SEG``).

    Attributes:
        mode: "whole" image; "slide", overlapping windows; "center_crop", the middle of the image alone, which is no
            result of the image and serves to compare with publications that test in this way.
        crop_size: (height, width) of a window in pixels of the scaled image, or of the middle in those of the image.
        stride: (height, width) between windows, at most their size.
        scales: factors on the image's size.
        flip: average with the mirrored image.
        size_divisibility: both sides of what the network sees are multiples of it.
    """

    mode: str = "whole"
    crop_size: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: names the key.
        """
        if self.mode not in MODES:
            raise ConfigError(f"TEST.SEM_SEG.MODE is {self.mode!r}; known are {', '.join(MODES)}")
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(
                f"TEST.SEM_SEG.SCALES is {self.scales}; expected positive factors, (1.0,) for the image itself"
            )
        if self.size_divisibility < 1:
            raise ValueError(f"size_divisibility is {self.size_divisibility}; expected at least 1")
        if self.mode != "whole" and min(self.crop_size) < 1:
            raise ConfigError(f"TEST.SEM_SEG.CROP_SIZE is {self.crop_size}; expected a height and a width of pixels")
        if self.mode == "slide" and not all(1 <= s <= c for s, c in zip(self.stride, self.crop_size, strict=True)):
            raise ConfigError(
                f"TEST.SEM_SEG.STRIDE is {self.stride}; expected 1 to {self.crop_size}, TEST.SEM_SEG.CROP_SIZE: larger "
                "strides leave pixels out"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, *, size_divisibility: int = 32) -> "SegmentationPlan":
        """Read ``TEST.SEM_SEG``.

        Args:
            cfg: the full configuration.
            size_divisibility: of the network.

        Raises:
            ValueError: for a value that makes no sense; names the key.
        """
        node = cfg.TEST.SEM_SEG
        crop = _pair("CROP_SIZE", node.CROP_SIZE)
        stride = _pair("STRIDE", node.STRIDE)
        return cls(
            mode=node.MODE,
            crop_size=crop,
            stride=(stride[0] or _default_stride(crop[0]), stride[1] or _default_stride(crop[1])),
            scales=tuple(float(scale) for scale in node.SCALES),
            flip=node.FLIP,
            size_divisibility=size_divisibility,
        )


@torch.no_grad()
def segment(
    network: Network, image: Tensor, plan: SegmentationPlan, *, output_size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Class probabilities of every pixel of an image, averaged over the views of a plan.

    Views are added up as they come: memory does not grow with their number. Each view's logits are enlarged to the
    view's size before they become probabilities, and these are brought to the output's size.

    Args:
        network: logits of a batch, one image at a time here; all its outputs are averaged in the same passes.
        image: (C, H, W) float, normalised, so that 0 is the mean colour; padding is 0.
        plan: how.
        output_size: (h, w) of the result; None for (H, W).

    Returns:
        By name (K, h, w) float32 probabilities that sum to 1 over K, or (1, h, w) for a yes-or-no map. With
        "center_crop" all are 0 outside the middle (see ``scored_pixels``).

    Raises:
        ValueError: if the image or an output of the network has another shape.
    """
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (channels, height, width)")
    height, width = image.shape[-2:]
    size = output_size or (height, width)
    if plan.mode != "center_crop":
        return _average_of_views(network, image, plan, size)
    rows, columns = (_middle(length, crop) for length, crop in zip((height, width), plan.crop_size, strict=True))
    middle = image[:, rows, columns]
    scores = _average_of_views(network, middle, plan, (middle.shape[1], middle.shape[2]))
    # (left, right, top, bottom) of F.pad: the result has the image's size, zeros outside the middle.
    margins = (columns.start, width - columns.stop, rows.start, height - rows.stop)
    return {name: _bilinear(F.pad(part, margins), size) for name, part in scores.items()}


def segment_sample(
    network: Network, sample: Mapping[str, Any], plan: SegmentationPlan, *, pixel_mean: Tensor, pixel_std: Tensor
) -> dict[str, Tensor]:
    """``segment`` for a sample of a test mapper: its ``image`` (C, H, W) uint8, the result at its original size."""
    image = normalize_image(sample["image"], pixel_mean, pixel_std)
    return segment(network, image, plan, output_size=original_size(sample))


def scored_pixels(scores: Tensor) -> Tensor:
    """Pixels that were segmented: (K, h, w) probabilities -> (h, w) bool; False where all are 0."""
    return scores.amax(dim=0) > 0


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover ``length`` pixels; the last window ends with the image.

    >>> window_starts(1024, 800, 533)
    [0, 224]

    Args:
        length: size of the image along one axis.
        window: size of a window.
        stride: between windows, at most ``window``.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _average_of_views(
    network: Network, image: Tensor, plan: SegmentationPlan, size: tuple[int, int]
) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    total: dict[str, Tensor] = {}
    for scale in plan.scales:
        # The image is resized, not the logits: a network sees objects at the scale it is given.
        view = _resized_image(image, (max(1, round(height * scale)), max(1, round(width * scale))))
        scores = _segment_view(network, view, plan)
        if plan.flip:
            for name, mirrored in _segment_view(network, view.flip(-1), plan).items():
                # Mirrored back before it is added.
                scores[name] += mirrored.flip(-1)
        _add(total, {name: _bilinear(part, size) for name, part in scores.items()})
    num_views = len(plan.scales) * (2 if plan.flip else 1)
    return {name: part.div_(num_views) if num_views > 1 else part for name, part in total.items()}


def _segment_view(network: Network, view: Tensor, plan: SegmentationPlan) -> dict[str, Tensor]:
    """Probabilities (K, H, W) of one view, the mean over the windows that cover a pixel."""
    height, width = view.shape[-2:]
    if plan.mode != "slide":
        return _window_probabilities(network, view, plan.size_divisibility)
    crop = plan.crop_size
    starts = [window_starts(*sizes) for sizes in zip((height, width), crop, plan.stride, strict=True)]
    total: dict[str, Tensor] = {}
    for top, left in product(*starts):
        # Cut at the image's border; the network still sees every window at the crop's size, padded.
        place = (slice(top, min(top + crop[0], height)), slice(left, min(left + crop[1], width)))
        scores = _window_probabilities(network, view[:, place[0], place[1]], plan.size_divisibility, least_size=crop)
        for name, part in scores.items():
            if name not in total:
                total[name] = part.new_zeros(len(part), height, width)
            total[name][:, place[0], place[1]] += part
    # The windows form a grid: the number that covers a pixel is the product of the numbers along the two axes.
    rows, columns = (
        to_device(_coverage(*sizes), view.device) for sizes in zip(starts, (height, width), crop, strict=True)
    )
    return {name: part.div_(rows[:, None] * columns) for name, part in total.items()}


def _window_probabilities(
    network: Network, window: Tensor, divisibility: int, *, least_size: tuple[int, int] = (1, 1)
) -> dict[str, Tensor]:
    """Probabilities (K, H, W) of a window, which the network sees padded on the right and below."""
    height, width = window.shape[-2:]
    padded = [_multiple(max(n, least), divisibility) for n, least in zip((height, width), least_size, strict=True)]
    outputs = network(F.pad(window, (0, padded[1] - width, 0, padded[0] - height))[None])
    probabilities = {}
    for name, logits in outputs.items():
        if logits.dim() != 4 or len(logits) != 1:
            raise ValueError(f"output '{name}' has shape {tuple(logits.shape)} for one image; expected (1, K, h, w)")
        # Probabilities after the enlargement, as the training's loss has them; padding is cut off first.
        wide = _bilinear(logits[0].float(), (padded[0], padded[1]))[:, :height, :width]
        probabilities[name] = wide.sigmoid() if len(wide) == 1 else wide.softmax(dim=0)
    return probabilities


def _add(total: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        total[name] = total[name].add_(part) if name in total else part


def _coverage(starts: list[int], length: int, window: int) -> Tensor:
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _middle(length: int, crop: int) -> slice:
    size = min(length, crop)
    start = (length - size) // 2
    return slice(start, start + size)


def _multiple(length: int, divisor: int) -> int:
    return math.ceil(length / divisor) * divisor


def _resized_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    # Smoothed when it shrinks, as PIL does with the training images.
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _pair(key: str, value: object) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(n, int) for n in value):
        raise ConfigError(f"TEST.SEM_SEG.{key} is {value!r}; expected a height and a width")
    return int(value[0]), int(value[1])


def _default_stride(crop: int) -> int:
    return max(1, round(crop * (1 - _DEFAULT_OVERLAP)))
