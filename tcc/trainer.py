# SPDX-License-Identifier: Apache-2.0
"""Training of TCC: a labeled and an unlabeled stream, and one optimiser with the rates of students and heads."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from padding.data.semi_stream import build_semi_supervised_stream
from padding.data.streams import PairedStream, TrainStream
from padding.engine.distributed import micro_batch_size
from padding.engine.optimizer import base_learning_rate, groups_of_parts, make_optimizer
from padding.engine.trainer import TRAINER_REGISTRY, Trainer
from padding.errors import ConfigError, MethodError
from padding.modeling.weights.loading import load_backbone_weights
from tcc.meta_arch import TCC
from tcc.students import Student, has_blocks


@TRAINER_REGISTRY.register()
class SemiSupervisedTrainer(Trainer):
    """Train ``TCC`` on SOLVER.IMS_PER_BATCH images a step, IMS_PER_BATCH_UNLABELED of them without labels.

    With IMS_PER_BATCH_UNLABELED 0 the unlabeled images are not read: the supervised baseline. Accumulation and several
    processes split both kinds evenly, so that every forward sees them in the same ratio.
    """

    def build_optimizers(self, cfg: CfgNode, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """One optimiser; BASE_LR times the student's LR_MULTIPLIER, for its backbone BACKBONE_MULTIPLIER more.

        Raises:
            MethodError: if the model is not ``TCC``.
            ConfigError: if its students have nothing to learn from.
        """
        if not isinstance(model, TCC):
            raise MethodError(f"TRAINER 'SemiSupervisedTrainer' trains TCC, not {type(model).__name__}.")
        _check_targets(cfg, model)
        rate = base_learning_rate(cfg.SOLVER)
        parts = [part for name in model.students for part in _parts(cfg, name, model, rate)]
        return {"main": make_optimizer(cfg.SOLVER, groups_of_parts(cfg.SOLVER, parts))}

    def build_stream(self, cfg: CfgNode) -> TrainStream | PairedStream:  # type: ignore[override]
        """This rank's endless micro-batches, labeled samples first.

        Raises:
            ConfigError: if either kind cannot be split evenly, or a key that a switch needs is off.
        """
        unlabeled = cfg.SOLVER.IMS_PER_BATCH_UNLABELED
        labeled = cfg.SOLVER.IMS_PER_BATCH - unlabeled
        if labeled < 1:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH_UNLABELED is {unlabeled} of SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: no "
                "labeled image is left"
            )
        if cfg.MODEL.TCC.STRONG_AUG and not (cfg.INPUT.STRONG_VIEW and cfg.INPUT.STRONG_VIEWS > 0):
            raise ConfigError(
                "MODEL.TCC.STRONG_AUG trains on strong views, which INPUT.STRONG_VIEW True and INPUT.STRONG_VIEWS, at "
                "least 1, make; set them too"
            )
        # Both kinds split by the same numbers: each micro-batch and each process has their ratio.
        parts = (cfg.SOLVER.ACCUMULATE_STEPS, comm.get_world_size())
        cutmix = cfg.MODEL.TCC.CUTMIX
        return build_semi_supervised_stream(
            cfg,
            labeled_per_batch=micro_batch_size(labeled, *parts),
            unlabeled_per_batch=micro_batch_size(unlabeled, *parts) if unlabeled else 0,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            partner=cutmix.ENABLED and cutmix.PARTNER == "second_stream",
        )

    def stand_in_batch(self, image_size: tuple[int, int]) -> list[dict[str, Any]]:
        """Labeled and unlabeled samples of a micro-batch, as ``build_stream`` mixes them."""
        samples = super().stand_in_batch(image_size)
        unlabeled = self.cfg.SOLVER.IMS_PER_BATCH_UNLABELED * len(samples) // self.cfg.SOLVER.IMS_PER_BATCH
        cutmix = self.cfg.MODEL.TCC.CUTMIX
        for sample in samples[len(samples) - unlabeled :]:
            for key in ("sem_seg", "instances"):
                sample.pop(key)
            sample["is_labeled"] = False
            if cutmix.ENABLED and cutmix.PARTNER == "second_stream":
                sample["partner"] = dict(sample)
        return samples

    def memory_savings(self) -> list[Any]:
        """Recomputed activations of the students that keep them and have blocks."""
        module: Any = self.module
        words: list[Any] = []
        for name, student in module.students.items():
            if has_blocks(student.backbone) and not self.cfg.MODEL.TCC[name.upper()].CHECKPOINT_ACTIVATIONS:
                words += [f"MODEL.TCC.{name.upper()}.CHECKPOINT_ACTIVATIONS", True]
        return words

    def run_step(self) -> None:
        """One optimiser step, then the moving averages."""
        super().run_step()
        module = self.module
        assert isinstance(module, TCC)
        module.update_averages()
        if isinstance(self.stream, PairedStream) and comm.is_main_process():
            # Lengths are iterations; how often each set was seen is what "epochs" would mean here.
            passes = {f"passes/{name}": value for name, value in self.stream.epochs.items()}
            self.storage.put_scalars(**passes, smoothing_hint=False)

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue, or start from MODEL.WEIGHTS, else the students' own WEIGHTS; averages start from the students."""
        super().resume_or_load(resume=resume)
        if self.start_iter > 0:
            return
        module: Any = self.module
        if not self.cfg.MODEL.WEIGHTS:
            for name, student in module.students.items():
                self._load_student(name, student)
        # After the loading: averages of random weights would be the teacher of the first iterations.
        module.reset_averages()

    def _load_student(self, name: str, student: Student) -> None:
        logger, node = logging.getLogger(__name__), self.cfg.MODEL.TCC[name.upper()]
        if not node.WEIGHTS:
            key = f"MODEL.TCC.{name.upper()}.WEIGHTS"
            logger.info("The %s student (%s) starts from nothing: %s is empty", name, node.BACKBONE, key)
            return
        pixels = (node.PIXEL_MEAN or self.cfg.MODEL.PIXEL_MEAN, node.PIXEL_STD or self.cfg.MODEL.PIXEL_STD)
        key = f"MODEL.TCC.{name.upper()}.BACKBONE"
        report = load_backbone_weights(student.backbone, node.WEIGHTS, key=key, pixels=pixels)
        logger.info("Weights of the %s student from %s:\n%s", name, node.WEIGHTS, report)


