# SPDX-License-Identifier: Apache-2.0
"""Training of SalSeg: images with class labels and images with saliency side by side, one optimizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from padding.data.class_frequency import class_weights
from padding.data.saliency.stream import build_saliency_stream
from padding.data.streams import PairedStream, TrainStream
from padding.engine.distributed import micro_batch_size
from padding.engine.optimizer import base_learning_rate, groups_of_parts, make_optimizer
from padding.engine.stand_in import add_saliency, stand_in_sample
from padding.engine.trainer import TRAINER_REGISTRY, Trainer
from padding.errors import ConfigError, MethodError
from salseg.meta_arch import SalSeg
from salseg.task_weighting import tasks_of


def class_frequency_file(cfg: CfgNode) -> Path:
    """Where a training keeps the counts behind its class weights."""
    return Path(cfg.MODEL.SALSEG.CLASS_WEIGHTS.CACHE or Path(cfg.OUTPUT_DIR) / "class_frequency.json")


@TRAINER_REGISTRY.register()
class SalSegTrainer(Trainer):
    """Train ``SalSeg`` on SOLVER.IMS_PER_BATCH images with classes and IMS_PER_BATCH_SALIENCY with saliency a step.

    Without saliency (MODEL.SALSEG.SALIENCY.ENABLED False, or WEIGHTING "seg_only") no image of the second kind is read,
    with "saliency_only" none of the first. Accumulation and several processes split both kinds evenly.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything; class weights are counted now, or read from the file that keeps them."""
        super().__init__(cfg)
        if cfg.MODEL.SALSEG.CLASS_WEIGHTS.ENABLED and "seg" in tasks_of(cfg.MODEL.SALSEG.WEIGHTING):
            module = self.module
            assert isinstance(module, SalSeg)
            over = cfg.MODEL.SALSEG.CLASS_WEIGHTS.OVER
            module.set_class_weights(class_weights(cfg, cache=class_frequency_file(cfg), over=over))

    def build_optimizers(self, cfg: CfgNode, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """One optimizer: pyramid and decoders at BASE_LR, the backbone at BACKBONE_MULTIPLIER times it, log-variances.

        Raises:
            MethodError: if the model is not ``SalSeg``.
        """
        if not isinstance(model, SalSeg):
            raise MethodError(f"TRAINER 'SalSegTrainer' trains SalSeg, not {type(model).__name__}.")
        solver, node = cfg.SOLVER, cfg.MODEL.SALSEG
        rate = base_learning_rate(solver)
        parts: list[tuple[nn.Module, float]] = [
            (model.backbone, rate * solver.BACKBONE_MULTIPLIER),
            (model.pyramid, rate),
            (model.decoder, rate),
        ]
        if model.branch is not None:
            parts.append((model.branch, rate * node.SALIENCY.LR_MULTIPLIER))
        groups = groups_of_parts(solver, parts)
        log_variances = list(model.weighting.parameters())
        if log_variances:
            # Decay would pull every task's sigma to 1.
            rate *= node.LOG_VARIANCE.LR_MULTIPLIER
            groups.append({"params": log_variances, "lr": rate, "weight_decay": 0.0})
        return {"main": make_optimizer(solver, _merged(groups))}

    def build_stream(self, cfg: CfgNode) -> TrainStream | PairedStream:  # type: ignore[override]
        """This rank's endless micro-batches, samples with class labels first.

        Raises:
            ConfigError: if either kind cannot be split evenly, or saliency is trained without images of it.
        """
        solver, node = cfg.SOLVER, cfg.MODEL.SALSEG
        tasks = tasks_of(node.WEIGHTING)
        saliency = solver.IMS_PER_BATCH_SALIENCY if node.SALIENCY.ENABLED and "saliency" in tasks else 0
        if node.SALIENCY.ENABLED and "saliency" in tasks and saliency < 1:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH_SALIENCY is {saliency}, but MODEL.SALSEG.WEIGHTING '{node.WEIGHTING}' trains "
                "saliency; set it to a number of images, or MODEL.SALSEG.SALIENCY.ENABLED to False"
            )
        parts = (solver.ACCUMULATE_STEPS, comm.get_world_size())
        return build_saliency_stream(
            cfg,
            segmentation_per_batch=micro_batch_size(solver.IMS_PER_BATCH, *parts) if "seg" in tasks else 0,
            saliency_per_batch=micro_batch_size(saliency, *parts) if saliency else 0,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    def stand_in_batch(self, image_size: tuple[int, int]) -> list[dict[str, Any]]:
        """Samples with class labels and samples with saliency, as ``build_stream`` puts them side by side."""
        cfg, keys = self.cfg, self.cfg.INPUT.SALIENCY
        tasks = tasks_of(cfg.MODEL.SALSEG.WEIGHTING)
        labeled = super().stand_in_batch(image_size) if "seg" in tasks else []
        if not (cfg.MODEL.SALSEG.SALIENCY.ENABLED and "saliency" in tasks):
            return labeled
        if cfg.DATASETS.SALIENCY_BATCHES == "joint":
            return [add_saliency(sample) for sample in labeled]
        size = keys.SIZE if keys.MODE == "resize" else keys.CROP
        parts = (cfg.SOLVER.ACCUMULATE_STEPS, comm.get_world_size())
        salient = [
            add_saliency(stand_in_sample(cfg, (size[0], size[1]), 1, image_id=i, labeled=False))
            for i in range(micro_batch_size(cfg.SOLVER.IMS_PER_BATCH_SALIENCY, *parts))
        ]
        return [*labeled, *salient]

    def run_step(self) -> None:
        """One optimizer step; notes how often each set of images was seen."""
        super().run_step()
        if isinstance(self.stream, PairedStream) and comm.is_main_process():
            passes = {f"passes/{name}": value for name, value in self.stream.epochs.items()}
            self.storage.put_scalars(**passes, smoothing_hint=False)

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue, or start from MODEL.WEIGHTS; the saliency passes' own statistics start from the loaded ones."""
        super().resume_or_load(resume=resume)
        module = self.module
        if self.start_iter == 0 and isinstance(module, SalSeg):
            # After ImageNet weights have replaced the running statistics that they were copied from.
            module.statistics.reset()


def _merged(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of one rate and decay become one."""
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        key = (group["lr"], group["weight_decay"])
        if key in merged:
            merged[key]["params"] += group["params"]
        else:
            merged[key] = group
    return list(merged.values())
