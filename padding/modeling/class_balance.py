# SPDX-License-Identifier: Apache-2.0
"""Rare classes and hard examples in a cross entropy: class weights, the focal factor (Lin et al., 1708.02002, Eq. 4).

One module for the class loss of mask classification and for the pixel losses of TCC and PSI. The weights come from the
data, by the trainer; those of a class are 1 until then, and they are not part of a checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice

KINDS = ("none", "inverse_log")


class ClassBalance(nn.Module):
    """Cross entropy w_y (1 - p_y)^gamma (-log p_y) and the weights w_y that its mean is divided by.

    Attributes:
        weights: (K,) float32 > 0.
        gamma: >= 0; 0 is plain cross entropy.
    """

    weights: Tensor

    def __init__(self, num_classes: int, gamma: float = 0.0) -> None:
        """All weights are 1."""
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weights", torch.ones(num_classes), persistent=False)

    def set_weights(self, weights: Tensor) -> None:
        """Take the weights of the classes.

        Args:
            weights: (K,) > 0.

        Raises:
            ValueError: another number of weights, or one that is not positive.
        """
        if weights.shape != self.weights.shape or not bool((weights > 0).all()):
            raise ValueError(f"expected {len(self.weights)} positive class weights, got {weights.tolist()}")
        self.weights.copy_(weights)

    def costs(self, logits: Tensor, labels: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
        """Costs of the labels, and their weights.

        Args:
            logits: (B, K or K + 1, ...) float; what lies behind the K classes has the weight 1.
            labels: (B, ...) int64.
            ignore_label: costs and weighs nothing.

        Returns:
            Two tensors (B, ...), float32, the first with a gradient.
        """
        with torch.autocast(logits.device.type, enabled=False):
            costs = F.cross_entropy(logits.float(), labels, ignore_index=ignore_label, reduction="none")
            if self.gamma > 0:
                # p = exp(-cross entropy); at p = 1 the power of 0 would have an infinite slope for gamma < 1.
                costs = costs * (1 - (-costs).exp()).clamp_min(1e-6) ** self.gamma
            extra = logits.shape[1] - len(self.weights)
            of_class = F.pad(self.weights, (0, extra), value=1.0) if extra else self.weights
            known = labels != ignore_label
            weights = of_class[labels.where(known, 0)] * known
        return costs * weights, weights

    def cross_entropy(self, logits: Tensor, labels: Tensor, *, ignore_label: int) -> Tensor:
        """Weighted mean over the labeled pixels; 0 without one. Arguments as of ``costs``."""
        costs, weights = self.costs(logits, labels, ignore_label=ignore_label)
        total = weights.sum()
        return costs.sum() / total.where(total > 0, 1.0)


def build_class_balance(cfg: CfgNode, num_classes: int) -> ClassBalance | None:
    """What MODEL.CLASS_BALANCE asks for; None: plain cross entropy.

    Raises:
        ConfigError: an unknown kind of weights, or a negative gamma.
    """
    node = cfg.MODEL.CLASS_BALANCE
    check_choice("MODEL.CLASS_BALANCE.WEIGHTS", node.WEIGHTS, KINDS)
    if node.FOCAL_GAMMA < 0:
        raise ConfigError(f"MODEL.CLASS_BALANCE.FOCAL_GAMMA is {node.FOCAL_GAMMA}; expected 0 (plain) or more")
    if node.WEIGHTS == "none" and node.FOCAL_GAMMA == 0:
        return None
    return ClassBalance(num_classes, node.FOCAL_GAMMA)
