# SPDX-License-Identifier: Apache-2.0
"""One-to-one assignment of queries to segments (Mask2Former, Sec. 3.3; DETR, Sec. 3.1).

The cost of a pair is -p(class) plus binary cross-entropy plus Dice, both on the same random points for all queries of
an image, in float32 whatever the precision of the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.point_sampling import Generators, MaskReader, draw_points, sample_at

Match = tuple[Tensor, Tensor]


def pairwise_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every query with every target.

    Since bce(x, y) = softplus(x) - x*y, one matrix product does for both signs.

    Args:
        logits: (Q, P) float.
        targets: (N, P) float in [0, 1].

    Returns:
        (Q, N) float >= 0.
    """
    return F.softplus(logits).mean(dim=1, keepdim=True) - logits @ targets.T / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice distance of every query with every target, smoothed by 1 above and below.

    Args:
        logits: (Q, P) float.
        targets: (N, P) float in [0, 1].

    Returns:
        (Q, N) float in [0, 1].
    """
    probs = logits.sigmoid()
    # (Q,) and (N,) sums -> (Q, N): the denominator of every pair by broadcasting.
    total = probs.sum(dim=1)[:, None] + targets.sum(dim=1)[None, :]
    return 1 - (2 * probs @ targets.T + 1) / (total + 1)


class HungarianMatcher(nn.Module):
    """Cheapest one-to-one assignment per image.

    ``forward`` takes the head's output and the targets of a batch and returns, per image, the indices of the matched
    queries (ascending) and of their targets, min(Q, N) each, on the device of the predictions. No state, no gradient.
    """

    def __init__(self, cost_class: float, cost_mask: float, cost_dice: float, num_points: int) -> None:
        """Set the weights of the three costs and the number of points per image.

        Raises:
            ConfigError: if all weights are zero or there is no point.
        """
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ConfigError("all three matching costs are 0: every assignment would be equally good; set one above 0")
        if num_points < 1:
            raise ConfigError(f"num_points is {num_points}; masks are compared on at least 1 point")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        image_names: Sequence[str] | None = None,
        generator: Generators = None,
    ) -> list[Match]:
        """Match every image of the batch.

        Args:
            outputs: ``pred_logits`` (B, Q, C+1) and ``pred_masks`` (B, Q, H', W'), a tensor or a ``MaskProduct``.
            targets: see ``match_all``.
            image_names: see ``match_all``.
            generator: see ``match_all``.

        Raises:
            FloatingPointError: if a cost is NaN or infinite; names the image.
        """
        return self.match_all([outputs], targets, image_names=image_names, generator=generator)[0]

    @torch.no_grad()
    def match_all(
        self,
        predictions: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Any]],
        *,
        image_names: Sequence[str] | None = None,
        generator: Generators = None,
    ) -> list[list[Match]]:
        """Match every image of several predictions, each by itself; the device is waited for once.

        Args:
            predictions: each as in ``forward``.
            targets: per image ``labels`` (N,) int64 and ``masks`` (N, H, W) bool; N may be 0. With ``reader``, the
                ``MaskReader`` of the masks, these are not looked at.
            image_names: what errors call the images.
            generator: for the points: None, one for all images, or one per image.

        Raises:
            FloatingPointError: if a cost is NaN or infinite; names the image.
        """
        from scipy.optimize import linear_sum_assignment

        # (Q, N) of each image of each prediction; N differs between images.
        costs = [cost for outputs in predictions for cost in self._costs(outputs, targets, generator)]
        # One transfer for all of them; the assignment itself takes microseconds on the CPU.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy() if costs else np.zeros(0)
        ends = np.cumsum([cost.numel() for cost in costs])
        matches: list[list[Match]] = [[] for _ in predictions]
        for place, cost in enumerate(costs):
            number, i = divmod(place, len(targets))
            matrix = flat[ends[place] - cost.numel() : ends[place]].reshape(cost.shape)
            # linear_sum_assignment would take a NaN for any number and match at random.
            if not np.isfinite(matrix).all():
                masks, logits = predictions[number]["pred_masks"][i], predictions[number]["pred_logits"][i]
                raise FloatingPointError(_explain_non_finite(matrix, _name_of(image_names, i), masks, logits))
            query_idx, target_idx = linear_sum_assignment(matrix)
            pair = np.stack([query_idx, target_idx]).astype(np.int64)
            matches[number].append(tuple(torch.from_numpy(pair).to(cost.device, non_blocking=True)))
        return matches

    def _costs(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]], generator: Generators
    ) -> list[Tensor]:
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        # The same P points for all queries and targets of an image: costs are (Q, N) products of (Q, P) and (P, N).
        points = draw_points([1] * len(targets), self.num_points, device=masks.device, generators=generator)
        costs = []
        for i, target in enumerate(targets):
            own = masks[i]  # multiplied out here if it is a product, in the precision of the network
            with torch.autocast(device_type=masks.device.type, enabled=False):
                costs.append(self._cost(logits[i].float(), own.float(), target, points[i : i + 1]))
        return costs

    def _cost(self, logits: Tensor, masks: Tensor, target: Mapping[str, Any], points: Tensor) -> Tensor:
        """(Q, N) cost of one image from (Q, C+1) class logits, (Q, H', W') mask logits and (1, P, 2) points."""
        labels = target["labels"]
        if len(labels) == 0 or len(logits) == 0:
            return logits.new_zeros(len(logits), len(labels))
        # The sampled masks are (Q, P) and (N, P): a whole mask is never compared with another.
        sampled = sample_at(masks[None], points)[0]
        reader = target["reader"] if "reader" in target else MaskReader(target["masks"])
        gt_sampled = reader.at(points)
        # Minus the probability of the target's class, (Q, N), where the loss has its logarithm: bounded, like Dice.
        cost = -self.cost_class * logits.softmax(dim=-1)[:, labels]
        cost = cost + self.cost_mask * pairwise_bce(sampled, gt_sampled)
        return cost + self.cost_dice * pairwise_dice(sampled, gt_sampled)


def _name_of(image_names: Sequence[str] | None, index: int) -> str:
    return f"number {index} of the batch" if image_names is None else image_names[index]


def _explain_non_finite(cost: np.ndarray, name: str, mask_logits: Tensor, class_logits: Tensor) -> str:
    bad_masks = int((~mask_logits.isfinite()).flatten(1).any(dim=1).sum())
    bad_classes = int((~class_logits.isfinite()).any(dim=1).sum())
    return (
        f"matching cost of image {name}: {int((~np.isfinite(cost)).sum())} of {cost.size} entries are NaN or infinite "
        f"({bad_masks} of {len(cost)} predicted masks and {bad_classes} of {len(cost)} class predictions hold such "
        "values). Training has diverged or a half-precision value overflowed: lower SOLVER.BASE_LR, clip gradients "
        "(SOLVER.CLIP_GRADIENTS.ENABLED True), or turn mixed precision off (SOLVER.AMP.ENABLED False), and continue "
        "from an earlier checkpoint."
    )
