# SPDX-License-Identifier: Apache-2.0
"""Weights of the two losses: fixed, or learned from the tasks' homoscedastic uncertainty (Eq. 8).

With s = log sigma^2 the paper's L / sigma^2 + log sigma is e^-s L + s/2, which cannot divide by zero. At its optimum
sigma^2 = 2 L, so a loss weighs 1 / (2 L); the sum is negative once L < 1 / (2 e) = 0.18, which is no error.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from salseg.losses import LossSum

TASKS = ("seg", "saliency")
WEIGHTINGS = ("uncertainty", "liebel", "fixed", "uniform", "seg_only", "saliency_only")


def uncertainty_terms(log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight e^-s of the loss, and the term s/2 that keeps it from vanishing (Eq. 8)."""
    return torch.exp(-log_variance), log_variance / 2


def liebel_terms(log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight 1/(2 sigma^2), and log(1 + sigma^2), which keeps the sum positive (Liebel and Koerner, 1805.06334)."""
    return torch.exp(-log_variance) / 2, nn.functional.softplus(log_variance)


def tasks_of(weighting: str) -> tuple[str, ...]:
    """The tasks that a weighting trains.

    Raises:
        ConfigError: for an unknown weighting.
    """
    check_choice("MODEL.SALSEG.WEIGHTING", weighting, WEIGHTINGS)
    alone = {"seg_only": ("seg",), "saliency_only": ("saliency",)}
    return alone.get(weighting, TASKS)


class TaskWeighting(nn.Module):
    """Turns the mean losses of the tasks into weighted terms.

    A task that is absent from a step contributes none of its terms: with s/2 alone its s would drift, and the weight
    settle at twice the optimum for a task that is there in half of the steps.

    Attributes:
        log_variances: s by task, scalars float32; empty unless they are learned.
    """

    def __init__(self, weighting: str, *, weights: Sequence[float] = (0.8, 0.2), clamp: float = 6.0) -> None:
        """Start from s = 0.

        Args:
            weighting: one of ``WEIGHTINGS``.
            weights: of segmentation and saliency with "fixed", >= 0.
            clamp: s stays within [-clamp, clamp].

        Raises:
            ConfigError: for an unknown weighting, or weights or bounds that make no sense.
        """
        super().__init__()
        self.tasks = tasks_of(weighting)
        if len(weights) != len(TASKS) or min(weights) < 0 or not clamp > 0:
            raise ConfigError(
                f"MODEL.SALSEG.WEIGHTS is {tuple(weights)} and LOG_VARIANCE.CLAMP {clamp}; expected two numbers >= 0 "
                "and one > 0"
            )
        self.clamp = clamp
        constants = {"fixed": tuple(weights), "uniform": (0.5, 0.5)}.get(weighting, (1.0, 1.0))
        self._constants = dict(zip(TASKS, map(float, constants), strict=True))
        self._terms: Callable[[Tensor], tuple[Tensor, Tensor]] | None = {
            "uncertainty": uncertainty_terms,
            "liebel": liebel_terms,
        }.get(weighting)
        learned = self.tasks if self._terms is not None else ()
        # s = log sigma^2, from 0: sigma = 1, and e^-s needs no bound to stay positive.
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in learned})

    @property
    def weights(self) -> dict[str, float]:
        """Current factor on the loss of each task."""
        if self._terms is None:
            return {task: self._constants[task] for task in self.tasks}
        return {task: float(self._terms(self._bounded(s.detach()))[0]) for task, s in self.log_variances.items()}

    def forward(self, losses: Mapping[str, LossSum]) -> dict[str, Tensor]:
        """Weight the losses of one step.

        Args:
            losses: by task, the mean and whether any pixel counted (see ``losses.join``); absent tasks are missing.

        Returns:
            ``loss_<task>`` of each task, and ``loss_uncertainty``, the sum of the other terms, if s is learned.
        """
        terms: dict[str, Tensor] = {}
        rest = []
        for task, (loss, present) in losses.items():
            if self._terms is None:
                terms[f"loss_{task}"] = self._constants[task] * loss
                continue
            with torch.autocast(loss.device.type, enabled=False):
                factor, term = self._terms(self._bounded(self.log_variances[task].float()))
                terms[f"loss_{task}"] = factor * loss
                rest.append(term * present)  # a task without a known pixel counts as absent
        if rest:
            terms["loss_uncertainty"] = torch.stack(rest).sum()
        return terms

    def _bounded(self, log_variance: Tensor) -> Tensor:
        """Clamped value with the gradient of the plain one, so that what left the bounds finds back."""
        bounded = log_variance.clamp(-self.clamp, self.clamp)
        return log_variance + (bounded - log_variance).detach()
