# SPDX-License-Identifier: Apache-2.0
"""What panoptic scores must equal: panopticapi's count of files, and the slow, obvious sweep of gamma."""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from padding.data.files import save_panoptic_png
from padding.evaluation.panoptic import PanopticGroundTruth, panoptic_results
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


def official_results(
    truth: PanopticGroundTruth,
    records: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    folder: Path,
) -> dict[str, float]:
    """Results by panopticapi's count of predictions written to ``folder`` in COCO's format; the averages are ours.

    Its single-core function is called: the multi-core one never closes its pool, and its averages divide by zero when a
    data set has no things or no stuff.
    """
    from panopticapi.evaluation import pq_compute_single_core

    ids = truth.groups.dataset_ids
    pairs = []
    for record, output in zip(records, outputs, strict=True):
        pred_map, segments = output["panoptic_seg"]
        name = f"{record['image_id']}.png"
        save_panoptic_png(pred_map.numpy(), folder / name)
        entries = [{"id": int(s["id"]), "category_id": int(ids[s["category_id"]])} for s in segments]
        prediction = {"image_id": record["image_id"], "file_name": name, "segments_info": entries}
        pairs.append((msgspec.to_builtins(truth.annotation(record["image_id"])), prediction))
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, str(truth.panoptic_root), str(folder), {i: {"id": i} for i in ids})
    quality = PanopticQuality(truth.groups.num_classes)
    for class_id, dataset_id in enumerate(ids):
        counted = stat[dataset_id]
        quality.iou[class_id] = counted.iou
        quality.tp[class_id], quality.fp[class_id], quality.fn[class_id] = counted.tp, counted.fp, counted.fn
    return panoptic_results(quality.compute(), truth.groups)
