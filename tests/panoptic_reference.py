# SPDX-License-Identifier: Apache-2.0
"""The slow, obvious sweep of panoptic quality, which ``padding.study.panoptic_sweep`` must equal."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from padding.evaluation.panoptic_quality import PanopticQuality
from padding.study.curve import GAMMAS, AccumulatedSweep, GroundTruth, Postprocess, RawPrediction, half_of_images


def sweep_panoptic(
    predictions: Iterable[RawPrediction],
    postprocess_at: Callable[[float], Postprocess],
    truth: GroundTruth,
    gammas: Sequence[float] = GAMMAS,
) -> AccumulatedSweep:
    """Panoptic quality at every gamma: each setting post-processed and counted by itself.

    Halves are those of ``half_of_images``.

    Args:
        predictions: cached raw predictions; each image once.
        postprocess_at: gamma -> function that turns a cached prediction into (id map (h, w) at the original size,
            segments with contiguous category ids). It subtracts gamma from the seen logits only.
        truth: ground truth of the same images.
        gammas: ascending.
    """
    postprocesses = [postprocess_at(gamma) for gamma in gammas]
    num_classes = truth.groups.num_classes
    halves = [[PanopticQuality(num_classes) for _ in gammas] for _ in range(2)]
    half_of = half_of_images(truth.image_ids)
    for prediction in predictions:
        image_id = prediction["image_id"]
        gt_map, gt_segments = truth.read(image_id)
        for quality, postprocess in zip(halves[half_of[image_id]], postprocesses, strict=True):
            pred_map, pred_segments = postprocess(prediction)
            pred_array = pred_map.cpu().numpy() if isinstance(pred_map, Tensor) else np.asarray(pred_map)
            quality.update(pred_array, pred_segments, gt_map, gt_segments)
    return AccumulatedSweep(tuple(gammas), halves[0], halves[1])
