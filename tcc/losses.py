# SPDX-License-Identifier: Apache-2.0
"""Losses of TCC on the scores of pixels: Dice (Eq. 10), cross entropy, and distillation between students (Eq. 8).

Pure functions, computed in float32 whatever autocast says. Where no pixel counts a loss is 0, with a gradient of 0.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from padding.errors import ConfigError
from padding.modeling.processes import sum_over_processes


def zero_of(tensor: Tensor) -> Tensor:
    """Scalar 0 that is connected to ``tensor``; one element times 0, since a float16 sum may be infinite."""
    return tensor.flatten()[:1].float().sum() * 0.0


def dice_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: Literal["present", "all"] = "present",
    smooth: float = 1.0,
    power: int = 2,
    over_batch: bool = True,
    sync: bool = False,
    ignore_label: int = IGNORE_LABEL,
) -> Tensor:
    """Multi-class soft Dice (Eq. 10): mean over classes of 1 - (2 I + s) / (D + s).

    With p the softmax and y the one-hot labels, I = sum of p y and D = sum of p^q + sum of y, over labeled pixels only.
    With 4 of 21 classes in the labels and a perfect prediction the mean over all classes is 17/21 for small s: absent
    classes are a constant floor, which is why "present" is the default.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64; pixels of ``ignore_label`` have no influence.
        classes: mean over the classes in the labels, or over all K.
        smooth: s, >= 0; in pixels, since I and D are sums.
        power: q, 1 or 2 (V-Net).
        over_batch: sums over the batch; False: per image, then the mean over images.
        sync: sums over all processes as well; needs ``over_batch``.
        ignore_label: void.

    Returns:
        Scalar in [0, 1], float32.

    Raises:
        ConfigError: for an unknown choice.
    """
    if classes not in ("present", "all") or power not in (1, 2) or (sync and not over_batch):
        raise ConfigError(
            f"MODEL.TCC.SUP.DICE has CLASSES '{classes}', POWER {power}, SYNC {sync}, BATCH {over_batch}; expected "
            "'present' or 'all', 1 or 2, and BATCH True with SYNC"
        )
    with torch.autocast(logits.device.type, enabled=False):
        labeled = labels != ignore_label
        probability = logits.float().softmax(dim=1).flatten(2)
        weight = labeled.flatten(1)[:, None]  # (B, 1, N)
        # (B, K, N) softmax p and one-hot y; a void label is no class, so that y has no entry there.
        truth = labels.flatten(1)[:, None] == torch.arange(logits.shape[1], device=labels.device)[:, None]
        intersection = (probability * truth).sum(dim=2)  # (B, K)
        # D, the sum of p^q and y: p counts on labeled pixels alone, as y does of itself.
        size = (probability**power * weight).sum(dim=2) + truth.sum(dim=2)
        count = truth.sum(dim=2).float()
        if over_batch:
            # (3, 1, K): I, D and pixels of each class, summed over the batch before the quotient, which is not linear.
            sums = torch.stack([part.sum(dim=0, keepdim=True) for part in (intersection, size, count)])
            intersection, size, count = sum_over_processes(sums) if sync else sums
        loss = 1 - (2 * intersection + smooth) / (size + smooth).clamp_min(1e-12)
        # "all": absent classes count as well, but no image (or batch) without any label.
        counted = (count > 0) if classes == "present" else (count.sum(dim=1, keepdim=True) > 0).expand_as(count)
        images = counted.any(dim=1)
        if not images.any():
            return zero_of(logits)
        per_image = (loss * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
        return per_image[images].mean()


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_label: int = IGNORE_LABEL) -> Tensor:
    """Mean cross entropy over labeled pixels.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64.
        ignore_label: void.

    Returns:
        Scalar, float32; 0 without a labeled pixel.
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_label, reduction="sum")
        return total / (labels != ignore_label).sum().clamp_min(1)


