# SPDX-License-Identifier: Apache-2.0
"""Weight of a loss over the training: that of unsupervised terms grows (Laine & Aila, ICLR 2017)."""

import math
from collections.abc import Callable

from detectron2.config import CfgNode

from padding.errors import check_choice

LAINE_AILA_SHARE = 0.27  # 80 of 300 epochs


def gaussian_ramp_up(iteration: int, length: int) -> float:
    """exp(-5 (1 - t)^2) with t = iteration / length, at most 1: 0.0067 at the start, 0.287 half way, then 1.

    Args:
        iteration: >= 0.
        length: iterations until the weight is 1; 0: it is 1 from the start.
    """
    progress = min(iteration / length, 1.0) if length > 0 else 1.0
    return math.exp(-5.0 * (1.0 - progress) ** 2)


def build_ramp_up(node: CfgNode, *, max_iter: int, key: str) -> Callable[[int], float]:
    """Weight as a function of the iteration.

    Args:
        node: TYPE "gaussian", "linear" t/ITERS or "none" (1), and ITERS; ITERS < 0: 27 % of ``max_iter``.
        max_iter: length of the training.
        key: full name of the node, for the error.

    Raises:
        ConfigError: for an unknown type.
    """
    check_choice(f"{key}.TYPE", node.TYPE, ("gaussian", "linear", "none"))
    length = round(LAINE_AILA_SHARE * max_iter) if node.ITERS < 0 else node.ITERS
    if node.TYPE == "gaussian":
        return lambda iteration: gaussian_ramp_up(iteration, length)
    if node.TYPE == "linear":
        return lambda iteration: min(iteration / length, 1.0) if length > 0 else 1.0
    return lambda _: 1.0
