# SPDX-License-Identifier: Apache-2.0
"""A trainer's step at its full size on images that stand in for a data set: what ``padding.engine.plan`` looks at.

Methods whose steps read something else override what they need.
"""

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from torch import nn

from padding.engine.distributed import micro_batch_size
from padding.engine.stand_in import stand_in_sample, training_size
from padding.modeling.label_space import training_split


class Rehearsal:
    """What a ``Trainer`` can do without data sets, folders and records."""

    cfg: CfgNode
    micro_batch_size: int
    accumulate_steps: int
    _step_losses: dict[str, torch.Tensor]

    def run_step(self) -> None:
        """One iteration of the training."""
        raise NotImplementedError

    @classmethod
    def take_share(cls, cfg: CfgNode, num_processes: int) -> None:
        """Leave in a configuration the images that one of several processes has of a step; in place.

        Raises:
            ConfigError: if they cannot be split evenly.
        """
        for key in ("IMS_PER_BATCH", "IMS_PER_BATCH_UNLABELED", "IMS_PER_BATCH_SALIENCY"):
            if images := cfg.SOLVER[key]:
                parts = cfg.SOLVER.ACCUMULATE_STEPS
                cfg.SOLVER[key] = micro_batch_size(images, parts, num_processes) * parts

    @classmethod
    def images_of_step(cls, cfg: CfgNode) -> int:
        """Images whose losses make one step of the optimiser."""
        return int(cfg.SOLVER.IMS_PER_BATCH)

    @classmethod
    def stand_in_files(cls, cfg: CfgNode) -> AbstractContextManager[CfgNode]:
        """The configuration with files that may not be there yet replaced, within a context."""
        return nullcontext(cfg)

    @classmethod
    def for_rehearsal(cls, cfg: CfgNode, model: nn.Module, image_size: tuple[int, int]) -> Any:
        """A trainer that can ``run_step`` without data sets, folders and records.

        Args:
            cfg: of the training.
            model: of this configuration.
            image_size: (h, w) of the photographs.
        """
        trainer: Any = cls.__new__(cls)
        TrainerBase.__init__(trainer)
        trainer.cfg, trainer.max_iter, trainer.iter, trainer.seed = cfg, cfg.SOLVER.MAX_ITER, 0, 0
        trainer.accumulate_steps = cfg.SOLVER.ACCUMULATE_STEPS
        trainer.micro_batch_size = trainer.images_per_forward(cfg)
        trainer.model, trainer.device = model, next(model.parameters()).device
        trainer.optimizers = trainer.build_optimizers(cfg, model)
        trainer.schedulers = trainer.build_schedulers(cfg)
        trainer.scalers = {name: trainer._build_scaler() for name in trainer.optimizers}
        trainer._step_losses, trainer._data_seconds = {}, 0.0
        trainer.stream = None
        trainer._batches = itertools.repeat(trainer.stand_in_batch(image_size))
        model.train()
        return trainer

    def stand_in_batch(self, image_size: tuple[int, int]) -> Any:
        """What ``next_batch`` gives in a rehearsal: samples as large as those of a training."""
        size, num_classes = training_size(self.cfg, image_size), training_split(self.cfg).num_classes
        return [stand_in_sample(self.cfg, size, num_classes, image_id=i) for i in range(self.micro_batch_size)]

    def operations_of(self, rehearsed: float, images: int) -> tuple[float, float, float]:
        """Operations of a training in parts.

        Args:
            rehearsed: those of ``rehearse``.
            images: of the training set.

        Returns:
            Once in a training, in every iteration, and of the forward pass of one image. A backward pass takes two
            forward passes.
        """
        del images
        return 0.0, rehearsed, rehearsed / 3 / max(self.micro_batch_size * self.accumulate_steps, 1)

    def memory_savings(self) -> list[Any]:
        """KEY, VALUE, ... with which this method needs less memory for the same result."""
        return []

    def stored_bytes_per_image(self) -> float:
        """What a training writes for each of its images, in bytes."""
        return 0.0

    def rehearse(self) -> None:
        """One iteration, with everything in it that takes memory."""
        self.run_step()
        self._step_losses = {}