def ohem_cross_entropy(
    logits: Tensor, labels: Tensor, *, threshold: float = 0.7, min_kept: int, ignore_label: int = IGNORE_LABEL
) -> Tensor:
    """Cross entropy of the hard pixels: true class below ``threshold``, and at least ``min_kept`` of the hardest.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64.
        threshold: probability in (0, 1].
        min_kept: number of pixels of the whole batch.
        ignore_label: void.

    Returns:
        Scalar, float32, mean over the kept pixels; 0 without a labeled pixel.

    Raises:
        ConfigError: for a threshold that is no positive probability.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"MODEL.TCC.SUP.OHEM.THRESHOLD is {threshold}; expected a probability above 0")
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(logits.float(), labels, ignore_index=ignore_label, reduction="none")
        losses = losses[labels != ignore_label]
        if not len(losses):
            return zero_of(logits)
        # A probability below the threshold is a loss above -log of it.
        bound = losses.new_tensor(-math.log(threshold))
        if len(losses) > min_kept > 0:
            # The min_kept-th largest loss: a bound that lets at least so many through.
            bound = torch.minimum(bound, losses.detach().topk(min_kept, sorted=True).values[-1])
        kept = losses >= bound if len(losses) > min_kept else torch.ones_like(losses, dtype=torch.bool)
        return losses[kept].sum() / kept.sum().clamp_min(1)


def divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    valid: Tensor,
    temperature: float = 1.0,
    detach: bool = True,
    reduction: Literal["pixel", "element"] = "pixel",
    conf_threshold: float = 0.0,
    normalize_by: Literal["kept", "valid"] = "kept",
) -> Tensor:
    """Kullback-Leibler divergence of a student from its target (one direction of Eq. 8).

    tau^2 times the sum over classes of t (log t - log p), t and p being softmaxes at temperature tau; mean over the
    valid pixels of each image, then over images. Summed by hand: torch's "mean" also divides by K, its "batchmean"
    multiplies by the number of pixels.

    Args:
        logits: (B, K, H, W) float.
        target_logits: the same shape.
        valid: (B, H, W) bool; padding is False.
        temperature: tau, > 0.
        detach: no gradient into the target; with both directions and False, the symmetric Jeffreys divergence.
        reduction: "element" divides by K.
        conf_threshold: pixels whose target has a lower largest probability are left out.
        normalize_by: the mean is over the pixels that are left ("kept"), or their sum is divided by all "valid" ones.

    Returns:
        Scalar >= 0, float32.

    Raises:
        ConfigError: for a temperature that is not positive or an unknown reduction.
    """
    if temperature <= 0 or reduction not in ("pixel", "element"):
        raise ConfigError(
            f"MODEL.TCC.CCD has TEMPERATURE {temperature} and REDUCTION '{reduction}'; expected a positive number and "
            "'pixel' or 'element'"
        )
    with torch.autocast(logits.device.type, enabled=False):
        target_logits = target_logits.detach() if detach else target_logits
        target = (target_logits.float() / temperature).log_softmax(dim=1)
        student = (logits.float() / temperature).log_softmax(dim=1)
        # tau^2 restores the size of the gradient, which the temperature divides twice (Hinton et al.).
        pixels = (target.exp() * (target - student)).sum(dim=1) * temperature**2
        if reduction == "element":
            pixels = pixels / logits.shape[1]
        kept = valid & confident(target_logits, conf_threshold)
        return mean_over_pixels(pixels, kept, among=valid if normalize_by == "valid" else kept)


def hard_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    valid: Tensor,
    conf_threshold: float = 0.0,
    normalize_by: Literal["kept", "valid"] = "kept",
) -> Tensor:
    """Cross entropy with the best class of the target, as cross pseudo supervision (CPS) has it.

    Args:
        logits: (B, K, H, W) float.
        target_logits: the same shape; never gets a gradient.
        valid: (B, H, W) bool.
        conf_threshold: pixels whose target has a lower largest probability are left out.
        normalize_by: see ``divergence``.

    Returns:
        Scalar >= 0, float32: mean over the pixels of each image, then over images.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # arg-max has no gradient, the confidence below would have one.
        target_logits = target_logits.detach()
        pixels = F.cross_entropy(logits.float(), target_logits.max(dim=1).indices, reduction="none")
        kept = valid & confident(target_logits, conf_threshold)
        return mean_over_pixels(pixels, kept, among=valid if normalize_by == "valid" else kept)


def confident(logits: Tensor, threshold: float) -> Tensor:
    """Pixels whose largest probability reaches a threshold: (B, K, H, W) -> (B, H, W) bool."""
    if threshold <= 0:
        return torch.ones_like(logits[:, 0], dtype=torch.bool)
    return logits.detach().float().softmax(dim=1).amax(dim=1) >= threshold


def mean_over_pixels(values: Tensor, valid: Tensor, among: Tensor | None = None) -> Tensor:
    """Mean over the valid pixels of each image, then over the images that have one; 0 if there are none.

    Args:
        values: (B, ...) float.
        valid: the same shape, bool.
        among: the same shape, bool: the pixels that are counted, the others of which are 0; None: the valid ones.
    """
    valid, counted = valid.flatten(1), (valid if among is None else among).flatten(1)
    # Values of invalid pixels may be anything, also infinite: they are replaced, not multiplied by 0.
    total = torch.where(valid, values.flatten(1), values.new_zeros(())).sum(dim=1)
    count = counted.sum(dim=1)
    return (total / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)
