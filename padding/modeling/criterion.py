# SPDX-License-Identifier: Apache-2.0
"""Losses of the mask classification network (Mask2Former, Sec. 3.2 and 3.3; MaskFormer, Sec. 3.2).

Weighted cross-entropy over all queries, binary cross-entropy and Dice over the matched ones on sampled points, for the
last prediction and every auxiliary one. Normalisers are sums over all processes: since gradients are averaged over
processes, two of them with half a batch each equal one with the whole batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padding.modeling.class_balance import ClassBalance
from padding.modeling.matcher import HungarianMatcher, Match
from padding.modeling.point_sampling import Generators, MaskReader, image_generators, sample_at, uncertain_points
from padding.modeling.processes import mean_over_processes, world_size
from padding.modeling.transformer_decoder import MaskProduct

_TERMS = ("loss_ce", "loss_mask", "loss_dice")


def classification_loss(logits: Tensor, labels: Tensor, class_weight: Tensor, weight_sum: Tensor | float) -> Tensor:
    """Weighted cross-entropy divided by ``weight_sum``.

    Args:
        logits: (B, Q, C+1) float, no-object last.
        labels: (B, Q) int64 in [0, C].
        class_weight: (C+1,) float.
        weight_sum: divisor; the sum of ``class_weight[labels]`` gives PyTorch's weighted mean.

    Returns:
        Scalar >= 0.
    """
    # (B, Q, C+1) -> (B Q, C+1); the sum, since the divisor goes over all processes.
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), weight=class_weight, reduction="sum")
    return loss / weight_sum


def mask_bce_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float) -> Tensor:
    """Binary cross-entropy, mean over points, summed over masks, divided by ``num_masks``.

    Args:
        logits: (M, P) float.
        targets: (M, P) float in [0, 1].
        num_masks: divisor > 0.

    Returns:
        Scalar >= 0; 0 for M = 0.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1).sum() / num_masks


def mask_dice_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float) -> Tensor:
    """Dice distance smoothed by 1, summed over masks, divided by ``num_masks``.

    Args:
        logits: (M, P) float.
        targets: (M, P) float in [0, 1].
        num_masks: divisor > 0.

    Returns:
        Scalar >= 0; 0 for M = 0.
    """
    probs = logits.sigmoid()
    overlap = 2 * (probs * targets).sum(dim=1) + 1
    return (1 - overlap / (probs.sum(dim=1) + targets.sum(dim=1) + 1)).sum() / num_masks


