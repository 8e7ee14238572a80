# SPDX-License-Identifier: Apache-2.0
"""Augmentations from explicit arguments: jitter, resize-and-crop, rotation, crops with labels, test-time resizing.

Reference: Mask2Former, Sec. 4.1 and appendix (training settings), whose published configurations PADing keeps. Geometry
and colour are apart: labels and continuous maps follow the geometry, only the image sees the colour. Padding is not an
augmentation here: the mappers pad, since Detectron2 v0.6 cannot pad labels with void.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform, TransformList

from padding.data.targets import LabelMap, transform_labels
from padding.errors import ConfigError


class View:
    """Image and labels under augmentation; offers what Detectron2's augmentations ask for.

    Attributes:
        image: (h, w, C) uint8.
        labels: (h, w) label map, or None.
        classes: class of each label value, if labels are not classes themselves; for the category-area rule.
        transforms: the geometric transforms so far, for further maps of the same image.
        size: (h, w) after them, before any padding.
    """

    def __init__(
        self, image: npt.NDArray[np.uint8], labels: LabelMap | None = None, classes: LabelMap | None = None
    ) -> None:
        self.image = image
        self.labels = labels
        self.classes = classes
        self.transforms = TransformList([])
        self.size = image.shape[:2]

    @property
    def sem_seg(self) -> LabelMap | None:
        """Classes per pixel, computed when an augmentation asks for them."""
        return self.labels if self.classes is None or self.labels is None else self.classes[self.labels]

    def transform(self, transform: Transform) -> None:
        """Apply a transform in place."""
        self.image = transform.apply_image(self.image)
        self.size = self.image.shape[:2]
        if self.labels is not None:
            self.labels = transform_labels(transform, self.labels)


@dataclass(frozen=True)
class AugmentationPlan:
    """What happens to a sample between reading and padding."""

    geometric: tuple[Any, ...]  # Detectron2 augmentations that move pixels, in order
    photometric: tuple[Any, ...] = ()  # augmentations of the image alone, after the geometry
    # (H, W) to which everything is padded; None: as large as the geometry leaves it.
    output_size: tuple[int, int] | None = None

    def __call__(self, view: View) -> None:
        """Augment in place."""
        view.transforms = T.AugmentationList(list(self.geometric))(view)
        # Before the padding: colours of padding are constants that no augmentation should change.
        if self.photometric:
            coloured = T.AugInput(view.image)
            T.AugmentationList(list(self.photometric))(coloured)
            view.image = coloured.image


def large_scale_jitter(
    *, image_size: int, min_scale: float, max_scale: float, flip: str = "horizontal"
) -> AugmentationPlan:
    """Scale to a random size relative to ``image_size``, crop what is too large, pad what is too small.

    ``min_scale = max_scale = 1`` fits the image into the square: the plain "fixed size, flip" for small images.

    Args:
        image_size: side of the square output in pixels.
        min_scale: smallest scale, > 0.
        max_scale: largest scale.
        flip: "horizontal", "vertical" or "none".
    """
    geometric = [
        *_flip(flip),
        T.ResizeScale(min_scale=min_scale, max_scale=max_scale, target_height=image_size, target_width=image_size),
        T.FixedSizeCrop(crop_size=(image_size, image_size), pad=False),
    ]
    return AugmentationPlan(tuple(geometric), output_size=(image_size, image_size))


def resize_and_crop(  # noqa: PLR0913  (the published settings, one by one)
    *,
    min_sizes: Sequence[int],
    max_size: int,
    sampling: str = "choice",
    crop_type: str = "absolute",
    crop_size: Sequence[float] | None = None,
    single_category_max_area: float = 1.0,
    ignore_label: int = 255,
    color_jitter_format: str | None = None,
    flip: str = "horizontal",
    padded_size: int = -1,
) -> AugmentationPlan:
    """Resize the shortest edge, crop, flip, jitter the colours: the setting of semantic segmentation.

    Args:
        min_sizes: candidates (or, for sampling "range", the two ends) for the shortest edge in pixels.
        max_size: bound of the longest edge.
        sampling: "choice" or "range".
        crop_type: kind of crop as in Detectron2's ``RandomCrop``.
        crop_size: its size; None: no crop.
        single_category_max_area: largest share of one class in the crop; 1 accepts any crop.
        ignore_label: class that does not count for that share.
        color_jitter_format: "RGB" or "BGR" switches on the colour jitter of the Single Shot Detector; None: off.
        flip: "horizontal", "vertical" or "none".
        padded_size: side of the square to pad to; <= 0: no padding.
    """
    geometric: list[Any] = [
        T.ResizeShortestEdge(short_edge_length=tuple(min_sizes), max_size=max_size, sample_style=sampling)
    ]
    if crop_size is not None and single_category_max_area < 1.0:
        geometric.append(
            T.RandomCrop_CategoryAreaConstraint(
                crop_type=crop_type,
                crop_size=tuple(crop_size),
                single_category_max_area=single_category_max_area,
                ignored_category=ignore_label,
            )
        )
    elif crop_size is not None:
        geometric.append(T.RandomCrop(crop_type=crop_type, crop_size=tuple(crop_size)))
    photometric = () if color_jitter_format is None else color_jitter(color_jitter_format)
    output_size = (padded_size, padded_size) if padded_size > 0 else None
    return AugmentationPlan((*geometric, *_flip(flip)), photometric, output_size)


def color_jitter(channel_order: str) -> tuple[Any, ...]:
    """The colour jitter of the Single Shot Detector, for images with the channels "RGB" or "BGR"."""
    from detectron2.projects.point_rend import ColorAugSSDTransform  # pulls a whole project in

    return (ColorAugSSDTransform(img_format=channel_order),)


def resize_to(*, size: Sequence[int], flip: str = "horizontal") -> AugmentationPlan:
    """Resize the whole image to one (height, width), whatever its shape, and flip: the setting of salient objects.

    Raises:
        ConfigError: the size is not two positive numbers.
    """
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"INPUT.SALIENCY.SIZE or INPUT.CROP.SIZE is {tuple(size)}; expected a height and a width")
    height, width = (int(n) for n in size)
    return AugmentationPlan((T.Resize((height, width)), *_flip(flip)), output_size=(height, width))


class ResizeByFactor(T.Augmentation):
    """Scale an image by a random factor of its own size."""

    def __init__(self, factors: Sequence[float], sampling: str = "choice") -> None:
        """Take the factors.

        Args:
            factors: candidates, or the two ends.
            sampling: "choice" or "range".

        Raises:
            ConfigError: for another sampling, no factor or one that is not positive.
        """
        super().__init__()
        if sampling not in ("choice", "range") or not factors or min(factors) <= 0:
            raise ConfigError(
                f"INPUT.SCALE_FACTORS is {tuple(factors)} and SCALE_SAMPLING '{sampling}'; expected positive factors "
                "and 'choice' or 'range'"
            )
        self.factors = tuple(factors)
        self.sampling = sampling

    def get_transform(self, image: npt.NDArray[np.uint8]) -> Transform:
        """Draw the factor; sizes are rounded to whole pixels."""
        # The global generator, like every augmentation of Detectron2: the streams seed it for each sample.
        if self.sampling == "choice":
            factor = self.factors[np.random.randint(len(self.factors))]  # noqa: NPY002
        else:
            factor = np.random.uniform(min(self.factors), max(self.factors))  # noqa: NPY002
        height, width = image.shape[:2]
        new_height, new_width = (max(1, round(n * factor)) for n in (height, width))
        return T.ResizeTransform(height, width, new_height, new_width)


def scale_and_crop(
    *, factors: Sequence[float], sampling: str, crop_size: Sequence[int], flip: str = "horizontal"
) -> AugmentationPlan:
    """Scale by a factor, crop at a random place, pad what is too small: the setting of CPS and its successors.

    Rows and columns of the crop are drawn apart; Detectron2's ``FixedSizeCrop`` draws one number for both.

    Args:
        factors: see ``ResizeByFactor``.
        sampling: likewise.
        crop_size: (height, width) of the output in pixels.
        flip: "horizontal", "vertical" or "none".
    """
    # The crop takes what is there; what is too small is padded at the end, by the mapper.
    height, width = (int(n) for n in crop_size)
    geometric = (ResizeByFactor(factors, sampling), T.RandomCrop("absolute", (height, width)), *_flip(flip))
    return AugmentationPlan(geometric, output_size=(height, width))


class BorderedRotation(T.RotationTransform):
    """Rotation about the centre at the same size, with a chosen value where the image does not reach.

    Detectron2's own fills labels with 0 there, which is a class. Grey maps (h, w) are filled with 0.
    """

    def __init__(self, h: int, w: int, angle: float, *, image_border: Sequence[int], label_border: int) -> None:
        """Take the angle in degrees, counter-clockwise, and what fills the corners of images and of label maps."""
        super().__init__(h, w, angle, expand=False)
        self.image_border = tuple(int(n) for n in image_border)
        self.label_border = int(label_border)

    def apply_image(self, img: npt.NDArray[Any], interp: int | None = None) -> npt.NDArray[Any]:
        """Rotate an image (h, w, C) or a grey map (h, w), bilinearly unless told otherwise."""
        border = self.image_border if img.ndim == 3 else (0,)
        return self._warp(img, cv2.INTER_LINEAR if interp is None else interp, border)

    def apply_segmentation(self, segmentation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rotate a label map (h, w); labels are not mixed."""
        return self._warp(segmentation, cv2.INTER_NEAREST, (self.label_border,))

    def _warp(self, array: npt.NDArray[Any], interpolation: int, border: tuple[int, ...]) -> npt.NDArray[Any]:
        return cv2.warpAffine(array, self.rm_image, (self.w, self.h), flags=interpolation, borderValue=border)


