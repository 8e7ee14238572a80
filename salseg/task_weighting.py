# SPDX-License-Identifier: Apache-2.0
"""Weights of the two losses: fixed, or learned from the tasks' homoscedastic uncertainty (Eq. 8).

With s = log sigma^2 the paper's L / sigma^2 + log sigma is e^-s L + s/2, which cannot divide by zero. At its optimum
sigma^2 = 2 L, so a loss weighs 1 / (2 L); the sum is negative once L < 1 / (2 e) = 0.18, which is no error.

Eq. 8 approximates, near sigma = 1, the likelihood of labels under softmax(f / sigma^2) (Kendall, Gal and Cipolla, CVPR
2018). "likelihood" is that loss itself: sigma^2 is a temperature, there is no log sigma, and no loss weighs more for
being small.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from padding.errors import ConfigError, check_choice
from salseg.loss_balance import RunningMeans, TaskBalance, raised
from salseg.losses import TaskLoss

TASKS = ("seg", "saliency")
WEIGHTINGS = ("uncertainty", "liebel", "likelihood", "fixed", "uniform", "seg_only", "saliency_only")


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
        log_temperatures: the same of "likelihood", where s acts on the logits and not on the loss.
        running_means: of the losses; None unless they are divided by them.
    """

    def __init__(
        self,
        weighting: str,
        *,
        weights: Sequence[float] = (0.8, 0.2),
        clamp: float = 6.0,
        balance: TaskBalance = TaskBalance(),  # noqa: B008  (frozen)
    ) -> None:
        """Start from s = 0.

        Args:
            weighting: one of ``WEIGHTINGS``.
            weights: of segmentation and saliency with "fixed", >= 0.
            clamp: s of a loss stays within [-clamp, clamp].
            balance: what is done to the weights beyond that.

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
        self.balance = balance
        constants = {"fixed": tuple(weights), "uniform": (0.5, 0.5)}.get(weighting, (1.0, 1.0))
        self._constants = dict(zip(TASKS, map(float, constants), strict=True))
        self._floor = dict(zip(TASKS, balance.floor, strict=True)) if self.tasks == TASKS and any(balance.floor) else {}
        self._terms: Callable[[Tensor], tuple[Tensor, Tensor]] | None = {
            "uncertainty": uncertainty_terms,
            "liebel": liebel_terms,
        }.get(weighting)
        # s = log sigma^2, from 0: sigma = 1, and e^-s needs no bound to stay positive.
        self.log_variances = self._learned(self._terms is not None)
        self.log_temperatures = self._learned(weighting == "likelihood")
        self.running_means = RunningMeans(self.tasks, balance.running_mean) if balance.running_mean else None

    def _learned(self, present: bool) -> nn.ParameterDict:
        return nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in self.tasks if present})

    @property
    def weights(self) -> dict[str, float]:
        """Current factor on the loss of each task, the share of its pixels aside."""
        factors = {task: factor for task, (factor, _) in self._factors().items()}
        return {task: f.detach().item() if isinstance(f, Tensor) else f for task, f in factors.items()}

    def sharpness(self, task: str) -> Tensor | None:
        """1 / sigma^2, the factor on a task's logits, scalar float32; None where they stay as they are."""
        if task not in self.log_temperatures:
            return None
        return torch.exp(-self.log_temperatures[task].float())

    def forward(self, losses: Mapping[str, TaskLoss]) -> dict[str, Tensor]:
        """Weight the losses of one step.

        Args:
            losses: by task, see ``losses.join``; absent tasks are missing.

        Returns:
            ``loss_<task>`` of each task, and ``loss_uncertainty``, the sum of the other terms, if s is learned.
        """
        if self.running_means is not None:
            self.running_means.update(losses)  # first, so that the first loss is divided by itself
        terms: dict[str, Tensor] = {}
        rest = []
        factors = self._factors()
        for task, loss in losses.items():
            factor, term = factors[task]
            share = loss.share if self.balance.pixel_sums else 1.0
            terms[f"loss_{task}"] = share * factor * loss.mean
            if term is not None:
                rest.append(share * term * loss.present)  # a task without a known pixel counts as absent
        if rest:
            terms["loss_uncertainty"] = torch.stack(rest).sum()
        return terms

    def _factors(self) -> dict[str, tuple[Tensor | float, Tensor | None]]:
        """By task, the factor on its loss and the term beside it, if there is one."""
        plain: dict[str, tuple[Tensor | float, Tensor | None]] = {
            task: (self._constants[task], None) for task in self.tasks
        }
        for task, s in self.log_variances.items():
            assert self._terms is not None
            with torch.autocast(s.device.type, enabled=False):
                plain[task] = self._terms(self._bounded(s.float()))
        if self.running_means is None and not self._floor:
            return plain
        means = {} if self.running_means is None else self.running_means.values
        factors = {task: torch.as_tensor(factor) / means.get(task, 1.0) for task, (factor, _) in plain.items()}
        if self._floor:
            factors = raised(factors, self._floor)
        return {task: (factors[task], term) for task, (_, term) in plain.items()}

    def _bounded(self, log_variance: Tensor) -> Tensor:
        """Clamped value with the gradient of the plain one, so that what left the bounds finds back."""
        bounded = log_variance.clamp(-self.clamp, self.clamp)
        return log_variance + (bounded - log_variance).detach()