class MaskCriterion(nn.Module):
    """Matches every prediction and returns its weighted losses.

    ``forward`` takes the head's output and the targets, and returns scalars ``loss_ce``, ``loss_mask``, ``loss_dice``
    and the same with ``_0``, ``_1`` ... for the auxiliary predictions. ``empty_weight`` (C+1,), the class weight, is
    kept in checkpoints under its published name.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        class_balance: ClassBalance | None = None,
    ) -> None:
        """Set weights and sampling.

        Args:
            num_classes: C, without no-object.
            matcher: assigns queries to targets.
            weight_dict: weight of ``loss_ce``, ``loss_mask`` and ``loss_dice``.
            no_object_weight: class weight of unmatched queries.
            num_points: points per matched mask.
            oversample_ratio: candidates per point, >= 1.
            importance_sample_ratio: share of points taken near the border, in [0, 1].
            class_balance: class weights and focal factor of the class loss; None: plain cross entropy.

        Raises:
            ValueError: if a weight is missing or unknown, or a ratio is out of range.
        """
        super().__init__()
        if set(weight_dict) != set(_TERMS):
            raise ValueError(f"weight_dict has the terms {sorted(weight_dict)}; give a weight for each of {_TERMS}")
        if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                f"oversample_ratio {oversample_ratio} must be >= 1, importance_sample_ratio {importance_sample_ratio} "
                "in [0, 1]"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.class_balance = class_balance
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("empty_weight", weight)

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        *,
        image_names: Sequence[str] | None = None,
        image_seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of all predictions.

        Args:
            outputs: ``pred_logits`` (B, Q, C+1), ``pred_masks`` (B, Q, H', W') as tensor or ``MaskProduct``, of which
                no more than the matched masks have a gradient, ``aux_outputs``: list of the same.
            targets: per image ``labels`` (N,) int64 and ``masks`` (N, H, W) bool; N may be 0, for all images too.
            image_names: what errors call the images.
            image_seeds: ties the random points of an image to its seed, whatever else is in the batch.
        """
        generators = image_generators(image_seeds)
        # Once for all predictions, each of which reads them to match and to compare.
        read: list[Mapping[str, Any]] = [{**target, "reader": MaskReader(target["masks"])} for target in targets]
        # Every prediction is matched by itself: queries change their segment from layer to layer.
        predictions = [outputs, *outputs.get("aux_outputs", [])]
        matches = self.matcher.match_all(predictions, read, image_names=image_names, generator=generators)
        # (T, B, Q): one exchange between processes for all T predictions, the last one's first.
        labels = torch.stack([self._query_labels(outputs["pred_logits"], targets, match) for match in matches])
        weight_sums, num_masks = self._normalisers(labels, sum(len(target["labels"]) for target in targets))

        losses: dict[str, Tensor] = {}
        for i, (prediction, match) in enumerate(zip(predictions, matches, strict=True)):
            logits = prediction["pred_logits"]
            terms = {"loss_ce": self._class_loss(logits, labels[i], weight_sums[i])}
            terms |= self._mask_losses(prediction["pred_masks"], read, match, num_masks, generators)
            # The last prediction has the plain names; auxiliary ones are numbered from the first layer on.
            suffix = "" if i == 0 else f"_{i - 1}"
            losses |= {name + suffix: self.weight_dict[name] * term for name, term in terms.items()}
        return losses

    def _class_weight(self) -> Tensor:
        """(C+1,): the published one, which checkpoints hold, times those of the data, which they do not."""
        if self.class_balance is None:
            return self.empty_weight
        return self.empty_weight * F.pad(self.class_balance.weights, (0, 1), value=1.0)

    def _class_loss(self, logits: Tensor, labels: Tensor, weight_sum: Tensor) -> Tensor:
        if self.class_balance is None:
            return classification_loss(logits, labels, self.empty_weight, weight_sum)
        costs, _ = self.class_balance.costs(logits.movedim(-1, 1), labels, ignore_label=-100)
        return (costs * self.empty_weight[labels]).sum() / weight_sum

    def _query_labels(self, logits: Tensor, targets: Sequence[Mapping[str, Tensor]], match: list[Match]) -> Tensor:
        """(B, Q) int64: the class of the matched target, else no-object."""
        # Unmatched queries are no-object, whose class has a small weight: they are most of them.
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        for row, target, (query_idx, target_idx) in zip(labels, targets, match, strict=True):
            row[query_idx] = target["labels"][target_idx]
        return labels

    def _normalisers(self, labels: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
        """Divisors of cross-entropy, (T,), and of the mask losses, by one exchange between processes."""
        weight_sums = self._class_weight()[labels].flatten(1).sum(dim=1)
        # T sums and the number of masks in one vector: one exchange in place of two.
        means = mean_over_processes(torch.cat([weight_sums, weight_sums.new_full((1,), num_masks)]))
        # At least one mask in all processes together, so that the bound does not depend on how a batch is divided.
        return means[:-1], means[-1].clamp(min=1.0 / world_size())

    def _mask_losses(
        self,
        pred_masks: Tensor | MaskProduct,
        targets: Sequence[Mapping[str, Any]],
        match: list[Match],
        num_masks: Tensor,
        generators: Generators,
    ) -> dict[str, Tensor]:
        """Point-sampled losses of the matched masks of one prediction."""
        # (M, H', W') masks of all matched queries of the batch, image by image.
        counts = [len(query_idx) for query_idx, _ in match]
        matched = torch.cat([pred_masks[image, query_idx] for image, (query_idx, _) in enumerate(match)]).float()
        if sum(counts) == 0:
            # The sum of nothing is 0 and still leads back to every parameter, which DistributedDataParallel waits for.
            zero = matched.sum()
            return {"loss_mask": zero, "loss_dice": zero}
        # float32 for the losses: softplus and quotients of sums over P points lose digits in a half.
        with torch.autocast(device_type=matched.device.type, enabled=False):
            # (M, P, 2) points where a prediction is unsure, and some anywhere (PointRend); targets are read there too.
            points = uncertain_points(
                matched,
                counts,
                num_points=self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
                generators=generators,
            )
            logits = sample_at(matched.unsqueeze(1), points).squeeze(1)
            gt = torch.cat(
                [
                    target["reader"].at(image_points, target_idx)
                    for target, (_, target_idx), image_points in zip(targets, match, points.split(counts), strict=True)
                ]
            )
            return {
                "loss_mask": mask_bce_loss(logits, gt, num_masks),
                "loss_dice": mask_dice_loss(logits, gt, num_masks),
            }
