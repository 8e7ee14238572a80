# SPDX-License-Identifier: Apache-2.0
"""Detections of many images in little memory: run-length codes one after the other, numbers as arrays.

A hundred detections of COCO's size take some 30 kB, where result entries of dicts, lists and texts take 100.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# A character of COCO's text, less _ZERO, has five bits of a number, in the last one a sign, and whether more follow.
_MORE, _SIGN, _BITS, _ZERO = 32, 16, 5, 48


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image.

    Attributes:
        image_id: of the data set.
        size: (h, w).
        classes: (N,) int32 contiguous.
        scores: (N,) float64.
        lengths: (N,) int32 characters of each code.
        codes: compressed run-length codes, one after the other.
    """

    image_id: Any
    size: tuple[int, int]
    classes: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int32]
    codes: bytes

    @classmethod
    def of(cls, image_id: Any, classes: Tensor, scores: Tensor, masks: Tensor) -> ImageDetections:
        """Encode detections on the CPU: (N,) classes and scores, (N, h, w) masks, see ``encode_masks``."""
        codes = encode_masks(masks)
        height, width = masks.shape[-2:]
        return cls(
            image_id,
            (height, width),
            classes.numpy().astype(np.int32),
            scores.double().numpy(),
            np.array([len(code) for code in codes], np.int32),
            b"".join(codes),
        )

    def entries(self, category_of: Callable[[int], int], wanted: frozenset[int]) -> Iterator[dict[str, Any]]:
        """COCO result entries of some classes, each with ``segmentation``."""
        ends = np.cumsum(self.lengths).tolist()
        columns = zip(self.classes.tolist(), self.scores.tolist(), self.lengths.tolist(), ends, strict=True)
        for class_id, score, length, end in columns:
            if class_id in wanted:
                code = {"size": list(self.size), "counts": self.codes[end - length : end].decode("ascii")}
                yield {
                    "image_id": self.image_id,
                    "category_id": category_of(class_id),
                    "score": score,
                    "segmentation": code,
                }


def class_groups(images: Sequence[ImageDetections], classes: Sequence[int], limit: int) -> Iterator[frozenset[int]]:
    """Split classes into groups with no more detections than a limit, but for classes that alone have more.

    Args:
        images: all detections.
        classes: to be split, in order; each is in one group.
        limit: detections of a group.
    """
    counts: npt.NDArray[np.int64] = np.zeros(max(classes, default=0) + 1, np.int64)
    for image in images:
        counts += np.bincount(image.classes, minlength=len(counts))[: len(counts)]
    group: list[int] = []
    total = 0
    for class_id in classes:
        if group and total + counts[class_id] > limit:
            yield frozenset(group)
            group, total = [], 0
        group.append(class_id)
        total += int(counts[class_id])
    if group:
        yield frozenset(group)


def encode_masks(masks: Tensor) -> list[bytes]:
    """Compressed run-length codes of masks, character by character those of pycocotools.

    Only the columns of a mask that are not empty are looked at.

    Args:
        masks: (N, h, w) bool, or numbers of which the positive ones are inside; on the CPU.
    """
    from pycocotools import mask as mask_api

    # A bool is a byte of 0 or 1 already; a comparison would cost more than the encoding.
    inside = (masks if masks.dtype == torch.bool else masks > 0).contiguous().view(torch.uint8)
    height, width = inside.shape[-2:]
    if not inside.numel():
        return [_text([height * width])] * len(inside)
    occupied = inside.amax(dim=1).numpy()  # (N, w)
    first, last = occupied.argmax(axis=1), width - occupied[:, ::-1].argmax(axis=1)
    codes = []
    for mask, start, stop, used in zip(inside.numpy(), first.tolist(), last.tolist(), occupied, strict=True):
        if not used[start]:
            codes.append(_text([height * width]))
            continue
        # One empty column more, so that the code ends with pixels outside.
        stop = min(stop + 1, width)
        # (columns, h) in C order is the Fortran order that the encoder wants; OpenCV transposes in blocks.
        columns = cv2.transpose(mask[:, start:stop])
        code = mask_api.encode(columns.reshape(1, stop - start, height).transpose(2, 1, 0))[0]["counts"]
        codes.append(_extended(code, start * height, (width - stop) * height))
    return codes


def _extended(code: bytes, before: int, after: int) -> bytes:
    """A code with more pixels outside before its first and after its last number, which both count such."""
    if after:
        place = len(code) - 1
        while place and code[place - 1] - _ZERO & _MORE:
            place -= 1
        code = code[:place] + _text([_number(code[place:]) + after])
    if before:
        end = 1
        while code[end - 1] - _ZERO & _MORE:
            end += 1
        code = _text([_number(code[:end]) + before]) + code[end:]
    return code


def _number(text: bytes) -> int:
    """The signed number of some characters, five bits each, low ones first."""
    value = sum((character - _ZERO & 31) << _BITS * place for place, character in enumerate(text))
    return value - (1 << _BITS * len(text)) if text[-1] - _ZERO & _SIGN else value


def _text(numbers: Sequence[int]) -> bytes:
    """The characters of signed numbers."""
    found = bytearray()
    for number in numbers:
        more = True
        while more:
            low, number = number & 31, number >> _BITS
            more = number != (-1 if low & _SIGN else 0)
            found.append(low + _ZERO + (_MORE if more else 0))
    return bytes(found)


def with_boxes(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Result entries with the tight boxes of their masks (x, y, width, height) as ``bbox`` in place of the masks."""
    from pycocotools import mask as mask_api

    # One by one: pycocotools with numpy 2 fails on more than 255 masks at once.
    boxes = (mask_api.toBbox(entry["segmentation"]).tolist() for entry in entries)
    kept = ("image_id", "category_id", "score")
    return [{**{key: entry[key] for key in kept}, "bbox": box} for entry, box in zip(entries, boxes, strict=True)]
