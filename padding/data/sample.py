# SPDX-License-Identifier: Apache-2.0
"""Types of what travels from the files to the model and back: data-set entry, training sample, prediction.

Shape letters of the whole project: B batch, C channels, D embedding size, E width of class embeddings, H W padded
image, h w original image, K classes without no-object, L feature levels, M matched queries, N instances, P sampled
points, Q queries, S seen classes, U unseen classes, T decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch
    from detectron2.structures import Instances

IGNORE_LABEL = 255
"""Value of a semantic label map where nothing is annotated; the convention of every registered data set."""

SCRIBBLE_PADDING = 254
"""Value of published scribble maps where an image was padded; unlabelled for us, who keep a mask of valid pixels."""

LABEL_DIVISOR = 1000
"""Detectron2 packs category and instance into one number: ``category * LABEL_DIVISOR + instance``."""

VOID_INDEX = 0
"""Value of a segment index map where no segment lies; segment ``k`` of the list has the value ``k + 1``."""


def strong_view_names(count: int) -> tuple[str, ...]:
    """Entries of a sample that hold its strong views: ``image_strong``, ``image_strong_2``, ``image_strong_3``, ..."""
    return tuple(f"image_strong_{number}" if number > 1 else "image_strong" for number in range(1, count + 1))


class SegmentInfo(TypedDict, total=False):
    """One segment of a panoptic PNG."""

    id: int  # value in the PNG: R + 256 G + 65536 B
    category_id: int  # contiguous, in the label space of the data set
    iscrowd: int
    isthing: bool


class DatasetDict(TypedDict, total=False):
    """One image of a data set as its loader lists it; nothing is decoded yet."""

    file_name: str
    image_id: int | str
    height: int
    width: int
    pan_seg_file_name: str
    segments_info: Sequence[SegmentInfo]
    void_segment_ids: list[int]  # ids in the PNG that count as void (unseen classes under the policy "ignore_pixels")
    sem_seg_file_name: str
    sem_seg_label_map: dict[int, int]  # derived saliency: value in that file -> contiguous id or the ignore label
    salient_classes: tuple[int, ...]  # derived saliency: contiguous ids
    saliency_file_name: str  # 8-bit grey image
    annotations: list[dict[str, Any]]  # COCO instances with contiguous category_id


class TrainSample(TypedDict, total=False):
    """What a training mapper returns, besides the entries of the ``DatasetDict``."""

    image: torch.Tensor  # (3, H, W) uint8, channel order of INPUT.FORMAT
    sem_seg: torch.Tensor  # (H, W) int64, contiguous ids and the ignore label
    is_labeled: bool  # semantic samples: False where there is no sem_seg
    valid: torch.Tensor  # (H, W) bool, False where there is no image (INPUT.VALID_MASK)
    image_strong: (
        torch.Tensor
    )  # (3, H, W) uint8, image with other colours (INPUT.STRONG_VIEW); then image_strong_2, ...
    saliency: torch.Tensor  # (1, H, W) float32 in [0, 1]
    saliency_valid: torch.Tensor  # (H, W) bool, False in padding and where saliency is unknown
    partner: TrainSample  # a sample of another unlabeled image, if the stream has partners
    instances: Instances  # gt_classes (N,) int64, gt_masks (N, H, W) bool
    height: int  # h of the file, not H
    width: int
    file_name: str
    image_id: int | str


class Prediction(TypedDict, total=False):
    """What a model returns for one image, at its original size; only what is switched on is there."""

    sem_seg: torch.Tensor  # (K, h, w) float scores
    saliency: torch.Tensor  # (h, w) float32 in [0, 1]
    panoptic_seg: tuple[torch.Tensor, list[dict[str, Any]]]  # (h, w) int32 ids and their segments
    instances: Instances
