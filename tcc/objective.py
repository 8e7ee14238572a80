# SPDX-License-Identifier: Apache-2.0
"""Which losses of TCC are computed on which outputs, and with which weights (Eq. 8 to 10).

``losses.py`` and ``class_features.py`` hold the formulas; here the outputs of the two students are brought to one
resolution, paired and weighted: L = L_s + g(t) (L_d + lambda L_f).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from padding.data.sample import IGNORE_LABEL
from padding.errors import ConfigError, check_choice
from padding.modeling.batching import map_size
from padding.modeling.class_balance import ClassBalance, build_class_balance
from tcc.class_features import ConsistencyOptions, PixelLabels, feature_consistency, labels_of
from tcc.losses import cross_entropy, dice_loss, divergence, hard_divergence, ohem_cross_entropy

Observations = dict[str, Tensor | float]
_PEERS = {"cnn": "vit", "vit": "cnn"}


class CohortBatch(NamedTuple):
    """The labeled or the unlabeled images of a step, as both students see them."""

    outputs: Mapping[str, Mapping[str, Tensor]]  # student -> "logits" (B, K, h, w) and features by name
    valid: Tensor  # (B, H, W) bool, False in padding
    labels: Tensor | None = None  # (B, H, W) int64; None: unlabeled
    targets: Mapping[str, Tensor] | None = None  # student -> (B, K, H, W) logits; None: the outputs themselves


@dataclass(frozen=True)
class SupervisedOptions:
    """L_s (Eq. 10); the keys MODEL.TCC.SUP.* of the same names."""

    dice_weight: float
    ce_weight: float
    ce_type: str
    ohem_threshold: float
    ohem_min_kept_per_image: int
    dice: Mapping[str, Any]  # further arguments of dice_loss
    balance: ClassBalance | None = None  # of the cross entropy; the model owns it

    def __post_init__(self) -> None:
        """Check the kind of cross entropy.

        Raises:
            ConfigError: if it is unknown, or no loss is left.
        """
        check_choice("MODEL.TCC.SUP.CE_TYPE", self.ce_type, ("ce", "ohem"))
        if self.dice_weight <= 0 and self.ce_weight <= 0:
            raise ConfigError("MODEL.TCC.SUP.DICE_WEIGHT and CE_WEIGHT are both 0: nothing is learned from labels")
        if self.balance is not None and (self.ce_weight <= 0 or self.ce_type != "ce"):
            raise ConfigError(
                f"MODEL.CLASS_BALANCE changes the cross entropy, but MODEL.TCC.SUP.CE_WEIGHT is {self.ce_weight} and "
                f"CE_TYPE '{self.ce_type}'; set a weight and 'ce'"
            )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted loss of one student: (B, K, H, W) logits and (B, H, W) labels."""
        # float32 scalar: under autocast a half would round the sum of both losses.
        total = logits.new_zeros((), dtype=torch.float32)
        if self.dice_weight > 0:
            total = total + self.dice_weight * dice_loss(logits, labels, **self.dice)
        if self.balance is not None:
            total = total + self.ce_weight * self.balance.cross_entropy(logits, labels, ignore_label=IGNORE_LABEL)
        elif self.ce_weight > 0 and self.ce_type == "ce":
            total = total + self.ce_weight * cross_entropy(logits, labels)
        elif self.ce_weight > 0:
            kept = self.ohem_min_kept_per_image * len(logits)
            total = total + self.ce_weight * ohem_cross_entropy(
                logits, labels, threshold=self.ohem_threshold, min_kept=kept
            )
        return total


