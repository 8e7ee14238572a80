# SPDX-License-Identifier: Apache-2.0
"""Which losses of PADing are computed on which features, and with which weights (sections 3.3 and 3.4).

``losses.py`` holds the formulas; here seen and unseen sets, the space of the alignment and the semantic targets are
chosen. Every loss is a mean over the sets it is computed on, or the sum over all samples where that is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from padding.alignment import Disentangled, disentangle
from padding.errors import ConfigError, check_choice
from padding.losses import (
    DivergenceOptions,
    dot_relation,
    moment_divergence,
    noise_divergence,
    posterior_divergence,
    reconstruction,
    relation,
    structure_alignment,
)


class LabelledFeatures(NamedTuple):
    """Features of some classes."""

    features: Tensor  # (n, D)
    labels: Tensor  # (n,) int64, test label space


class DisentangleModules(NamedTuple):
    """E_R, E_U, D, and the scorer of the relation loss where it is learnt."""

    related: nn.Module
    unrelated: nn.Module
    decoder: nn.Module
    relation: nn.Module | None


@dataclass(frozen=True)
class LossWeights:
    """Weights of the generator's losses; the four after ``structure`` stand inside its bracket."""

    consistency: float
    structure: float
    align: float
    relation: float
    unrelated: float
    reconstruction: float


