# SPDX-License-Identifier: Apache-2.0
"""From the network's output for one image to a prediction at the original size (Mask2Former, Sec. 4.1).

Chooses which masks to enlarge: a hundred masks at the original size are by far the largest tensor of an evaluation, and
panoptic and instance segmentation look at few of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from padding.data.sample import Prediction
from padding.modeling.batching import resize_logits, to_device
from padding.modeling.inference import (
    instance_inference,
    instance_queries,
    panoptic_inference,
    panoptic_queries,
    semantic_classes,
    semantic_inference,
)


@dataclass(frozen=True)
class InferenceOptions:
    """What is predicted, and how (``MODEL.MASK_FORMER.TEST``).

    Attributes:
        semantic_on: predict class scores of all pixels.
        panoptic_on: predict panoptic segments.
        instance_on: predict instances.
        object_mask_threshold: class probability a panoptic segment must exceed, in [0, 1].
        overlap_threshold: share of its mask a panoptic segment must win, in [0, 1].
        top_k: (query, class) pairs considered for instances.
        resize_first: masks are brought to the original size before classes are summed over them, not after.
        semantic_labels: predict the best class of all pixels, (h, w) int64, in place of the scores of all classes.
    """

    semantic_on: bool
    panoptic_on: bool
    instance_on: bool
    object_mask_threshold: float
    overlap_threshold: float
    top_k: int
    resize_first: bool
    semantic_labels: bool = False


def predict_image(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    options: InferenceOptions,
    thing_ids: frozenset[int],
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Prediction:
    """Everything that is switched on, for one image.

    Args:
        class_logits: (Q, K+1) float, no-object last.
        mask_logits: (Q, H', W') float, at the network's resolution.
        options: outputs and thresholds.
        thing_ids: countable classes; instances are only things where panoptic segments are wanted too, as published.
        padded_size: (H, W) of the network's input.
        image_size: of the image inside the padded input.
        output_size: (h, w) of the original image.
    """
    resize = partial(resize_logits, image_size=image_size, output_size=output_size)
    to_full_size = partial(resize, padded_size=padded_size)
    prediction: Prediction = {}
    # (Q, h, w), only if the scores need all of them; else each task enlarges the masks of its queries.
    full = None
    if options.semantic_on and options.resize_first:
        full = to_full_size(mask_logits)
        of_pixels = semantic_classes if options.semantic_labels else semantic_inference
        prediction["sem_seg"] = of_pixels(class_logits, full)
    # Classes are summed at the padded size, and K maps are enlarged in place of Q masks.
    elif options.semantic_on:
        padded = resize_logits(mask_logits, image_size=padded_size, output_size=padded_size, padded_size=padded_size)
        scores = resize(semantic_inference(class_logits, padded))
        prediction["sem_seg"] = scores.max(dim=0).indices if options.semantic_labels else scores

    # Queries are chosen before masks are enlarged; ``panoptic_inference`` and ``instance_inference`` choose the same
    # among them. Masks that both need are enlarged once. Chosen on the CPU: a device is waited for once.
    if options.panoptic_on or options.instance_on:
        class_logits = class_logits.cpu()
    of_segments = panoptic_queries(class_logits, options.object_mask_threshold) if options.panoptic_on else None
    of_instances = instance_queries(class_logits, top_k=options.top_k) if options.instance_on else None
    full_masks = _reader_of_masks(mask_logits, (of_segments, of_instances), full, to_full_size)
    if of_segments is not None:
        prediction["panoptic_seg"] = panoptic_inference(
            class_logits[of_segments],
            full_masks(of_segments),
            thing_ids=thing_ids,
            object_mask_threshold=options.object_mask_threshold,
            overlap_threshold=options.overlap_threshold,
        )
    if of_instances is not None:
        keep_ids = thing_ids if options.panoptic_on else None
        prediction["instances"] = instance_inference(
            class_logits[of_instances], full_masks(of_instances), top_k=options.top_k, keep_ids=keep_ids
        )
    return prediction


def _reader_of_masks(
    mask_logits: Tensor,
    chosen: Sequence[Tensor | None],
    full: Tensor | None,
    to_full_size: Callable[[Tensor], Tensor],
) -> Callable[[Tensor], Tensor]:
    """What gives the full-size masks of ascending queries, each of the chosen ones enlarged once.

    Args:
        mask_logits: (Q, H', W') float.
        chosen: queries that will be asked for, (M,) int64 each, on the CPU.
        full: (Q, h, w) float, the masks of all queries where they are there already.
        to_full_size: (M, H', W') -> (M, h, w).
    """
    needed = torch.arange(len(mask_logits))
    if full is None:
        needed = torch.cat([needed[:0], *(queries for queries in chosen if queries is not None)]).unique()
        full = to_full_size(mask_logits[to_device(needed, mask_logits.device)])
    enlarged = full

    def read(queries: Tensor) -> Tensor:
        if len(queries) == len(needed):  # both are ascending: as many are the same ones
            return enlarged
        return enlarged[to_device(torch.searchsorted(needed, queries), enlarged.device)]

    return read