class RandomBorderedRotation(T.Augmentation):
    """Rotate by a random angle, see ``BorderedRotation``."""

    def __init__(self, degrees: float, *, image_border: Sequence[int], label_border: int) -> None:
        """Take the largest angle to either side, in (0, 180]."""
        super().__init__()
        if not 0 < degrees <= 180:
            raise ConfigError(f"INPUT.ROTATION is {degrees}; expected degrees in (0, 180], or 0 for none")
        if not 0 <= label_border <= 255:
            raise ConfigError(
                f"rotation fills labels with {label_border}, more than a byte holds; set INPUT.ROTATION 0"
            )
        self.degrees = degrees
        self.image_border = image_border
        self.label_border = label_border

    def get_transform(self, image: npt.NDArray[np.uint8]) -> Transform:
        """Draw the angle."""
        # The global generator, like every augmentation of Detectron2: the streams seed it for each sample.
        angle = np.random.uniform(-self.degrees, self.degrees)  # noqa: NPY002
        height, width = image.shape[:2]
        return BorderedRotation(height, width, angle, image_border=self.image_border, label_border=self.label_border)


class LabeledCrop(T.Augmentation):
    """Draw crops until one holds enough labelled pixels; of crops that do not, the one with the most is taken.

    Scribbles cover a few per cent of an image, and a crop without any teaches nothing. Images without labels are
    cropped once.
    """

    def __init__(self, crop: T.Augmentation, *, min_labeled: int, ignore_label: int, attempts: int = 10) -> None:
        """Take the crop that is drawn, the pixels it should hold, the label that does not count, and the attempts."""
        super().__init__()
        self.crop = crop
        self.min_labeled = min_labeled
        self.ignore_label = ignore_label
        self.attempts = attempts

    def get_transform(self, image: npt.NDArray[np.uint8], sem_seg: LabelMap | None) -> Transform:
        """Draw the crop."""
        # Only Detectron2's crop by area of classes looks at labels.
        inputs = (image, sem_seg) if isinstance(self.crop, T.RandomCrop_CategoryAreaConstraint) else (image,)
        best, most = None, -1
        # The best of a few draws: a loop until one fits might never end.
        for _ in range(self.attempts):
            crop = self.crop.get_transform(*inputs)
            if sem_seg is None:
                return crop
            labeled = int(np.count_nonzero(crop.apply_segmentation(sem_seg) != self.ignore_label))
            if labeled > most:
                best, most = crop, labeled
            if labeled >= self.min_labeled:
                break
        return best