@dataclass(frozen=True)
class StructureObjective:
    """Alignment and disentanglement losses of a seen and an unseen set.

    Attributes:
        weights: see ``LossWeights``.
        align: whether similarity structures are aligned.
        align_space: ``related`` or ``visual``.
        divergence: how the structures are compared; its temperature serves all losses.
        disentangle: whether features are taken apart at all.
        unrelated_prior: ``moment``, ``vae`` or ``official``.
        relation_among_all: unseen features are scored against all classes, not the unseen ones only.
        seen_relation_among_all: seen features are scored against all classes, not the seen ones only.
        relation_reduction, unrelated_reduction, reconstruction_reduction: ``mean`` over samples and over the two sets,
            or the plain ``sum`` of Eq. 3 to 5.

    Raises:
        ConfigError: for an unknown choice, or an alignment in a space that is switched off.
    """

    weights: LossWeights
    align: bool
    align_space: str
    divergence: DivergenceOptions
    disentangle: bool
    unrelated_prior: str
    relation_among_all: bool
    seen_relation_among_all: bool = True
    relation_reduction: str = "mean"
    unrelated_reduction: str = "mean"
    reconstruction_reduction: str = "mean"

    def __post_init__(self) -> None:
        check_choice("MODEL.PADING.ALIGN.SPACE", self.align_space, ("related", "visual"))
        check_choice("MODEL.PADING.DISENTANGLE.UNRELATED", self.unrelated_prior, ("moment", "vae", "official"))
        check_choice("MODEL.PADING.DISENTANGLE.RELATION_REDUCTION", self.relation_reduction, ("mean", "sum"))
        check_choice("MODEL.PADING.DISENTANGLE.UNRELATED_REDUCTION", self.unrelated_reduction, ("mean", "sum"))
        check_choice("MODEL.PADING.DISENTANGLE.RECONSTRUCTION", self.reconstruction_reduction, ("mean", "sum"))
        if self.align and self.align_space == "related" and not self.disentangle:
            raise ConfigError(
                "MODEL.PADING.ALIGN.SPACE is 'related', but DISENTANGLE.ENABLED is False, so that there are no related "
                "features; set ALIGN.SPACE to 'visual', or ALIGN.ENABLED to False."
            )

    def __call__(
        self,
        seen: LabelledFeatures,
        unseen: LabelledFeatures,
        targets: Tensor,
        unseen_ids: Tensor,
        modules: DisentangleModules | None,
    ) -> dict[str, Tensor]:
        """Weighted losses, empty if everything is off.

        Args:
            seen: features of seen classes.
            unseen: synthetic features of unseen classes.
            targets: (K, E) semantic side of every class.
            unseen_ids: (U,) int64, ascending.
            modules: needed when ``disentangle``.
        """
        if self.weights.structure == 0:
            return {}
        losses: dict[str, Tensor] = {}
        # Alignment compares related parts (Eq. 6); without disentanglement, or by choice, the features themselves.
        space = (seen.features, unseen.features)
        if self.disentangle:
            if modules is None:
                raise ValueError("the disentanglement losses need their modules; got None")
            # E_R(x), E_U(x) and D(E_R(x), E_U(x)) of both sets; (n, E or D), (n, D) and (n, D).
            parts = [self._take_apart(group.features, modules) for group in (seen, unseen)]
            losses |= self._disentanglement(seen, unseen, parts, targets, unseen_ids, modules)
            if self.align_space == "related":
                space = (parts[0].related, parts[1].related)
        if self.align:
            losses |= self._alignment(*space, targets[seen.labels], targets[unseen.labels])
        # The outer weight applies to the whole bracket: STRUCTURE * (ALIGN L_A + RELATION L_R + ...).
        return {name: self.weights.structure * loss for name, loss in losses.items()}

    def _take_apart(self, features: Tensor, modules: DisentangleModules) -> Disentangled:
        return disentangle(
            features,
            modules.related,
            modules.unrelated,
            modules.decoder,
            variational=self.unrelated_prior == "vae",
        )

    def _alignment(
        self, seen: Tensor, unseen: Tensor, seen_targets: Tensor, unseen_targets: Tensor
    ) -> dict[str, Tensor]:
        # Structures within each set and across: the last is what carries knowledge from seen to unseen classes.
        blocks = {
            "loss_align_seen": (seen, seen, seen_targets, seen_targets),
            "loss_align_unseen": (unseen, unseen, unseen_targets, unseen_targets),
            "loss_align_seen_unseen": (seen, unseen, seen_targets, unseen_targets),
        }
        weight = self.weights.align / len(blocks)
        return {name: weight * structure_alignment(*block, self.divergence) for name, block in blocks.items()}

    def _disentanglement(
        self,
        seen: LabelledFeatures,
        unseen: LabelledFeatures,
        parts: list[Disentangled],
        targets: Tensor,
        unseen_ids: Tensor,
        modules: DisentangleModules,
    ) -> dict[str, Tensor]:
        all_ids = torch.arange(len(targets), device=targets.device)
        seen_ids = all_ids[torch.isin(all_ids, unseen_ids, invert=True)]
        relations = [
            self._relation(part.related, group.labels, targets, all_ids if among_all else own_ids, modules.relation)
            for part, group, among_all, own_ids in (
                (parts[0], seen, self.seen_relation_among_all, seen_ids),
                (parts[1], unseen, self.relation_among_all, unseen_ids),
            )
        ]
        # Mean of the seen and the unseen set for each of L_R, L_U and L_recon (Eq. 3 to 5), or the sum of all samples.
        weights = self.weights
        unrelated = [self._unrelated(part) for part in parts]
        decoded = [
            reconstruction(group.features, part.decoded, reduction=self.reconstruction_reduction)
            for group, part in zip((seen, unseen), parts, strict=True)
        ]
        return {
            "loss_relation": weights.relation * _over_sets(relations, self.relation_reduction),
            "loss_unrelated": weights.unrelated * _over_sets(unrelated, self.unrelated_reduction),
            "loss_reconstruction": weights.reconstruction * _over_sets(decoded, self.reconstruction_reduction),
        }

    def _relation(
        self, features: Tensor, labels: Tensor, targets: Tensor, class_ids: Tensor, scorer: nn.Module | None
    ) -> Tensor:
        """Relation loss of (n, E) features among the classes ``class_ids``, ascending."""
        # Softmax over the rows of ``class_ids`` only; a label becomes its place among them.
        scores: Callable[[Tensor, Tensor], Tensor] = scorer or self._dot
        columns = torch.searchsorted(class_ids, labels)
        return relation(scores(features, targets[class_ids]), columns, reduction=self.relation_reduction)

    def _dot(self, features: Tensor, targets: Tensor) -> Tensor:
        return dot_relation(features, targets, temperature=self.divergence.temperature)

    def _unrelated(self, part: Disentangled) -> Tensor:
        # Three forms of L_U (Eq. 4): variational, moments over the batch, or the released code's random vector.
        if part.log_variance is not None:
            return posterior_divergence(part.unrelated, part.log_variance, reduction=self.unrelated_reduction)
        if self.unrelated_prior == "moment":
            return moment_divergence(part.unrelated, reduction=self.unrelated_reduction)
        noise = torch.randn_like(part.unrelated)
        return noise_divergence(
            part.unrelated, noise, temperature=self.divergence.temperature, reduction=self.unrelated_reduction
        )


def _over_sets(losses: list[Tensor], reduction: str) -> Tensor:
    """Losses of the seen and the unseen set to one."""
    total = torch.stack(losses).sum()
    return total if reduction == "sum" else total / len(losses)
