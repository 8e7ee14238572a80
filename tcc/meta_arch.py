# SPDX-License-Identifier: Apache-2.0
"""TCC: two students trained as a cohort on labeled and unlabeled images (arXiv 2209.02178, Sec. 3).

Wiring only: images go to the students, their outputs to ``CohortObjective``. One forward per step, so that one
DistributedDataParallel wraps both students and every parameter is used in every step.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from padding.data.sample import IGNORE_LABEL, strong_view_names
from padding.errors import ConfigError, check_choice
from padding.modeling.batching import (
    batch_images,
    batch_label_maps,
    batch_valid_masks,
    map_size,
    register_pixel_statistics,
    require_keys,
)
from padding.modeling.diagnostics import note_observations, training_iteration
from padding.modeling.label_space import learned_split
from padding.modeling.ramp_up import build_ramp_up
from padding.modeling.teacher import BatchNormPolicy, target_pass, update_average, warmed_up
from padding.modeling.tta import SegmentationPlan, segment_sample
from tcc.cutmix import CutMix, build_cutmix
from tcc.objective import CohortBatch, CohortObjective, build_objective, full_size_logits
from tcc.students import Student, build_student

STUDENTS = ("cnn", "vit")
ENSEMBLE = "ensemble"
# Strides up to 32, and spatial reductions that are exact only then (PVT).
_SIZE_DIVISIBILITY = 32


@dataclass(frozen=True)
class Perturbation:
    """What happens to unlabeled images between the view that makes the targets and the one that is trained on.

    Attributes:
        cutmix: mixes images, targets and valid pixels; None: off.
        strong_views: train on so many strong views of the samples; 0: on the weak one.
        feature_dropout: probability of dropping a channel of the students' features.
        feature_view: that of the weak view, which is trained on as well.
        batch_norm: of the pass that makes the targets.
        ema_decay: targets come from moving averages of the students; 0: from the students.
        ema_warm_up: the decay begins at 0, see ``warmed_up``.
    """

    cutmix: CutMix | None = None
    strong_views: int = 0
    feature_dropout: float = 0.0
    feature_view: bool = False
    batch_norm: BatchNormPolicy = "batch_no_update"
    ema_decay: float = 0.0
    ema_warm_up: bool = False

    def __post_init__(self) -> None:
        """Check that a view of perturbed features has a perturbation.

        Raises:
            ConfigError: names the keys.
        """
        if self.feature_view and self.feature_dropout <= 0:
            raise ConfigError(
                "MODEL.TCC.FEATURE_VIEW needs MODEL.TCC.FEATURE_DROPOUT above 0: nothing else perturbs it"
            )

    @property
    def needs_target_pass(self) -> bool:
        """Whether targets come from another forward than the one with gradients."""
        return self.cutmix is not None or self.strong_views > 0 or self.feature_dropout > 0 or self.ema_decay > 0


class _Images(NamedTuple):
    """Images of a batch."""

    pixels: Tensor  # (B, 3, H, W) float, normalised
    valid: Tensor  # (B, H, W) bool


@META_ARCH_REGISTRY.register()
class TCC(nn.Module):
    """Two students; in evaluation the probabilities of one of them or the mean of both.

    ``forward`` takes samples with ``image`` (3, H, W) uint8. In training the labeled ones carry ``sem_seg`` (H, W)
    int64, the others ``is_labeled`` False; all may carry ``valid`` (H, W) bool, False in padding. It returns weighted
    losses ``loss_*`` in training, in evaluation ``[{"sem_seg": (K, h, w) float probabilities}]`` with
    ``sem_seg_cnn``, ``sem_seg_vit`` and ``sem_seg_ensemble`` beside it as far as TEST.SEM_SEG.PARTS names them.

    Attributes:
        cnn, vit: the students; one of them is None in a model of an exported student.
        averages: moving averages of the students by name, empty unless MODEL.TCC.EMA is on.
    """

    required_train_keys = ("image",)

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        students: Mapping[str, Student],
        num_classes: int,
        objective: CohortObjective,
        ramp_up: Callable[[int], float],
        perturbation: Perturbation,
        plan: SegmentationPlan,
        outputs: Sequence[str],
        pixels: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Put the parts together.

        Args:
            students: "cnn" and "vit", or one of them.
            num_classes: K.
            objective: losses of both students' outputs.
            ramp_up: iteration -> weight of the unsupervised losses, g(t).
            perturbation: what happens to unlabeled images.
            plan: how an image is segmented in evaluation.
            outputs: whose probabilities are returned in evaluation, the prediction first.
            pixels: mean and standard deviation per channel, in the channel order of the input.

        Raises:
            ValueError: if an output needs a student that is not there.
        """
        super().__init__()
        self.cnn, self.vit = (students.get(name) for name in STUDENTS)
        self.num_classes = num_classes
        self.objective = objective
        self.class_balance = objective.supervised.balance  # moves with the model
        self.ramp_up = ramp_up
        self.perturbation = perturbation
        self.plan = plan
        self.outputs = tuple(outputs)
        _check_outputs(self.outputs, tuple(self.students))
        self.averages = nn.ModuleDict()
        if perturbation.ema_decay > 0:
            self.averages.update({name: copy.deepcopy(student) for name, student in self.students.items()})
            self.averages.requires_grad_(False)
        register_pixel_statistics(self, *pixels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config; the classes are those of the training set, else of the test set."""
        node = cfg.MODEL.TCC
        check_choice("MODEL.TCC.STUDENTS", node.STUDENTS, ("both", *STUDENTS))
        names = STUDENTS if node.STUDENTS == "both" else (node.STUDENTS,)
        split = learned_split(cfg)
        students = {name: build_student(cfg, name.upper(), split.num_classes) for name in names}
        parts = [part for part in cfg.TEST.SEM_SEG.PARTS if len(names) > 1 or part in names]
        return {
            "students": students,
            "num_classes": split.num_classes,
            "objective": build_objective(cfg, split.num_classes),
            "ramp_up": build_ramp_up(node.RAMP_UP, max_iter=cfg.SOLVER.MAX_ITER, key="MODEL.TCC.RAMP_UP"),
            "perturbation": Perturbation(
                cutmix=build_cutmix(cfg),
                strong_views=cfg.INPUT.STRONG_VIEWS * node.STRONG_AUG,
                feature_dropout=node.FEATURE_DROPOUT,
                feature_view=node.FEATURE_VIEW,
                batch_norm=node.CUTMIX.TEACHER_BN,
                ema_decay=node.EMA.DECAY,
                ema_warm_up=node.EMA.WARM_UP,
            ),
            "plan": SegmentationPlan.from_config(cfg, size_divisibility=_SIZE_DIVISIBILITY),
            "outputs": [node.TEST.STUDENT if len(names) > 1 else names[0], *parts],
            "pixels": (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
        }

    @property
    def students(self) -> dict[str, Student]:
        """The students by name."""
        both = {"cnn": self.cnn, "vit": self.vit}
        return {name: student for name, student in both.items() if student is not None}

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, predictions in evaluation.

        Raises:
            KeyError: if a sample lacks what it must have.
            ValueError: if no image to train on has labels.
        """
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        if not self.training:
            return [self._predict(sample) for sample in batched_inputs]

        # Images: labeled (B_l, 3, H, W) and, where the step has them, unlabeled (B_u, 3, H', W').
        labeled, unlabeled = self._by_kind(batched_inputs)
        images = [self._images(labeled)]

        # Targets of the unlabeled images: student -> (B_u, K, H', W'), of the images as they are; what is trained on
        # is their perturbed view. None: the students' outputs are each other's targets.
        weak_targets = targets = None
        if unlabeled:
            trained = weak = self._images(unlabeled)
            if self.perturbation.needs_target_pass:
                weak_targets = self._target_logits(weak.pixels)
                trained, targets = self._perturbed(weak, weak_targets, unlabeled)
            images += [trained, weak] if self.perturbation.feature_view else [trained]

        # Outputs: "logits" (B, K, h, w) and features of both students, for each kind of images (Sec. 3.1).
        outputs = self._student_outputs(images)

        # Losses: L_s with labels (Eq. 10), g(t) (L_d + lambda L_f) between the students (Eq. 7 to 9).
        labels = batch_label_maps(
            labeled, padded_size=map_size(images[0].pixels), ignore_label=IGNORE_LABEL, device=self.device
        )
        losses, observations = self.objective(
            CohortBatch(outputs[0], images[0].valid, labels=labels),
            CohortBatch(outputs[1], images[1].valid, targets=targets) if unlabeled else None,
            self.ramp_up(training_iteration()),
            CohortBatch(outputs[2], images[2].valid, targets=weak_targets) if len(images) > 2 else None,
        )
        note_observations("tcc", observations)
        return losses

    # Training -----------------------------------------------------------------------------------------------------

    def _by_kind(self, samples: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Labeled and unlabeled samples."""
        labeled = [sample for sample in samples if sample.get("is_labeled", True)]
        unlabeled = [sample for sample in samples if not sample.get("is_labeled", True)]
        if not labeled:
            raise ConfigError(
                f"none of the {len(samples)} images of this step has labels, and TCC needs one in every step; keep "
                "SOLVER.IMS_PER_BATCH_UNLABELED below SOLVER.IMS_PER_BATCH and train with SemiSupervisedTrainer"
            )
        require_keys(labeled, ("sem_seg",), f"{type(self).__name__} (a labeled image)")
        return labeled, unlabeled

    def _images(self, samples: Sequence[dict[str, Any]]) -> _Images:
        pixels = self._pixels(samples)
        return _Images(pixels, batch_valid_masks(samples, padded_size=map_size(pixels), device=self.device))

    def _pixels(self, samples: Sequence[dict[str, Any]], key: str = "image") -> Tensor:
        """Normalised and padded images, (B, 3, H, W)."""
        require_keys(samples, (key,), type(self).__name__)
        return batch_images(
            samples,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=_SIZE_DIVISIBILITY,
            key=key,
        ).tensor

    def _perturbed(
        self, weak: _Images, weak_targets: dict[str, Tensor], samples: Sequence[dict[str, Any]]
    ) -> tuple[_Images, dict[str, Tensor]]:
        """Images to train on, one view of the batch after the other, and each student's logits as their targets."""
        cutmix = self.perturbation.cutmix
        others, partner, partner_targets = samples, weak, weak_targets
        if cutmix is not None and cutmix.partner == "second_stream":
            require_keys(samples, ("partner",), f"{type(self).__name__} with CUTMIX.PARTNER 'second_stream'")
            others = [sample["partner"] for sample in samples]
            partner = self._images(others)
            partner_targets = self._target_logits(partner.pixels)
        views, targets = [], []
        for key in strong_view_names(self.perturbation.strong_views) or ("image",):
            view = self._with_colors(weak, samples, key)
            mixed_targets = weak_targets
            if cutmix is not None:
                other = view if others is samples else self._with_colors(partner, others, key)
                # One draw for all: pixels, valid pixels and targets get the same boxes of the same partner.
                mixing = cutmix.draw(len(view.pixels), map_size(view.pixels), device=self.device)
                view = _Images(mixing(view.pixels, other.pixels), mixing(view.valid, other.valid))
                mixed_targets = {name: mixing(z, partner_targets[name]) for name, z in weak_targets.items()}
            views.append(view)
            targets.append(mixed_targets)
        trained = _Images(*(torch.cat(parts) for parts in zip(*views, strict=True)))
        return trained, {name: torch.cat([of_view[name] for of_view in targets]) for name in weak_targets}

    def _with_colors(self, images: _Images, samples: Sequence[dict[str, Any]], key: str) -> _Images:
        return images if key == "image" else images._replace(pixels=self._pixels(samples, key))

    def _target_logits(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> (B, K, H, W) of each student or its average, without gradient."""
        teachers = self.averages if len(self.averages) else self.students
        targets = {}
        for name, teacher in teachers.items():
            with target_pass(teacher, self.perturbation.batch_norm, key="MODEL.TCC.CUTMIX.TEACHER_BN"):
                targets[name] = full_size_logits(teacher(pixels)["logits"], map_size(pixels))
        return targets

    def _student_outputs(self, images: Sequence[_Images]) -> list[dict[str, dict[str, Tensor]]]:
        """For each kind of images the outputs of each student, from one forward where their sizes allow it."""
        dropout = self.perturbation.feature_dropout
        counts = [len(batch.pixels) for batch in images]
        # Together all kinds share the batch norm's statistics; dropout is for unlabeled images alone, the last kind.
        together = dropout == 0 and len({batch.pixels.shape[-2:] for batch in images}) == 1
        outputs: list[dict[str, dict[str, Tensor]]] = [{} for _ in images]
        for name, student in self.students.items():
            if together:
                joint = student(torch.cat([batch.pixels for batch in images]))
                pieces = {key: value.split(counts) for key, value in joint.items()}
                for kind, of_kind in enumerate(outputs):
                    of_kind[name] = {key: parts[kind] for key, parts in pieces.items()}
            else:
                rates = (0.0, 0.0, dropout) if len(images) > 2 else (0.0, dropout)
                for of_kind, batch, rate in zip(outputs, images, rates, strict=False):
                    of_kind[name] = student(batch.pixels, feature_dropout=rate)
        return outputs

    def update_averages(self) -> None:
        """Move the averages towards the students, once per optimiser step."""
        decay = self.perturbation.ema_decay
        if self.perturbation.ema_warm_up:
            decay = warmed_up(decay, training_iteration())
        for name, average in self.averages.items():
            update_average(average, self.students[name], decay)

    def reset_averages(self) -> None:
        """Make the averages equal to the students, as a training starts from the latter's weights."""
        for name, average in self.averages.items():
            average.load_state_dict(self.students[name].state_dict())

    # Evaluation ---------------------------------------------------------------------------------------------------

    def logits(self, view: Tensor) -> dict[str, Tensor]:
        """Class logits of what is predicted, of images (B, 3, H, W) float, normalized.

        Returns:
            ``sem_seg`` (B, K, H/4, W/4); of the ensemble the logarithm of its mean probabilities, (B, K, H, W).
        """
        prediction = self.outputs[0]
        if prediction != ENSEMBLE:
            return {"sem_seg": self._student_logits(view, (prediction,))[prediction]}
        of_student = self._student_logits(view, STUDENTS)
        wide = [full_size_logits(of_student[name], map_size(view)).float() for name in STUDENTS]
        return {"sem_seg": torch.stack([maps.softmax(dim=1) for maps in wide]).mean(dim=0).log()}

    def _student_logits(self, view: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        networks = self.averages if len(self.averages) else self.students
        return {name: networks[name](view)["logits"] for name in names}

    def _predict(self, sample: Mapping[str, Any]) -> dict[str, Tensor]:
        needed = STUDENTS if ENSEMBLE in self.outputs else [name for name in STUDENTS if name in self.outputs]
        logits = partial(self._student_logits, names=needed)
        # (K, h, w) probabilities by name; the ensemble averages probabilities, so that neither student's scale decides.
        scores = segment_sample(logits, sample, self.plan, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std)
        if ENSEMBLE in self.outputs:
            scores[ENSEMBLE] = (scores["cnn"] + scores["vit"]) / 2
        prediction, *parts = self.outputs
        return {"sem_seg": scores[prediction], **{f"sem_seg_{part}": scores[part] for part in parts}}


def _check_outputs(outputs: Sequence[str], students: Sequence[str]) -> None:
    known = (*students, ENSEMBLE) if len(students) > 1 else tuple(students)
    unknown = [name for name in outputs if name not in known]
    if unknown:
        raise ConfigError(
            f"MODEL.TCC.TEST.STUDENT or TEST.SEM_SEG.PARTS asks for '{unknown[0]}'; this model has {', '.join(known)}"
        )
