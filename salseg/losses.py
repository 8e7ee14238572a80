# SPDX-License-Identifier: Apache-2.0
"""Losses of SalSeg as numerator and normalizer: weighted cross entropy L_seg, cross entropy of saliency L_sal.

Pure functions, computed in float32 whatever autocast says. Numerator and normalizer are apart because the images of a
task may come in several passes and on several processes: the loss is the quotient of the two sums. Where no pixel
counts both are 0, with a gradient of 0.

Shape letters: B images, K classes, n class-wise maps, H W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from padding.modeling.processes import mean_over_processes


class LossSum(NamedTuple):
    """A loss before its division.

    Attributes:
        total: scalar float32, with gradient.
        weight: scalar float32 >= 0, without.
    """

    total: Tensor
    weight: Tensor


class TaskLoss(NamedTuple):
    """The loss of a task over all images of a step.

    Attributes:
        mean: scalar float32, with gradient.
        present: scalar float32, 1, or 0 if no pixel of any process counts.
        share: scalar float32 >= 0, the task's pixels over their mean number in the tasks that are there, 1 where all
            have as many. Counted as the loss does: a pixel whose class weighs 3 counts three times.
    """

    mean: Tensor
    present: Tensor
    share: Tensor


def segmentation_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> LossSum:
    """Cross entropy over labeled pixels, sum of w_y CE / sum of w_y (L_seg).

    Divided by the weights' sum and not by the number of pixels, the loss keeps its scale whatever that of the weights:
    1/ln(1.02 + p) reaches 50, which the uncertainty weighting would otherwise have to undo.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, ``IGNORE_LABEL`` where nothing is known.
        class_weights: (K,) float > 0; None: 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        weights = None if class_weights is None else class_weights.float()
        # Summed, not averaged: several passes of a step are divided once, by the pixels of all (``join``).
        total = F.cross_entropy(logits.float(), labels, weight=weights, ignore_index=IGNORE_LABEL, reduction="sum")
        labeled = labels != IGNORE_LABEL
        if weights is None:
            return LossSum(total, labeled.sum().float())
        # Void is no index into (K,) weights: it reads class 0, times 0.
        return LossSum(total, (weights[labels.where(labeled, 0)] * labeled).sum())


def saliency_loss(logits: Tensor, saliency: Tensor, known: Tensor) -> LossSum:
    """Cross entropy of the two classes salient and not, -t log y - (1 - t) log(1 - y), over known pixels (L_sal).

    Args:
        logits: (B, 1, H, W) float, log y - log(1 - y).
        saliency: t, (B, 1, H, W) float in [0, 1]; soft labels are allowed.
        known: (B, H, W) bool, False in padding and void.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # t may be soft: the cross entropy of two probabilities, from the logit of y, without a logarithm of 0.
        pixels = F.binary_cross_entropy_with_logits(logits.float(), saliency.float(), reduction="none")
        counted = known[:, None].float()
        return LossSum((pixels * counted).sum(), counted.sum())


def join(parts: dict[str, list[LossSum]], tasks: tuple[str, ...], device: torch.device) -> dict[str, TaskLoss]:
    """Mean loss of every task over the pixels of all passes and processes.

    The gradients that data-parallel training averages are then those of one process with all images. Collective: every
    process calls it in every step, whatever tasks its images have.

    Args:
        parts: by task; a task without images is missing.
        tasks: all of them.
        device: of the losses.

    Returns:
        The losses by task of ``parts``.
    """
    weights = torch.stack(
        [sum((part.weight for part in parts.get(task, ())), torch.zeros((), device=device)) for task in tasks]
    )
    weights = mean_over_processes(weights)
    # The mean of what is positive; where nothing is, every share is 0 / 1.
    mean = weights.sum() / (weights > 0).sum().clamp(min=1)
    shares = weights / mean.where(mean > 0, 1.0)
    joined = {}
    for task, weight, share in zip(tasks, weights, shares, strict=True):
        if task in parts:
            total = torch.stack([part.total for part in parts[task]]).sum()
            present = weight > 0
            joined[task] = TaskLoss(total / weight.where(present, 1.0), present.float(), share)
    return joined
