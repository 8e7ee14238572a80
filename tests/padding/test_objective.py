# SPDX-License-Identifier: Apache-2.0
"""Which losses are computed on which sets."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from padding.losses import DivergenceOptions
from padding.objective import DisentangleModules, LabelledFeatures, LossWeights, StructureObjective

UNSEEN = torch.tensor([1, 4])
OBJECTIVE = StructureObjective(
    weights=LossWeights(consistency=0.0, structure=1.0, align=1.0, relation=1.0, unrelated=1.0, reconstruction=1.0),
    align=True,
    align_space="related",
    divergence=DivergenceOptions(0.5),
    disentangle=True,
    unrelated_prior="moment",
    relation_among_all=True,
)


class Half(nn.Module):
    """The first or the second three of six channels."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.columns = slice(0, 3) if first else slice(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.columns]


class Join(nn.Module):
    def forward(self, related: torch.Tensor, unrelated: torch.Tensor) -> torch.Tensor:
        return torch.cat([related, unrelated], dim=1)


MODULES = DisentangleModules(Half(True), Half(False), Join(), None)


@pytest.fixture
def sets() -> tuple[LabelledFeatures, LabelledFeatures, torch.Tensor]:
    seen = LabelledFeatures(torch.randn(3, 6), torch.tensor([0, 2, 2]))
    unseen = LabelledFeatures(torch.randn(3, 6), torch.tensor([4, 1, 4]))
    return seen, unseen, torch.randn(5, 3)


def test_perfect_parts_leave_only_what_is_random(sets) -> None:
    seen, unseen, targets = sets
    # related parts are the class embeddings themselves, unrelated ones have the moments of N(0, 1)
    unit = torch.tensor([[1.0], [-1.0]]).repeat(2, 3)
    seen = LabelledFeatures(torch.cat([targets[[0, 2, 0, 2]], unit], dim=1), torch.tensor([0, 2, 0, 2]))
    unseen = LabelledFeatures(torch.cat([targets[[1, 4, 1, 4]], unit], dim=1), torch.tensor([1, 4, 1, 4]))
    losses = OBJECTIVE(seen, unseen, targets, UNSEEN, MODULES)
    for name in ("align_seen", "align_unseen", "align_seen_unseen", "unrelated", "reconstruction"):
        assert losses[f"loss_{name}"].item() == pytest.approx(0, abs=1e-5), name
    assert losses["loss_relation"].item() > 0


def test_unseen_features_may_compete_with_unseen_classes_only(sets) -> None:
    seen, unseen, targets = sets
    objective = dataclasses.replace(OBJECTIVE, relation_among_all=False)
    got = objective(seen, unseen, targets, UNSEEN, MODULES)["loss_relation"]
    first = F.cross_entropy(seen.features[:, :3] @ targets.T / 0.5, seen.labels)
    second = F.cross_entropy(unseen.features[:, :3] @ targets[UNSEEN].T / 0.5, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(got, (first + second) / 2)


def test_switches_remove_their_losses(sets) -> None:
    no_align = dataclasses.replace(OBJECTIVE, align=False)
    assert {name.split("_")[1] for name in no_align(*sets, UNSEEN, MODULES)} == {
        "relation",
        "unrelated",
        "reconstruction",
    }
    visual = dataclasses.replace(OBJECTIVE, disentangle=False, align_space="visual")
    assert {name.split("_")[1] for name in visual(*sets, UNSEEN, None)} == {"align"}
    off = dataclasses.replace(OBJECTIVE, weights=dataclasses.replace(OBJECTIVE.weights, structure=0.0))
    assert off(*sets, UNSEEN, MODULES) == {}


def test_missing_modules_are_an_error(sets) -> None:
    with pytest.raises(ValueError, match="need their modules"):
        OBJECTIVE(*sets, UNSEEN, None)
