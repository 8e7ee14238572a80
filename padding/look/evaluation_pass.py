# SPDX-License-Identifier: Apache-2.0
"""One pass of a trained model over an evaluation set, watched: panoptic quality, confusion, and real query embeddings.

The embedding of a true segment is that of the query whose mask covers it best (IoU > 0.5). Embeddings of unseen
classes come from the evaluation set and are for looking only: nothing is trained or chosen with them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from padding.evaluation.panoptic_confusion import PanopticConfusion
from padding.evaluation.panoptic_quality import MATCH_IOU, PanopticQuality
from padding.modeling.maskformer import MaskFormer
from padding.study.curve import GroundTruth, Postprocess, RawPrediction
from padding.study.seen_bias import raw_predictions


def match_queries(masks: Tensor, truth: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pair queries and true segments by their masks alone, at most one to one.

    Args:
        masks: (Q, h, w) bool.
        truth: (N, h, w) bool.

    Returns:
        Indices of queries and of segments whose IoU exceeds 0.5, (M,) int64 each.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = masks.flatten(1).float(), truth.flatten(1).float()
    # |A n B| of all pairs as one product, (Q, h w) @ (h w, N); |A u B| = |A| + |B| - |A n B|.
    shared = rows @ columns.T
    union = rows.sum(dim=1)[:, None] + columns.sum(dim=1)[None, :] - shared
    iou = (shared / union.clamp(min=1)).numpy()
    # One to one with the best total IoU; pairs of a small one are dropped below.
    query, segment = linear_sum_assignment(iou, maximize=True)
    good = iou[query, segment] > MATCH_IOU
    return query[good], segment[good]


class Observation:
    """What is collected of each image; ``watch`` passes the predictions on.

    Attributes:
        quality, confusion: of the panoptic predictions, at the seen bias of the configuration.
    """

    def __init__(self, truth: GroundTruth, postprocess: Postprocess, *, max_per_class: int) -> None:
        """Start with nothing.

        Args:
            truth: ground truth of the images to come.
            postprocess: raw prediction -> panoptic segments.
            max_per_class: embeddings kept of each class, the first ones.
        """
        num_classes = truth.groups.num_classes
        self.quality = PanopticQuality(num_classes)
        self.confusion = PanopticConfusion(num_classes)
        self._truth = truth
        self._postprocess = postprocess
        self._max_per_class = max_per_class
        self._embeddings: list[list[Tensor]] = [[] for _ in range(num_classes)]

    def watch(self, predictions: Iterable[tuple[RawPrediction, Tensor]]) -> Iterator[RawPrediction]:
        """Take in each image and hand its raw prediction on.

        Args:
            predictions: of ``observed_predictions``.
        """
        for raw, embeddings in predictions:
            gt_map, gt_segments = self._truth.read(raw["image_id"])
            pred_map, pred_segments = self._postprocess(raw)
            pred_array = np.asarray(pred_map)
            self.quality.update(pred_array, pred_segments, gt_map, gt_segments)
            self.confusion.update(pred_array, pred_segments, gt_map, gt_segments)
            self._collect(raw["mask_logits"] > 0, embeddings, gt_map, gt_segments)
            yield raw

    def features(self) -> tuple[Tensor, Tensor]:
        """Embeddings (n, D) and their true classes (n,), class by class."""
        rows = [row for of_class in self._embeddings for row in of_class]
        labels = [label for label, of_class in enumerate(self._embeddings) for _ in of_class]
        return torch.stack(rows) if rows else torch.zeros(0, 0), torch.tensor(labels, dtype=torch.int64)

    def _collect(
        self, masks: Tensor, embeddings: Tensor, gt_map: npt.NDArray[Any], gt_segments: Sequence[Mapping[str, Any]]
    ) -> None:
        wanted = [
            segment
            for segment in gt_segments
            if not segment.get("iscrowd", 0) and len(self._embeddings[segment["category_id"]]) < self._max_per_class
        ]
        if not wanted:
            return
        ids = np.array([segment["id"] for segment in wanted], dtype=np.int64)
        truth = torch.from_numpy(gt_map.astype(np.int64)[None] == ids[:, None, None])
        for query, segment in zip(*match_queries(masks, truth), strict=True):
            of_class = self._embeddings[wanted[segment]["category_id"]]
            if len(of_class) < self._max_per_class:
                of_class.append(embeddings[query].clone())


def observed_predictions(
    model: MaskFormer, loader: Iterable[list[dict[str, Any]]]
) -> Iterator[tuple[RawPrediction, Tensor]]:
    """Raw predictions together with the (Q, D) embeddings of their queries, image by image, on the CPU."""
    waiting: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, outputs: dict[str, Any]) -> None:
        waiting.extend(outputs["pred_embeddings"].float().cpu())

    # The hook sees what the network already computes: no second pass for the embeddings.
    handle = model.sem_seg_head.register_forward_hook(keep)
    try:
        for raw in raw_predictions(model, loader):
            yield raw, waiting.pop(0)
    finally:
        handle.remove()
