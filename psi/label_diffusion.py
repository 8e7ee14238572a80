# SPDX-License-Identifier: Apache-2.0
"""Semantic label diffusion (SLD): confident pixels around the labels join them, step by step (PSI).

In each step every class present in an image looks at the scores M_c in a window Omega_c around its labels, sets a
threshold gamma_c = mu_c + g(mu_c, sigma_c^2) sigma_c, and takes in what scores above it. Scores enter detached, labels
leave without a gradient, so that only the threshold network [theta] learns here and the network [Theta] never does.

Shape letters: B images, K classes, S slots (classes present in an image), T steps, h w cells of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from psi.color_affinity import AffinityOptions, color_affinity
from psi.supervision import EMPTY_SLOT, Supervision

MAX_THRESHOLD = 0.999  # a higher one could select nothing, and would not get a gradient to come down
_VARIANCE_FLOOR = 1e-6  # the root has no finite slope at 0


@dataclass(frozen=True)
class DiffusionOptions:
    """The keys MODEL.PSI.SLD.* that a step depends on.

    Attributes:
        radii: [r_t] of each step in cells, >= 1; their number is T.
        sharpness: [k], > 0.
        scope: "window" or "global".
        binarizer: of the threshold's loss, see ``binarize``.
        gate_argmax: a cell enters only with the class that the network ranks first.
        keep_diffused: diffused labels are never replaced.
        target: "hard", one class a cell; "soft", every class that selects it.
        affinity: what colours have to say.

    Raises:
        ConfigError: names the key.
    """

    radii: tuple[int, ...]
    sharpness: float = 20.0
    scope: str = "window"
    binarizer: str = "relu_sigmoid"
    gate_argmax: bool = True
    keep_diffused: bool = True
    target: str = "hard"
    affinity: AffinityOptions = field(default_factory=AffinityOptions)

    def __post_init__(self) -> None:
        check_choice("MODEL.PSI.SLD.SCOPE", self.scope, ("window", "global"))
        check_choice("MODEL.PSI.SLD.BINARIZER", self.binarizer, ("relu_sigmoid", "rescaled", "sigmoid"))
        check_choice("MODEL.PSI.SLD.TARGET", self.target, ("hard", "soft"))
        if self.sharpness <= 0:
            raise ConfigError(f"MODEL.PSI.SLD.SHARPNESS is {self.sharpness}; expected a positive number")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DiffusionOptions":
        """Read MODEL.PSI.SLD."""
        keys = cfg.MODEL.PSI.SLD
        return cls(
            radii=window_radii(keys.STEPS, keys.RADIUS, growth=keys.GROWTH, radii=keys.RADII, stride=keys.STRIDE),
            sharpness=keys.SHARPNESS,
            scope=keys.SCOPE,
            binarizer=keys.BINARIZER,
            gate_argmax=keys.GATE_ARGMAX,
            keep_diffused=keys.KEEP_DIFFUSED,
            target=keys.TARGET,
            affinity=AffinityOptions.from_node(keys.AFFINITY),
        )


class ThresholdNetwork(nn.Module):
    """g(mu, sigma^2 | theta): how many standard deviations above the mean a class sets its threshold.

    One small MLP for all classes. Its last layer starts at 0, hence gamma = mu: about half of a window is selected and
    gives a gradient, which Eq. 9 does not for what lies below the threshold.
    """

    def __init__(self, *, hidden: Sequence[int] = (16, 16), bound: float = 3.0) -> None:
        """Build the layers.

        Args:
            hidden: widths of the hidden layers.
            bound: largest absolute output, > 0, approached as bound tanh(x / bound).

        Raises:
            ConfigError: for a bound that is not positive.
        """
        super().__init__()
        if bound <= 0:
            raise ConfigError(f"MODEL.PSI.SLD.THRESHOLD_NET.BOUND is {bound}; expected a positive number")
        widths = (2, *hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        last = nn.Linear(widths[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self.bound = bound

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        """(...) float means in [0, 1] and biased variances -> (...) float32 in (-bound, bound)."""
        with torch.autocast(mean.device.type, enabled=False):
            output = self.layers(torch.stack([mean, variance], dim=-1).float()).squeeze(-1)
            return self.bound * torch.tanh(output / self.bound)


class DiffusionStep(NamedTuple):
    """One step t -> t + 1; only ``threshold`` and ``binarized`` carry a gradient, to theta."""

    before: Supervision  # y_t
    supervision: Supervision  # y_{t+1}
    window: Tensor  # (B, S, h, w) bool, Omega_c within the image
    threshold: Tensor  # (B, S) float32, gamma_c in [0, MAX_THRESHOLD]; meaningless where the class is absent
    scores: Tensor  # (B, S, h, w) float32, M_c of the classes present
    binarized: Tensor  # (B, S, h, w) float32, B_c as the threshold's loss sees it
    selected: Tensor  # (B, S, h, w) bool, M_c > gamma_c where the class may grow; the arg-max gate is not in it
    counted: Tensor  # (B, S, h, w) bool, where ``binarized`` says something: ``selected``, or all that may be


def window_radii(
    steps: int, radius: float, *, growth: str = "linear", radii: Sequence[float] = (), stride: int = 1
) -> tuple[int, ...]:
    """Window radius of every step, in cells.

    With radius 16, linear growth and stride 4: 4, 8, 12 cells, whose windows reach 16, 48 and 96 pixels in all.

    Args:
        steps: T, >= 0.
        radius: [r_0] in input pixels.
        growth: "linear" r_0 (t + 1), "geometric" r_0 2^t or "list", which takes ``radii``.
        radii: T radii in input pixels, for "list".
        stride: input pixels per cell.

    Raises:
        ConfigError: for an unknown growth, too few radii, or radii that shrink or are not positive.
    """
    check_choice("MODEL.PSI.SLD.GROWTH", growth, ("linear", "geometric", "list"))
    if growth == "list" and len(radii) < steps:
        raise ConfigError(
            f"MODEL.PSI.SLD.RADII has {len(radii)} entries; GROWTH 'list' needs one for each of {steps} steps"
        )
    pixels = {
        "linear": [radius * (t + 1) for t in range(steps)],
        "geometric": [radius * 2**t for t in range(steps)],
        "list": list(radii[:steps]),
    }[growth]
    if any(r <= 0 for r in pixels) or pixels != sorted(pixels):
        raise ConfigError(f"MODEL.PSI.SLD has radii {pixels}; expected positive ones that do not shrink")
    return tuple(max(1, round(r / stride)) for r in pixels)


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Cells at a Chebyshev distance of at most ``radius`` from a mask: (B, S, h, w) bool -> the same.

    Two one-dimensional maxima in place of a square one: 2 (2 r + 1) reads a cell in place of (2 r + 1)^2.
    """
    side = 2 * radius + 1
    rows = F.max_pool2d(masks.float(), (side, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(rows, (1, side), stride=1, padding=(0, radius)) > 0


def region_moments(scores: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map within its mask, mu_c and sigma_c^2.

    Args:
        scores: (B, S, h, w) float.
        masks: (B, S, h, w) bool.

    Returns:
        (B, S) and (B, S) float; 0 and 0 for an empty mask.
    """
    count = masks.sum(dim=(2, 3)).clamp_min(1)
    mean = (scores * masks).sum(dim=(2, 3)) / count
    # Squared distances from the mean: a difference of two sums loses the digits of a small variance.
    deviation = (scores - mean[..., None, None]) * masks
    return mean, deviation.square().sum(dim=(2, 3)) / count


def binarize(margin: Tensor, sharpness: float, binarizer: str = "relu_sigmoid") -> Tensor:
    """Soft binary map B of scores above a threshold (Eq. 9).

    Args:
        margin: (...) float, M - gamma.
        sharpness: [k], > 0.
        binarizer: "relu_sigmoid" is Eq. 9, 1 / (1 + exp(-k max(margin, 0))), and 1/2 wherever the margin is not
            positive; with k = 20 a margin of 0.05 gives 0.731. "rescaled" is 2 B - 1. "sigmoid" drops the max.

    Returns:
        (...) float in [1/2, 1], [0, 1] or [0, 1].
    """
    if binarizer == "sigmoid":
        return torch.sigmoid(sharpness * margin)
    if binarizer == "rescaled":
        return strength_above(margin, sharpness)
    return torch.sigmoid(sharpness * margin.clamp_min(0.0))


def strength_above(margin: Tensor, sharpness: float) -> Tensor:
    """B' = 2 B - 1 of Eq. 9, in [0, 1]: 0 iff not selected, where B itself says 1/2; (...) float -> the same."""
    # 2 sigmoid(x) - 1 = tanh(x / 2), which is not rounded to 0 just above the threshold.
    return torch.tanh(0.5 * sharpness * margin.clamp_min(0.0))


def diffusion_step(
    scores: Tensor,
    supervision: Supervision,
    valid: Tensor,
    *,
    radius: int,
    threshold_net: nn.Module,
    options: DiffusionOptions,
    colors: Tensor | None = None,
) -> DiffusionStep:
    """Grow the labels once, y_t -> y_{t+1}.

    Args:
        scores: (B, K, h, w) float, softmax scores M; no gradient flows into them.
        supervision: y_t.
        valid: (B, h, w) bool; nothing outside counts or is labeled.
        radius: [r_t] in cells.
        threshold_net: g.
        options: everything else.
        colors: (B, 3, h, w) float in [0, 1], mean colour of each cell, for an affinity.

    Raises:
        ValueError: if scores, labels, valid cells and colours differ in size.
    """
    _check_sizes(scores, supervision, valid, colors)
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.detach().float()
        # (B, S) ids -> (B, S, h, w): the score map of each class present, out of the K maps. Empty slots read class 0.
        slots = supervision.classes.clamp_min(0)[..., None, None].expand(-1, -1, *scores.shape[-2:])
        slot_scores = scores.gather(1, slots)
        # Omega_c, r: (B, S, h, w).
        window = dilate(supervision.targets > 0, radius) & valid[:, None]
        mean, variance = region_moments(slot_scores, window)
        # gamma_c = mu_c + g(mu_c, sigma_c^2) sigma_c, (B, S): the only line with a gradient to theta.
        offset = threshold_net(mean, variance) * (variance + _VARIANCE_FLOOR).sqrt()
        threshold = (mean + offset).clamp(0.0, MAX_THRESHOLD)
        reach = window if options.scope == "window" else _anywhere(supervision, valid)
        compared, reach = _with_affinity(slot_scores, reach, supervision, radius, options.affinity, colors)
        margin = compared - threshold[..., None, None]
        selected = (margin > 0) & reach
        # B' is the weight of a new label, without gradient; B, below, is what the threshold's loss sees (Eq. 9).
        strength = strength_above(margin.detach(), options.sharpness) * selected
        if options.gate_argmax:
            # A cell that has the class may get a larger weight; only the way in is guarded.
            first = slot_scores >= scores.amax(dim=1, keepdim=True)
            strength = strength * (first | (supervision.targets > 0))
        binarized = binarize(margin, options.sharpness, options.binarizer)
    grown = _united(supervision, strength, options)
    counted = reach if options.binarizer == "sigmoid" else selected  # at the floor of Eq. 9, B = 1/2 is no label
    return DiffusionStep(supervision, grown, window, threshold, slot_scores, binarized, selected, counted)


def diffuse(
    scores: Tensor,
    supervision: Supervision,
    valid: Tensor,
    *,
    threshold_net: nn.Module,
    options: DiffusionOptions,
    colors: Tensor | None = None,
) -> list[DiffusionStep]:
    """Grow the labels T times on the same scores.

    R_0 never changes, and R_t is part of R_{t+1}.

    Args:
        scores: (B, K, h, w) float, softmax scores M.
        supervision: y_0.
        valid: (B, h, w) bool.
        threshold_net: g.
        options: T radii and everything else.
        colors: (B, 3, h, w) float in [0, 1], for an affinity; None without.

    Returns:
        T steps; the last one's ``supervision`` is y_T.
    """
    steps = []
    how: dict[str, Any] = {"threshold_net": threshold_net, "options": options, "colors": colors}
    for radius in options.radii:
        step = diffusion_step(scores, supervision, valid, radius=radius, **how)
        # y_{t+1} is the next step's y_t; scores stay those of one forward pass ("online").
        supervision = step.supervision
        steps.append(step)
    return steps


def _anywhere(supervision: Supervision, valid: Tensor) -> Tensor:
    """(B, S, h, w) bool: the whole image for each class present."""
    return (supervision.classes != EMPTY_SLOT)[:, :, None, None] & valid[:, None]


def _with_affinity(
    slot_scores: Tensor,
    reach: Tensor,
    supervision: Supervision,
    radius: int,
    options: AffinityOptions,
    colors: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scores as they meet the threshold, and the cells that may enter: both (B, S, h, w)."""
    if options.mode == "none":
        return slot_scores, reach
    if colors is None:
        raise ValueError(f"MODEL.PSI.SLD.AFFINITY.MODE is '{options.mode}', but no colours were given")
    # Labels themselves are not questioned: scribbles have to be selected whatever their colour (L_sld, first term).
    labeled = supervision.targets > 0
    affinity = color_affinity(colors.to(slot_scores), labeled, radius, sigma=options.sigma)
    if options.mode == "gate":
        return slot_scores, reach & ((affinity >= options.minimum) | labeled)
    return slot_scores * affinity.masked_fill(labeled, 1.0), reach


def _united(supervision: Supervision, strength: Tensor, options: DiffusionOptions) -> Supervision:
    """y_{t+1} = max(y_t, B') for each class, on the cells that may change."""
    current = supervision.targets
    # Cells that may not change: drawn ones in any class, and diffused ones in every class but their own.
    closed = supervision.scribbles[:, None].expand_as(current)
    if options.keep_diffused:
        closed = closed | (supervision.region[:, None] & (current == 0))
    merged = torch.maximum(current, strength.masked_fill(closed, 0.0))
    if options.target == "hard":
        # One class a cell: the strongest of (B, S, h, w).
        best = merged.amax(dim=1, keepdim=True)
        strongest = (merged == best) & (best > 0)
        tied = strongest.sum(dim=1, keepdim=True) > 1
        # Undecided cells stay as they are: unlabeled, or with the class they had.
        merged = torch.where(tied, current, merged * strongest)
    return Supervision(supervision.classes, merged, supervision.scribbles)


def _check_sizes(scores: Tensor, supervision: Supervision, valid: Tensor, colors: Tensor | None) -> None:
    grid = (len(scores), *scores.shape[-2:])
    labels = (len(supervision.targets), *supervision.targets.shape[-2:])
    seen = grid if colors is None else (len(colors), *colors.shape[-2:])
    if not grid == labels == tuple(valid.shape) == seen:
        raise ValueError(
            f"scores cover {grid} (images, height, width), labels {labels}, valid cells {tuple(valid.shape)}, "
            f"colours {seen}; bring all to the grid of MODEL.PSI.SLD.STRIDE"
        )
