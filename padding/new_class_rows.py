# SPDX-License-Identifier: Apache-2.0
"""Rows of the linear classifier for classes added after training, as pure functions (after PADing, section 3.4).

The training objective of the classifier is taken up again on stored real features and fresh synthetic ones, each with
the weight it has in training on average. With the old rows fixed it is convex in the new ones, so that L-BFGS finds its
minimum within seconds. Training stops long before that: a shift common to all new classes then restores the balance
between false alarms and misses that the old unseen classes show.

Letters: n rows, D width of a feature, K old classes, A added ones, U old unseen ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# A shift of more than this many nats says that the synthetic features are no use, which no shift repairs.
MAX_SHIFT = 6.0
_BISECTIONS = 40
_HISTORY = 20
# Keeps the logarithm of a share finite where no row is mistaken.
_LEAST_SHARE = 1e-6


class Rows(NamedTuple):
    """Rows of a linear classifier."""

    weight: Tensor  # (rows, D)
    bias: Tensor  # (rows,)

    def logits(self, features: Tensor) -> Tensor:
        """(n, D) -> (n, rows)."""
        return F.linear(features, self.weight, self.bias)


class WeightedFeatures(NamedTuple):
    """Features with labels in the wide label space (old classes, added classes, no-object) and weights."""

    features: Tensor  # (n, D)
    labels: Tensor  # (n,) int64, no-object is K + A
    weights: Tensor  # (n,) >= 0


@dataclass(frozen=True)
class Balance:
    """How a group of unseen classes does against its rivals, the seen classes and no-object."""

    # Probability that a real feature is given to a class of the group, mean over features and classes.
    false_alarm: float
    miss: float  # probability that a synthetic feature of the group is given to a rival, mean over features

    @property
    def log_ratio(self) -> float:
        """Logarithm of false alarms over misses; a positive shift of the group's logits raises it."""
        shares = torch.tensor([self.false_alarm, self.miss], dtype=torch.float64).clamp(min=_LEAST_SHARE)
        return float(shares.log().diff().neg())


def with_added_rows(old: Rows, added: Rows) -> Rows:
    """Put the added rows between the old classes and no-object: (K+1, D), (A, D) -> (K+A+1, D)."""
    return Rows(*(torch.cat([o[:-1], a, o[-1:]]) for o, a in zip(old, added, strict=True)))


def fit_added_rows(old: Rows, data: WeightedFeatures, num_added: int, *, weight_decay: float, iterations: int) -> Rows:
    """Minimise the weighted cross-entropy over all classes in the added rows alone.

    Args:
        old: (K+1, D), no-object last; constant.
        data: features of every class.
        num_added: A.
        weight_decay: of the added rows, as the classifier's optimiser has it.
        iterations: of L-BFGS.

    Returns:
        (A, D) and (A,).
    """
    num_old = len(old.bias) - 1
    with torch.no_grad():
        # Old rows are constant, so their log sum exp is a single number a feature, (n, 1): a fit sees A + 1 columns.
        logits = old.logits(data.features)
        others = logits.logsumexp(dim=1, keepdim=True)
        is_added = (data.labels >= num_old) & (data.labels < num_old + num_added)
        column = torch.where(data.labels < num_old, data.labels, num_old)  # no-object is the last old row
        constant = logits.gather(1, column[:, None])[:, 0]
        share = data.weights / data.weights.sum()
        row = (data.labels - num_old).clamp(0, num_added - 1)

    def loss(rows: Rows) -> Tensor:
        added = rows.logits(data.features)
        label_logits = torch.where(is_added, added.gather(1, row[:, None])[:, 0], constant)
        return (share * (torch.cat([others, added], dim=1).logsumexp(dim=1) - label_logits)).sum()

    start = Rows(old.weight.new_zeros(num_added, old.weight.shape[1]), old.bias.new_zeros(num_added))
    return _minimise(loss, start, weight_decay=weight_decay, iterations=iterations)


def refit_all_rows(start: Rows, data: WeightedFeatures, *, weight_decay: float, iterations: int) -> Rows:
    """Minimise the same loss in all rows, from ``start`` (K+A+1, D) on."""
    share = data.weights / data.weights.sum()

    def loss(rows: Rows) -> Tensor:
        return (share * F.cross_entropy(rows.logits(data.features), data.labels, reduction="none")).sum()

    return _minimise(loss, start, weight_decay=weight_decay, iterations=iterations)


def _minimise(loss: Callable[[Rows], Tensor], start: Rows, *, weight_decay: float, iterations: int) -> Rows:
    # A convex loss of few parameters, which needs no learning rate: L-BFGS with a line search.
    rows = Rows(*(parameter.detach().clone().requires_grad_() for parameter in start))
    optimizer = torch.optim.LBFGS(list(rows), max_iter=iterations, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            total = loss(rows) + 0.5 * weight_decay * (rows.weight.square().sum() + rows.bias.square().sum())
            total.backward()
        return total

    optimizer.step(closure)
    return Rows(*(parameter.detach() for parameter in rows))


class GroupScores(NamedTuple):
    """What a common shift of a group's logits acts on: log odds of the group against its rivals."""

    group_size: int
    real_odds: Tensor  # (n,) on real features of the rivals
    real_shares: Tensor  # (n,) weights that sum to 1
    own_odds: Tensor  # (m,) on synthetic features of the group


@torch.no_grad()
def score_group(
    rows: Rows, group: Tensor, rivals: Tensor, real: WeightedFeatures, synthetic: WeightedFeatures
) -> GroupScores:
    """Logits of a classifier, as far as ``balance`` needs them.

    Confusion within the group, or with classes that are no rivals, is left out: a common shift does not mend it.

    Args:
        rows: (K+1, D).
        group: (G,) int64 ids of unseen classes.
        rivals: ids of the seen classes and no-object.
        real: features of the rivals.
        synthetic: features of the group, each class as often as any other.
    """

    def odds(features: Tensor) -> Tensor:
        logits = rows.logits(features)
        # Group against rivals as one logit: sigmoid(odds) is the probability of the group among both.
        return logits[:, group].logsumexp(dim=1) - logits[:, rivals].logsumexp(dim=1)

    shares = real.weights / real.weights.sum()
    return GroupScores(len(group), odds(real.features), shares, odds(synthetic.features))


def balance(scores: GroupScores, shift: float = 0.0) -> Balance:
    """False alarms and misses of a group whose logits are shifted."""
    taken = (scores.real_shares * (scores.real_odds + shift).sigmoid()).sum() / scores.group_size
    return Balance(false_alarm=float(taken), miss=float((-scores.own_odds - shift).sigmoid().mean()))


def balancing_shift(scores: GroupScores, target: float) -> float:
    """The shift, in [-MAX_SHIFT, MAX_SHIFT], that gives a group the ``log_ratio`` ``target``, by bisection."""
    # The ratio rises with the shift, monotonically: bisection finds it.
    low, high = -MAX_SHIFT, MAX_SHIFT
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if balance(scores, middle).log_ratio < target:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@torch.no_grad()
def largest_logit_change(before: Rows, after: Rows, features: Tensor) -> float:
    """Largest change of a logit over features and rows: max |x (w' - w) + b' - b|.

    The difference of the rows is taken first, so that equal rows give 0 and not a rounding error.

    Args:
        before: (K+1, D).
        after: the same classes, in the same order.
        features: (n, D).
    """
    change = Rows(after.weight.double() - before.weight.double(), after.bias.double() - before.bias.double())
    return float(change.logits(features.double()).abs().max())