def _check_targets(cfg: CfgNode, model: TCC) -> None:
    """Refuse one student without a peer, and targets that are the very scores they teach."""
    node = cfg.MODEL.TCC
    absent = set(cfg.TEST.SEM_SEG.PARTS) - set(model.outputs)
    if len(model.students) == 1 and (node.TARGETS.SOURCE != "self" or node.CFCD.ENABLED or absent):
        raise ConfigError(
            f"MODEL.TCC.STUDENTS is '{node.STUDENTS}': a single student can be evaluated, not trained as half of a "
            "cohort; set 'both', or MODEL.TCC.TARGETS.SOURCE self MODEL.TCC.CFCD.ENABLED False TEST.SEM_SEG.PARTS ()"
        )
    imitates = cfg.SOLVER.IMS_PER_BATCH_UNLABELED > 0 and node.CCD.ENABLED and node.CCD.ON_UNLABELED
    soft_own = node.TARGETS.SOURCE == "self" and node.CCD.MODE == "soft"
    if imitates and soft_own and not model.perturbation.needs_target_pass:
        raise ConfigError(
            "MODEL.TCC.TARGETS.SOURCE is 'self', but nothing tells the targets from the scores, whose divergence is 0: "
            "switch on MODEL.TCC.STRONG_AUG, CUTMIX, FEATURE_DROPOUT or EMA, or CCD.MODE hard"
        )


def _parts(cfg: CfgNode, name: str, model: TCC, base_rate: float) -> list[tuple[nn.Module, float]]:
    """Backbone and head of one student with their rates."""
    student = model.students[name]
    rate = base_rate * cfg.MODEL.TCC[name.upper()].LR_MULTIPLIER
    return [(student.backbone, rate * cfg.SOLVER.BACKBONE_MULTIPLIER), (student.head, rate)]