_CROPS = (T.RandomCrop, T.RandomCrop_CategoryAreaConstraint, T.FixedSizeCrop)


def with_rotation(
    plan: AugmentationPlan, *, degrees: float, image_border: Sequence[int], label_border: int
) -> AugmentationPlan:
    """The plan with a random rotation before its crop, or at its end if there is none.

    ``degrees`` is the largest angle to either side. Where the rotated image does not reach, channels have
    ``image_border``, usually the mean pixel, and labels ``label_border``, usually the ignored one; never a class.
    """
    rotation = RandomBorderedRotation(degrees, image_border=image_border, label_border=label_border)
    crops = [i for i, step in enumerate(plan.geometric) if isinstance(step, _CROPS)]
    # Before the crop, so that most crops hold no corner without image.
    position = crops[0] if crops else len(plan.geometric)
    return replace(plan, geometric=(*plan.geometric[:position], rotation, *plan.geometric[position:]))


def with_labeled_crops(plan: AugmentationPlan, *, min_labeled: int, ignore_label: int) -> AugmentationPlan:
    """The plan with its crop redrawn until it holds enough labelled pixels, see ``LabeledCrop``.

    Raises:
        ConfigError: the plan does not crop.
    """
    if not any(isinstance(step, _CROPS) for step in plan.geometric):
        raise ConfigError(
            f"INPUT.CROP.MIN_LABELED is {min_labeled}, but nothing is cropped; set INPUT.CROP.ENABLED, or MIN_LABELED 0"
        )
    steps = (
        LabeledCrop(step, min_labeled=min_labeled, ignore_label=ignore_label) if isinstance(step, _CROPS) else step
        for step in plan.geometric
    )
    return replace(plan, geometric=tuple(steps))


