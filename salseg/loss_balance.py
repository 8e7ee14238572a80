# SPDX-License-Identifier: Apache-2.0
"""What may be done to the tasks' weights beyond the paper: a floor, running means, sums over pixels.

At its optimum the learned weighting (Eq. 8) weighs a loss 1 / (2 L): it minimises the sum of log L / 2, and a loss
eight times smaller weighs eight times more. Dividing a loss by a constant changes nothing there, since sigma undoes it;
divided by its running mean and weighted by constants, a loss weighs what it would at that optimum at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.processes import mean_over_processes
from salseg.losses import TaskLoss

_LEAST_MEAN = 1e-6  # a loss that has been 0 from the start is not divided by 0


@dataclass(frozen=True)
class TaskBalance:
    """Settings; the defaults leave the weights as they are.

    Attributes:
        floor: least share of segmentation and saliency in the sum of the weights, each in [0, 1], together at most 1.
        running_mean: decay, in [0, 1), of the mean by which a loss is divided; 0: it is not.
        pixel_sums: the terms are summed over pixels, not tasks.

    Raises:
        ConfigError: a number is outside its range.
    """

    floor: tuple[float, float] = (0.0, 0.0)
    running_mean: float = 0.0
    pixel_sums: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.floor) != 2 or min(self.floor) < 0 or sum(self.floor) > 1:
            raise ConfigError(
                f"MODEL.SALSEG.BALANCE.FLOOR is {tuple(self.floor)}; expected the least shares of segmentation and "
                "saliency, two numbers >= 0 whose sum is at most 1"
            )
        if not 0 <= self.running_mean < 1:
            raise ConfigError(
                f"MODEL.SALSEG.BALANCE.RUNNING_MEAN is {self.running_mean}; expected a decay in [0, 1), 0 for none"
            )


class RunningMeans(nn.Module):
    """Exponentially weighted means of the tasks' losses, without the bias of their start.

    Attributes:
        sums: (tasks,) float32, of decay^age x loss over the steps that had the task; in the checkpoint.
        steps: (tasks,) float32, of decay^age; in the checkpoint.
    """

    sums: Tensor
    steps: Tensor

    def __init__(self, tasks: Sequence[str], decay: float) -> None:
        """Start without a step.

        Args:
            tasks: their order is that of the buffers.
            decay: in [0, 1), of a step's part from one to the next.
        """
        super().__init__()
        self.tasks = tuple(tasks)
        self.decay = decay
        self.register_buffer("sums", torch.zeros(len(self.tasks)))
        self.register_buffer("steps", torch.zeros(len(self.tasks)))

    @torch.no_grad()
    def update(self, losses: Mapping[str, TaskLoss]) -> None:
        """Take in the losses of a step; a task without a pixel leaves its mean as it is.

        Collective: the mean is that of all processes, on each of which the same images may be missing.
        """
        none = self.sums.new_zeros(2)
        rows = [
            torch.stack([losses[task].mean.float(), losses[task].present.float()]) if task in losses else none
            for task in self.tasks
        ]
        means, present = mean_over_processes(torch.stack(rows)).unbind(dim=1)
        present = (present > 0).float()
        kept = 1 - present * (1 - self.decay)
        self.sums.mul_(kept).add_(present * means)
        self.steps.mul_(kept).add_(present)

    @property
    def values(self) -> dict[str, Tensor]:
        """By task, the mean, a scalar > 0; 1 before the first step."""
        means = torch.where(self.steps > 0, self.sums / self.steps.clamp(min=1), 1.0).clamp(min=_LEAST_MEAN)
        return dict(zip(self.tasks, means, strict=True))


def raised(weights: Mapping[str, Tensor], floor: Mapping[str, float]) -> dict[str, Tensor]:
    """Weights of which none has less than its share of their sum, which stays.

    What a raised weight gains the others lose, in proportion to what they have above their own floor. The gradient is
    that of the plain weight: what is learned goes on following its loss.

    Args:
        weights: by task, scalars >= 0.
        floor: by task, in [0, 1], together at most 1.
    """
    total = sum(w.detach() for w in weights.values())
    lacking = {t: (floor[t] * total - w.detach()).clamp(min=0) for t, w in weights.items()}
    spare = {t: (w.detach() - floor[t] * total).clamp(min=0) for t, w in weights.items()}
    all_lacking, all_spare = sum(lacking.values()), sum(spare.values())
    given = torch.as_tensor(all_lacking / torch.as_tensor(all_spare).clamp(min=torch.finfo(torch.float32).tiny))
    return {t: w + (lacking[t] - given * spare[t]) for t, w in weights.items()}