@dataclass(frozen=True)
class DistillationOptions:
    """L_d (Eq. 8); the keys MODEL.TCC.CCD.* of the same names, and MODEL.TCC.TARGETS.SOURCE."""

    enabled: bool
    weight: float
    mode: str
    temperature: float
    detach: bool
    reduction: str
    on_labeled: bool
    on_unlabeled: bool
    loss_stride: int
    conf_threshold: float
    normalize_by: str
    source: str

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ConfigError: names the key.
        """
        check_choice("MODEL.TCC.CCD.MODE", self.mode, ("soft", "hard"))
        check_choice("MODEL.TCC.CCD.NORMALIZE_BY", self.normalize_by, ("kept", "valid"))
        check_choice("MODEL.TCC.TARGETS.SOURCE", self.source, ("peer", "self", "surest"))
        if self.source == "self" and self.enabled and self.on_labeled:
            raise ConfigError(
                "MODEL.TCC.TARGETS.SOURCE is 'self', and of a labeled image there is no other view that could be its "
                "target: set MODEL.TCC.CCD.ON_LABELED False"
            )
        if self.loss_stride < 1:
            raise ConfigError(f"MODEL.TCC.CCD.LOSS_STRIDE is {self.loss_stride}; expected at least 1")

    def loss(self, logits: Tensor, target_logits: Tensor, valid: Tensor) -> Tensor:
        """Unweighted loss of one student towards its target, all (B, ..., H, W) in full resolution."""
        # (B, K, H, W) maps of both students and their graphs are most of the memory: 1 / stride^2 of it.
        if self.loss_stride > 1:
            size = [-(-n // self.loss_stride) for n in valid.shape[-2:]]
            logits, target_logits = (
                F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in (logits, target_logits)
            )
            valid = F.interpolate(valid[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
        confidence: dict[str, Any] = {"conf_threshold": self.conf_threshold, "normalize_by": self.normalize_by}
        if self.mode == "hard":
            return hard_divergence(logits, target_logits, valid=valid, **confidence)
        return divergence(
            logits,
            target_logits,
            valid=valid,
            temperature=self.temperature,
            detach=self.detach,
            reduction=self.reduction,  # type: ignore[arg-type]
            **confidence,
        )


@dataclass(frozen=True)
class CohortObjective:
    """All losses of a step.

    Attributes:
        num_classes: K.
        supervised: L_s.
        distillation: L_d.
        consistency: L_f, None if it is off.
        consistency_weight: lambda.
        consistency_on_labeled: also on labeled images, under their true labels.
        feature: which output of the students is compared.
    """

    num_classes: int
    supervised: SupervisedOptions
    distillation: DistillationOptions
    consistency: ConsistencyOptions | None
    consistency_weight: float
    consistency_on_labeled: bool
    feature: str

    def __call__(
        self, labeled: CohortBatch, unlabeled: CohortBatch | None, ramp: float, features: CohortBatch | None = None
    ) -> tuple[dict[str, Tensor], Observations]:
        """Weighted losses by name, and what a log should show.

        Args:
            labeled: with labels.
            unlabeled: None: there is none in this step.
            ramp: g(t).
            features: the unlabeled images with perturbed features, for L_d alone; None: there are none.
        """
        assert labeled.labels is not None
        given = {"labeled": labeled, "unlabeled": unlabeled, "features": features}
        batches = {kind: batch for kind, batch in given.items() if batch is not None}

        # Logits (B, K, H, W) of both students at the size of the labels, student by student.
        logits = {
            kind: {name: full_size_logits(out["logits"], map_size(batch.valid)) for name, out in batch.outputs.items()}
            for kind, batch in batches.items()
        }

        # L_s of either student (Eq. 10), from the first iteration on: g(t) holds back the other two alone (Eq. 9).
        losses = {
            f"loss_sup_{name}": self.supervised.loss(scores, labeled.labels)
            for name, scores in logits["labeled"].items()
        }
        observed: Observations = {"ramp_up": ramp}

        # L_d: a mean over each kind of images, added; Eq. 8 divides a sum over unlabeled images by the labeled ones.
        for kind, batch in batches.items():
            if self._distils(kind):
                raw = self._distillation(logits[kind], batch)
                losses[f"loss_ccd_{kind}"] = ramp * self.distillation.weight * raw
                observed[f"ccd_{kind}"] = raw.detach()

        # L_f (Eq. 7).
        consistent = [kind for kind in ("labeled",) * self.consistency_on_labeled + ("unlabeled",) if kind in batches]
        if self.consistency is not None and consistent:
            raws = []
            for kind in consistent:
                raw, of_kind = self._consistency(logits[kind], batches[kind])
                raws.append(raw)
                observed |= of_kind if kind == "unlabeled" else {}
            losses["loss_cfcd"] = ramp * self.consistency_weight * torch.stack(raws).sum()
            observed["cfcd"] = torch.stack(raws).sum().detach()
        return losses, observed

    def _distils(self, kind: str) -> bool:
        options = self.distillation
        return options.enabled and (options.on_labeled if kind == "labeled" else options.on_unlabeled)

    def _distillation(self, logits: Mapping[str, Tensor], batch: CohortBatch) -> Tensor:
        """Each student towards its peer, CNN to transformer and transformer to CNN (Eq. 8), or another; added."""
        given, options = batch.targets or logits, self.distillation
        if options.source == "surest":
            targets = dict.fromkeys(logits, surest_logits(list(given.values())))
        else:
            targets = {name: given[name if options.source == "self" else _PEERS[name]] for name in logits}
        return torch.stack([options.loss(logits[name], targets[name], batch.valid) for name in logits]).sum()

    def _consistency(self, logits: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Tensor, Observations]:
        assert self.consistency is not None
        if batch.labels is not None:
            known = batch.valid & (batch.labels != IGNORE_LABEL)
            pixels = [PixelLabels(batch.labels, known)] * 2
        else:
            # Classes that each student sees; the peer's group its own features (Eq. 3, 4).
            scores = batch.targets or logits
            threshold = self.consistency.conf_threshold
            pixels = [labels_of(scores[name], batch.valid, threshold) for name in ("cnn", "vit")]
        # (B, C_cnn, h, w) and (B, C_vit, h', w'): neither channels nor sizes need to agree.
        features = (batch.outputs["cnn"][self.feature], batch.outputs["vit"][self.feature])
        loss, observed = feature_consistency(features, (pixels[0], pixels[1]), self.num_classes, self.consistency)
        return loss, dict(observed)


def surest_logits(students: Sequence[Tensor]) -> Tensor:
    """Logits (B, K, H, W) of several students -> at each pixel those with the largest probability of any class."""
    stacked = torch.stack(list(students))
    with torch.no_grad():
        surest = stacked.softmax(dim=2).amax(dim=2).argmax(dim=0)
    return stacked.gather(0, surest[None, :, None].expand(1, *stacked.shape[1:]))[0]


def full_size_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (B, K, h, w) logits to (H, W) in float32, bilinear without aligned corners."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def build_objective(cfg: CfgNode, num_classes: int) -> CohortObjective:
    """Objective of MODEL.TCC.{SUP,CCD,CFCD}.

    Raises:
        ConfigError: for a value that makes no sense; names the key.
    """
    node = cfg.MODEL.TCC
    sup, dice, ccd, cfcd = node.SUP, node.SUP.DICE, node.CCD, node.CFCD
    check_choice("MODEL.TCC.CFCD.FEATURE", cfcd.FEATURE, ("backbone", "aspp", "decoder"))
    consistency = ConsistencyOptions(
        stride=cfcd.STRIDE,
        label_source=cfcd.LABEL_SOURCE,
        prototype_scope=cfcd.PROTOTYPE_SCOPE,
        detach_prototype=cfcd.DETACH_PROTOTYPE,
        direction=cfcd.DIRECTION,
        min_pixels=cfcd.MIN_PIXELS,
        conf_threshold=cfcd.CONF_THRESHOLD,
        normalize=cfcd.NORMALIZE,
        resize=cfcd.RESIZE,
    )
    return CohortObjective(
        num_classes=num_classes,
        supervised=SupervisedOptions(
            dice_weight=sup.DICE_WEIGHT,
            ce_weight=sup.CE_WEIGHT,
            ce_type=sup.CE_TYPE,
            ohem_threshold=sup.OHEM.THRESHOLD,
            ohem_min_kept_per_image=sup.OHEM.MIN_KEPT_PER_IMAGE,
            dice={
                "classes": dice.CLASSES,
                "smooth": dice.SMOOTH,
                "power": dice.POWER,
                "over_batch": dice.BATCH,
                "sync": dice.SYNC,
            },
            balance=build_class_balance(cfg, num_classes),
        ),
        distillation=DistillationOptions(
            enabled=ccd.ENABLED,
            weight=ccd.WEIGHT,
            mode=ccd.MODE,
            temperature=ccd.TEMPERATURE,
            detach=ccd.DETACH,
            reduction=ccd.REDUCTION,
            on_labeled=ccd.ON_LABELED,
            on_unlabeled=ccd.ON_UNLABELED,
            loss_stride=ccd.LOSS_STRIDE,
            conf_threshold=ccd.CONF_THRESHOLD,
            normalize_by=ccd.NORMALIZE_BY,
            source=node.TARGETS.SOURCE,
        ),
        consistency=consistency if cfcd.ENABLED else None,
        consistency_weight=cfcd.WEIGHT,
        consistency_on_labeled=cfcd.ON_LABELED,
        feature=cfcd.FEATURE,
    )
