# SPDX-License-Identifier: Apache-2.0
"""Losses of PSI: cross entropy on partial labels (Eq. 10), smoothness, and the threshold's loss (PSI).

Pure functions, computed in float32 whatever autocast says. Where no pixel counts a loss is 0, with a gradient of 0.
Labels carry no gradient and scores enter the threshold's loss detached: L_seg moves the network alone, L_sld the
threshold network alone, and one backward pass is the paper's alternation. Means go over the pixels of all processes,
so that the gradients which data-parallel training averages are those of one process with all images: collective.

Shape letters: B images, K classes, S slots (classes present in an image), H W pixels, h w cells of the grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from padding.data.sample import IGNORE_LABEL
from padding.errors import check_choice
from padding.modeling.class_balance import ClassBalance
from padding.modeling.processes import mean_over_processes, world_size
from psi.label_diffusion import DiffusionStep
from psi.supervision import PixelSupervision

_LOG_FLOOR = 1e-6  # below it a logarithm says no more than "wrong", and 0 would say infinite
_HALF_OF_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # the other four are the same pairs


CHOICES = {
    "REGION_NORM": ("separate", "joint"),
    "SMOOTH_ON": ("probability", "argmax"),
    "SMOOTH_REDUCTION": ("mean", "sum"),
    "DIFFUSION_REGION": ("selected", "all"),
}
"""Values of the keys of MODEL.PSI.LOSS that are words."""


def check_loss_choice(key: str, value: str) -> None:
    """Check a key of ``CHOICES``; see ``padding.errors.check_choice``."""
    check_choice(f"MODEL.PSI.LOSS.{key}", value, CHOICES[key])


def segmentation_loss(
    logits: Tensor,
    supervision: PixelSupervision,
    *,
    region_norm: str = "separate",
    diffused_weight: float = 1.0,
    balance: ClassBalance | None = None,
) -> Tensor:
    """Partial cross entropy on scribbles and diffused pixels, L_ce(M, y_R) of L_seg (Eq. 10).

    With ``targets`` in the supervision a diffused pixel costs the sum of y_c (-log p_c) over its classes, not
    renormalized, and weighs as much as its strongest class.

    Args:
        logits: (B, K, H, W) float.
        supervision: labels and weights of the pixels.
        region_norm: "separate" is mean over scribbles + ``diffused_weight`` mean over diffused pixels, which outnumber
            scribbles ten to twenty times; "joint" is one mean over both, diffused ones weighted by it.
        diffused_weight: >= 0; with 0 the scribbles alone count.
        balance: class weights and focal factor, of hard labels alone; None: plain cross entropy.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: for an unknown norm.
    """
    check_loss_choice("REGION_NORM", region_norm)
    with torch.autocast(logits.device.type, enabled=False):
        weights = supervision.weights.float()
        if balance is not None:
            costs, of_class = balance.costs(logits, supervision.labels, ignore_label=IGNORE_LABEL)
            costs, weights = costs * weights, of_class * weights
        elif supervision.targets is None or supervision.classes is None:
            costs = _pixel_cross_entropy(logits, supervision.labels) * weights
        else:
            # Cross entropy needs one label a pixel; a diffused pixel of several classes costs its own sum.
            drawn = supervision.labels.masked_fill(~supervision.scribbles, IGNORE_LABEL)
            costs = _pixel_cross_entropy(logits, drawn) + _soft_costs(logits, supervision.classes, supervision.targets)
        scribbles = supervision.scribbles
        if region_norm == "joint":
            factors = torch.where(scribbles, 1.0, diffused_weight)
            return _weighted_mean(costs * factors, weights * factors)
        # The means of both regions are added: scribbles keep their weight however far labels have grown.
        on_scribbles = _weighted_mean(costs * scribbles, weights * scribbles)
        return on_scribbles + diffused_weight * _weighted_mean(costs * ~scribbles, weights * ~scribbles)


def smoothness(logits: Tensor, valid: Tensor, *, on: str = "probability", reduction: str = "mean") -> Tensor:
    """Mean L1 distance between the predictions of a pixel and of its eight neighbors, L_p.

    The mean goes over pairs of neighbors that both lie in the image. For a one-hot H x W map of two halves, left and
    right, with the sum over channels: 2 (3 H - 2) / (H (W - 1) + (H - 1) W + 2 (H - 1) (W - 1)).

    Args:
        logits: (B, K, H, W) float.
        valid: (B, H, W) bool, False in padding.
        on: "probability", the softmax; "argmax", the paper's one-hot labels, whose gradient is 0.
        reduction: "mean" or "sum" over channels, K times as large.

    Returns:
        Scalar, float32: at most 2 for "sum", 2 / K for "mean"; 0 without a pair.

    Raises:
        ValueError: for an unknown choice.
    """
    check_loss_choice("SMOOTH_ON", on)
    check_loss_choice("SMOOTH_REDUCTION", reduction)
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.float().softmax(dim=1)
        if on == "argmax":
            # Zero times the scores: a loss must have a path to what it is computed from.
            scores = F.one_hot(scores.argmax(dim=1), scores.shape[1]).movedim(-1, 1) + scores * 0.0
        total, pairs = scores.new_zeros(()), scores.new_zeros(())
        for shift in _HALF_OF_NEIGHBORS:
            # Pixel and neighbor both in the image: the border has no jump of its own.
            both = _shifted(valid, shift)[0] & _shifted(valid, shift)[1]
            # Recomputed in the backward pass: four differences of full-size maps would be kept otherwise.
            total = total + checkpoint(
                _pair_distances, scores, both, shift, use_reentrant=False, preserve_rng_state=False
            )
            pairs = pairs + both.sum()
        channels = scores.shape[1] if reduction == "mean" else 1
        return total / _divisor(pairs) / channels


def scribble_recall_loss(binarized: Tensor, drawn: Tensor) -> Tensor:
    """First term of L_sld, L_ce(y_B, y_{R_0}): scribbles should be selected by their class, which lowers gamma.

    Args:
        binarized: (B, S, h, w) float in [0, 1].
        drawn: (B, S, h, w) bool, scribble cells of each class.

    Returns:
        Scalar >= 0, mean of -log B over scribble cells; at most log 2 with the paper's B.
    """
    # With Eq. 9 a gradient comes only from where M > gamma: elsewhere B is 1/2 whatever gamma is.
    costs = -binarized.float().clamp_min(_LOG_FLOOR).log()
    return _weighted_mean(torch.where(drawn, costs, 0.0), drawn.float())


def diffused_score_loss(binarized: Tensor, scores: Tensor, counted: Tensor, region: Tensor) -> Tensor:
    """Second term of L_sld, L_ce(M, y_B) with y_B the target: what scores low should not be selected, raises gamma.

    Args:
        binarized: (B, S, h, w) float.
        scores: (B, S, h, w) float, M of the same classes; detached here.
        counted: (B, S, h, w) bool, cells whose B is a label.
        region: (B, h, w) bool, cells of the mean.

    Returns:
        Scalar >= 0, mean over the region of the sum over classes of B (-log M).
    """
    # Each pixel costs the sum of B_c (-log M_c) over the classes that select it.
    costs = -scores.detach().float().clamp_min(_LOG_FLOOR).log() * binarized.float()
    return _weighted_mean(torch.where(counted & region[:, None], costs, 0.0), region.float())


def threshold_losses(
    steps: Sequence[DiffusionStep], valid: Tensor, *, region: str = "selected"
) -> tuple[Tensor, Tensor]:
    """Both terms of L_sld, means over the steps; the caller weights the second with lambda_2.

    Args:
        steps: of ``diffuse``, at least one.
        valid: (B, h, w) bool.
        region: second term over "selected" cells (by any class) or "all" of the image.

    Returns:
        Two scalars, float32, with a gradient to the threshold network alone.

    Raises:
        ValueError: for an unknown region, or without a step.
    """
    check_loss_choice("DIFFUSION_REGION", region)
    if not steps:
        raise ValueError("the threshold's loss needs a diffusion step; leave it out where MODEL.PSI.SLD.STEPS is 0")
    recalls, diffused = [], []
    for step in steps:
        # R_0: cells of each class that somebody drew, (B, S, h, w).
        drawn = (step.before.targets > 0) & step.before.scribbles[:, None]
        cells = step.selected.any(dim=1) if region == "selected" else valid
        recalls.append(scribble_recall_loss(step.binarized, drawn))
        diffused.append(diffused_score_loss(step.binarized, step.scores, step.counted, cells))
    return torch.stack(recalls).mean(), torch.stack(diffused).mean()


def _weighted_mean(costs: Tensor, weights: Tensor) -> Tensor:
    return costs.sum() / _divisor(weights.sum())


def _divisor(weight: Tensor) -> Tensor:
    """What a local sum is divided by: the weight of all processes, 1 at least, over their number."""
    return mean_over_processes(weight).clamp_min(1.0 / world_size())


def _pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, H, W) float32, 0 where nothing is labeled."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL, reduction="none")


def _soft_costs(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """(B, H, W): sum over slots of y (-log p)."""
    # (B, S) ids -> (B, S, H, W), to read S of the K log-probabilities.
    slots = classes.clamp_min(0)[..., None, None].expand(-1, -1, *logits.shape[-2:])
    log_probability = logits.float().log_softmax(dim=1).gather(1, slots)
    return -(targets * log_probability).sum(dim=1)


def _shifted(maps: Tensor, shift: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views of (..., H, W) in which a pixel of the first and its neighbor in the second have the same place."""
    down, right = shift
    height, width = maps.shape[-2:]
    # Rows move down by at most 1; columns either way, hence the cut on the left of the first view.
    left = max(-right, 0)
    first = maps[..., : height - down, left : width - max(right, 0)]
    return first, maps[..., down:, left + right : width - max(right, 0) + right]


def _pair_distances(scores: Tensor, both: Tensor, shift: tuple[int, int]) -> Tensor:
    """Sum of L1 distances over the pairs of one direction."""
    first, second = _shifted(scores, shift)
    return ((first - second).abs().sum(dim=1) * both).sum()