_JITTER_PROBABILITY, _GREY_PROBABILITY, _BLUR_PROBABILITY = 0.8, 0.2, 0.5


def strong_colors(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Jitter colours (probability 0.8), turn grey (0.2), blur (0.5): the strong view of UniMatch.

    Args:
        image: (h, w, 3) uint8, RGB.

    Returns:
        The same shape; geometry is unchanged, so that labels and masks stay true.
    """
    from torchvision.transforms import v2

    changed = np.array(image, order="C")  # a copy that may be written to, as tensors of it must
    if torch.rand(1) < _JITTER_PROBABILITY:
        changed = _jittered(changed)
    if torch.rand(1) < _GREY_PROBABILITY:
        changed = _through_torch(v2.functional.rgb_to_grayscale, changed, 3)
    if torch.rand(1) < _BLUR_PROBABILITY:
        sigma = float(torch.empty(1).uniform_(0.1, 2.0))
        # 13 pixels cover three standard deviations of the widest blur.
        changed = cv2.GaussianBlur(changed, (13, 13), sigma, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[assignment]
    return np.ascontiguousarray(changed)


def _jittered(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Brightness, contrast, saturation and hue changed in random order."""
    from torchvision.transforms.v2 import functional as F

    order = torch.randperm(4).tolist()
    factors = [float(torch.empty(1).uniform_(*bounds)) for bounds in (*[(0.5, 1.5)] * 3, (-0.25, 0.25))]
    for which in order:
        if which == 3:
            image = _with_hue(image, factors[3])
        else:
            change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[which]
            image = _through_torch(change, image, factors[which])
    return image


def _through_torch(change: Callable[..., torch.Tensor], image: npt.NDArray[np.uint8], value: float) -> npt.NDArray[Any]:
    return change(torch.from_numpy(image).permute(2, 0, 1), value).permute(1, 2, 0).numpy()


def _with_hue(image: npt.NDArray[np.uint8], turn: float) -> npt.NDArray[np.uint8]:
    """Hue turned by a share of the circle; OpenCV converts in a fifth of torchvision's time, to the same numbers."""
    hsv = cv2.cvtColor(image.astype(np.float32) * np.float32(1 / 255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360.0 * turn) % 360.0
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255.999)).astype(np.uint8)


def resize_for_test(*, min_size: int, max_size: int) -> AugmentationPlan:
    """Resize the shortest edge to one size; 0 leaves images as they are."""
    return AugmentationPlan(
        (T.ResizeShortestEdge(short_edge_length=min_size, max_size=max_size, sample_style="choice"),)
    )


def _flip(direction: str) -> list[Any]:
    if direction not in ("horizontal", "vertical", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP is {direction!r}; choose 'horizontal', 'vertical' or 'none'")
    if direction == "none":
        return []
    return [T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]
