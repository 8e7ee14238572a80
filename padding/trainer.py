# SPDX-License-Identifier: Apache-2.0
"""The second stage of PADing: one optimiser for the generator, one for the classifier (sections 3.2 to 3.4, Alg. 1).

Features come from the frozen segmentor in every iteration, or from a bank on disk. Losses are computed on the features
of all ranks together, so that several processes give what one would.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from padding.bank.feature_bank import (
    BankSpec,
    FeatureBank,
    FeatureBatch,
    FeatureStream,
    build_feature_bank,
    concatenate,
    gather_features,
    is_complete,
    weights_digest,
)
from padding.bank.identity import bank_origin
from padding.bank.seen_statistics import SeenStatistics, StatisticsHook
from padding.build import find_embeddings
from padding.checkpoint import load_padding_weights
from padding.class_moments import ClassMoments
from padding.data.class_embeddings import random_class_embeddings, save_class_embeddings
from padding.data.mappers import build_mapper
from padding.data.streams import TrainStream, load_training_entries
from padding.engine.cpu_time import stage
from padding.engine.distributed import unwrap
from padding.engine.optimizer import build_optimizer, lr_multiplier, solver_node
from padding.engine.output_folder import check_writable
from padding.engine.stand_in import SEGMENTS
from padding.engine.trainer import TRAINER_REGISTRY, Trainer
from padding.errors import ConfigError, MethodError, check_choice
from padding.extension import ExtensionReport, add_classes_to, packed_entries_of
from padding.meta_arch import STEPS, PADing
from padding.modeling.label_space import evaluation_split

_CLIP_WIDTH = 512  # of a table of class embeddings that is not there yet


@TRAINER_REGISTRY.register()
class GeneratorClassifierTrainer(Trainer):
    """Train the parts of ``PADing``; its optimisers are named "generator" and "classifier".

    METHOD "projection" has the classifier's alone. With SCHEDULE "sequential" the first GENERATOR_SHARE of the
    iterations train the generator, the others the classifier.
    """

    stage_name = "second_stage"
    # Each step leaves the other step's parameters without gradient.
    find_unused_parameters = True

    @classmethod
    def load_weights(cls, model: nn.Module, path: str, *, complete: bool) -> None:
        """Load a PADing checkpoint, or a pretrained segmentor whose class rows start the classifier."""
        if not isinstance(model, PADing):
            raise MethodError(f"TRAINER 'GeneratorClassifierTrainer' trains PADing, not {type(model).__name__}.")
        load_padding_weights(model, path, complete=complete)

    @classmethod
    def add_classes(cls, cfg: CfgNode, model: nn.Module, names: Sequence[str], **options: Any) -> ExtensionReport:
        """Add classes to a trained PADing, in place; see ``padding.extension.add_classes_to``."""
        if not isinstance(model, PADing):
            raise MethodError(f"TRAINER 'GeneratorClassifierTrainer' extends PADing, not {type(model).__name__}.")
        return add_classes_to(model, cfg, names, **options)

    @classmethod
    def packed_entries(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Classes, seen statistics and the table of class embeddings: what adding classes needs."""
        return packed_entries_of(cfg, cast(PADing, model))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate on DATASETS.TEST; classes that were added to the model compete, but are no part of the results."""
        module = cast(PADing, unwrap(model))
        with module.limited_to(evaluation_split(cfg).num_classes):
            return super().test(cfg, model)

    def images_per_forward(self, cfg: CfgNode) -> int:
        """Images of one forward pass of the segmentor; any number of processes may share the writing of a bank."""
        if cfg.MODEL.PADING.FEATURE_BANK.ENABLED:
            return math.ceil(cfg.SOLVER.IMS_PER_BATCH / comm.get_world_size())
        return super().images_per_forward(cfg)

    def build_optimizers(self, cfg: CfgNode, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """One optimiser for each step that has parameters.

        Raises:
            MethodError: if the model is not ``PADing``.
            ConfigError: if there is nothing to train.
        """
        if not isinstance(model, PADing):
            raise MethodError(f"TRAINER 'GeneratorClassifierTrainer' trains PADing, not {type(model).__name__}.")
        schedule, share = cfg.MODEL.PADING.SCHEDULE, cfg.MODEL.PADING.GENERATOR_SHARE
        check_choice("MODEL.PADING.SCHEDULE", schedule, ("interleaved", "sequential"))
        if not 0 < share < 1:
            raise ConfigError(f"MODEL.PADING.GENERATOR_SHARE is {share}; expected a number between 0 and 1.")
        optimizers = {
            step: build_optimizer(cfg, modules, name=step) for step in STEPS if len(modules := model.step_modules(step))
        }
        if not optimizers:
            raise ConfigError(
                "MODEL.PADING.METHOD 'supervised' has nothing to train beyond its segmentor; evaluate it with "
                "--eval-only."
            )
        return optimizers

    def build_schedulers(self, cfg: CfgNode) -> dict[str, LRScheduler]:
        """The schedules of both optimisers; in sequence each spans its own iterations."""
        first = self._first_classifier_iteration()
        if first == 0:
            return super().build_schedulers(cfg)
        # Each phase has a schedule of its own length, warm-up and decay included.
        spans = {"generator": (0, first), "classifier": (first, self.max_iter - first)}
        return {
            step: PhaseSchedule(
                optimizer, _phase_multiplier(solver_node(cfg, step), length), first=start, length=length
            )
            for step, optimizer in self.optimizers.items()
            for start, length in [spans[step]]
        }

    def build_stream(self, cfg: CfgNode) -> TrainStream | FeatureStream:  # type: ignore[override]
        """Images, or features from the bank; the bank is opened, and made if need be, at the first batch."""
        options = cfg.MODEL.PADING.FEATURE_BANK
        if not options.ENABLED:
            return super().build_stream(cfg)
        folder = self._bank_folder()
        if comm.is_main_process() and not is_complete(folder):  # hours of features are not to be lost
            check_writable(folder)
        images = options.IMAGES_PER_BATCH or cfg.SOLVER.IMS_PER_BATCH
        return FeatureStream(self.open_feature_bank, images_per_batch=images, seed=self.seed)

    def build_hooks(self) -> list[HookBase]:
        """Those of the core, and one that keeps some features of every class, for classes added later."""
        enabled = self.cfg.MODEL.PADING.FEATURE_BANK.ENABLED
        self.statistics = self._statistics_hook(self.open_feature_bank if enabled else None)
        return [*super().build_hooks(), self.statistics]

    def _statistics_hook(self, bank: Callable[[], FeatureBank] | None) -> StatisticsHook:
        options = self.cfg.MODEL.PADING.STATISTICS
        return StatisticsHook(
            SeenStatistics(self.segmentor.label_space.names, per_class=options.PER_CLASS, no_object=options.NO_OBJECT),
            self.cfg.OUTPUT_DIR,
            period=self.cfg.SOLVER.CHECKPOINT_PERIOD,
            images_per_step=self.cfg.SOLVER.IMS_PER_BATCH,
            origin=lambda: weights_digest(self.segmentor.frozen_parts),
            bank=bank,
        )

    @classmethod
    def take_share(cls, cfg: CfgNode, num_processes: int) -> None:
        """See the base; with a feature bank any number of processes extract, and each trains on whole batches."""
        if not cfg.MODEL.PADING.FEATURE_BANK.ENABLED:
            super().take_share(cfg, num_processes)
            return
        cfg.MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH = cls.images_of_step(cfg)
        cfg.SOLVER.IMS_PER_BATCH = math.ceil(cfg.SOLVER.IMS_PER_BATCH / num_processes)

    @classmethod
    def images_of_step(cls, cfg: CfgNode) -> int:
        """Images whose features make one batch."""
        options = cfg.MODEL.PADING.FEATURE_BANK
        return int((options.ENABLED and options.IMAGES_PER_BATCH) or cfg.SOLVER.IMS_PER_BATCH)

    @classmethod
    @contextmanager
    def stand_in_files(cls, cfg: CfgNode) -> Iterator[CfgNode]:
        """Random vectors stand in for a table of class embeddings that is not there yet."""
        path = cfg.MODEL.PADING.EMBEDDINGS.PATH
        if not path or find_embeddings(path).is_file():
            yield cfg
            return
        names = evaluation_split(cfg).names
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "stand_in.npz"
            save_class_embeddings(table, names, random_class_embeddings(names, _CLIP_WIDTH, seed=0))
            own = cfg.clone()
            own.defrost()
            own.MODEL.PADING.EMBEDDINGS.PATH = str(table)
            own.freeze()
            yield own

    def stand_in_batch(self, image_size: tuple[int, int]) -> Any:
        """Samples; with a feature bank the features of as many images as make a batch."""
        options = self.cfg.MODEL.PADING.FEATURE_BANK
        # The statistics are kept on the CPU and read nothing of a step where there is a bank.
        self.statistics = self._statistics_hook(self.open_feature_bank)
        samples = super().stand_in_batch(image_size)
        if not options.ENABLED:
            return samples
        self._stand_in_samples = samples
        split, images = self.segmentor.label_space, options.IMAGES_PER_BATCH or self.cfg.SOLVER.IMS_PER_BATCH
        others = options.NO_OBJECT_PER_IMAGE or self.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
        seen = torch.tensor(split.seen_ids)
        labels = torch.cat(
            [seen[torch.arange(images * SEGMENTS) % len(seen)], torch.tensor(split.num_classes).expand(images * others)]
        )
        channels = self.segmentor.embedding_dim
        return FeatureBatch(torch.randn(len(labels), channels), labels, torch.ones(len(labels)))

    def operations_of(self, rehearsed: float, images: int) -> tuple[float, float, float]:
        """See the base; nearly all of it is the frozen segmentor, which with a bank sees the images VIEWS times."""
        forward = rehearsed / max(self.micro_batch_size * self.accumulate_steps, 1)
        options = self.cfg.MODEL.PADING.FEATURE_BANK
        return (forward * images * options.VIEWS, 0.0, forward) if options.ENABLED else (0.0, rehearsed, forward)

    def stored_bytes_per_image(self) -> float:
        """Rows of the feature bank: matched queries and unmatched ones, each with its label and weight."""
        options = self.cfg.MODEL.PADING.FEATURE_BANK
        rows = SEGMENTS + (options.NO_OBJECT_PER_IMAGE or self.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES - SEGMENTS)
        row = self.segmentor.embedding_dim * (2 if options.DTYPE == "float16" else 4) + 8
        return float(rows * row * options.VIEWS) if options.ENABLED else 0.0

    def rehearse(self) -> None:
        """One iteration; before it, with a feature bank, the features of one batch of images."""
        if self.cfg.MODEL.PADING.FEATURE_BANK.ENABLED:
            with self.autocast():
                self.segmentor.extract(self._stand_in_samples)
        super().rehearse()

    def run_step(self) -> None:
        """One step of the generator and then of the classifier, on the same features."""
        # The same rows for both steps: the segmentor, which is frozen, runs once.
        features = self._next_features()
        self.statistics.add(features)
        # Algorithm 1 trains one after the other; interleaved, as released, both take part in every iteration.
        for step in self._active_steps():
            rows = self.moments.fill(features) if self.moments is not None and step == "generator" else features
            with self.autocast():
                # One loss per optimiser: their graphs share no parameter, so each has a backward of its own.
                losses = self.model(rows, step=step)
            # The features of all micro-batches make one loss: undo the division that averages micro-batches.
            whole = {name: loss * self.accumulate_steps for name, loss in losses.items()}
            self.backward(torch.stack(list(whole.values())).sum(), step)
            self.record(whole)
            self.optimizer_step(step)

    @cached_property
    def moments(self) -> ClassMoments | None:
        """Running moments of the classes; None without MMD.ROWS_PER_CLASS."""
        rows = self.cfg.MODEL.PADING.MMD.ROWS_PER_CLASS
        if rows < 0:
            raise ConfigError(f"MODEL.PADING.MMD.ROWS_PER_CLASS is {rows}; expected a number of rows, or 0 for none.")
        model = self.segmentor
        return ClassMoments(model.num_test_classes, model.embedding_dim, rows) if rows else None

    def state_dict(self) -> dict[str, Any]:
        """The base's state and the running moments. Collective."""
        moments = {} if self.moments is None else {"moments": self.moments.state_dict()}
        return {**super().state_dict(), **moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; moments that a checkpoint has not start anew."""
        super().load_state_dict(state)
        if self.moments is not None and "moments" in state:
            self.moments.load_state_dict(state["moments"])

    def open_feature_bank(self) -> FeatureBank:
        """Open the bank of this configuration, writing what is missing. Collective.

        Raises:
            ValueError: if the folder holds the features of another segmentor, data set or configuration.
        """
        cfg, options, model = self.cfg, self.cfg.MODEL.PADING.FEATURE_BANK, self.segmentor
        entries = load_training_entries(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        spec = BankSpec(
            num_images=len(entries),
            num_classes=model.num_test_classes,
            views=options.VIEWS,
            no_object_per_image=options.NO_OBJECT_PER_IMAGE,
            images_per_shard=options.SHARD_SIZE,
            batch_size=self.micro_batch_size,
            dtype=options.DTYPE,
            seed=options.SEED,
            origin=bank_origin(cfg, model.frozen_parts, model.label_space, model.class_ids, entries),
        )
        mapper = build_mapper(cfg, is_train=True)

        # The bank's stream knows no ranks: each process writes whole shards of its own.
        def open_stream(start: int, batch_size: int) -> Iterator[list[dict[str, Any]]]:
            return TrainStream(
                entries,
                mapper,
                batch_size=batch_size,
                seed=options.SEED,
                start=start,
                rank=0,
                world_size=1,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )

        def extract(samples: list[dict[str, Any]]) -> FeatureBatch:
            with self.autocast():
                return self.segmentor.extract(samples)

        with stage("extraction"):
            return build_feature_bank(self._bank_folder(), spec, extract, open_stream)

    def _bank_folder(self) -> Path:
        return Path(self.cfg.MODEL.PADING.FEATURE_BANK.PATH or Path(self.cfg.OUTPUT_DIR) / "feature_bank")

    @property
    def segmentor(self) -> PADing:
        """The model without DistributedDataParallel, for what no gradient passes through."""
        return cast(PADing, self.module)

    def _next_features(self) -> FeatureBatch:
        """Features of one optimiser step, of all ranks together, on this rank's device."""
        if self.cfg.MODEL.PADING.FEATURE_BANK.ENABLED:
            return cast(FeatureBatch, self.next_batch()).to(self.device)
        parts = []
        for _ in range(self.accumulate_steps):
            samples = self.next_batch()
            with self.autocast():
                parts.append(self.segmentor.extract(samples))
        # Losses over all pairs of rows (MMD) need the whole batch: every rank gets all features and computes the same.
        return gather_features(concatenate(parts))

    def _active_steps(self) -> list[str]:
        first = self._first_classifier_iteration()
        if first == 0:
            return list(self.optimizers)
        return ["generator" if self.iter < first else "classifier"]

    def _first_classifier_iteration(self) -> int:
        """0 when the steps are interleaved, or when there is only one."""
        node = self.cfg.MODEL.PADING
        if node.SCHEDULE == "interleaved" or len(self.optimizers) == 1:
            return 0
        return min(max(round(node.GENERATOR_SHARE * self.max_iter), 1), self.max_iter)


def _phase_multiplier(node: CfgNode, length: int) -> Callable[[int], float]:
    """Factor on the rate within a phase of ``length`` iterations.

    STEPS, iterations of a training of MAX_ITER, keep their place relative to its length: as they stand they would lie
    behind the end of a generator that has half of the iterations, and never act.
    """
    node = node.clone()
    node.defrost()
    node.STEPS = tuple(round(step * length / node.MAX_ITER) for step in node.STEPS)
    return lr_multiplier(node, max_iter=length)


class PhaseSchedule(LambdaLR):
    """A schedule over some of the iterations of a training; ``step`` is called in all of them.

    Outside of its iterations nothing happens: a schedule is not stepped before its optimiser has been.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: Callable[[int], float], *, first: int, length: int
    ) -> None:
        """Set the rate of the first iteration.

        Args:
            optimizer: its groups' rates are the base rates.
            multiplier: factor on them as a function of the number of steps of this optimiser.
            first: iteration at which its phase begins.
            length: iterations of its phase.
        """
        self.first = first
        self.length = length
        # The constructor of the base class steps once; that is no iteration.
        self.calls = -1
        super().__init__(optimizer, multiplier)

    def step(self, epoch: int | None = None) -> None:
        """Note one iteration; advance if it belongs to the phase."""
        self.calls += 1
        if self.calls == 0 or self.first < self.calls <= self.first + self.length:
            super().step(epoch)
