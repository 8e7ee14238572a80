# SPDX-License-Identifier: Apache-2.0
"""The training loop shared by all methods: one or several optimisers, exact resume, accumulation, mixed precision.

Built on Detectron2's ``TrainerBase``. A method with another step subclasses ``Trainer``, registers itself in
``TRAINER_REGISTRY`` and overrides ``run_step``; everything that a checkpoint must hold stays here.
"""

import logging
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.evaluation import verify_results
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from padding.data.mappers import build_mapper
from padding.data.streams import TrainStream, load_training_entries
from padding.engine.best_checkpoint import BEST_FILE, BestCheckpoint
from padding.engine.checkpointer import TrainingCheckpointer
from padding.engine.class_weights import set_class_weights
from padding.engine.cpu_time import counted_stages, stage
from padding.engine.distributed import (
    check_equal_on_ranks,
    distribute,
    micro_batch_size,
    restarted_by_torchrun,
    unwrap,
)
from padding.engine.early_stop import EarlyStop, EndOfTraining
from padding.engine.evaluation_loop import add_to_metrics, evaluate
from padding.engine.freezing import freeze_parameters
from padding.engine.hooks import CheckpointHook, CpuSecondsHook, ScheduleHook
from padding.engine.optimizer import build_lr_scheduler, build_optimizer, clip_gradients_, solver_node
from padding.engine.random_state import capture_random_state, preserved_random_state, restore_random_state
from padding.engine.records import RecordsHook, mean_losses
from padding.engine.registry import TRAINER_REGISTRY
from padding.engine.rehearsal import Rehearsal
from padding.engine.setup import write_configuration
from padding.engine.termination import Terminated, Termination
from padding.errors import CheckpointError, ConfigError, MethodError
from padding.modeling.weights.loading import load_initial_weights, load_weights


def training_entries(cfg: CfgNode) -> list[dict[str, Any]]:
    """Entries of DATASETS.TRAIN, without empty ones if DATALOADER.FILTER_EMPTY_ANNOTATIONS says so."""
    return load_training_entries(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


@TRAINER_REGISTRY.register()
class Trainer(Rehearsal, TrainerBase):
    """Train one model with one optimiser; the base of trainers with more.

    Attributes:
        cfg: frozen configuration.
        model: the model, inside DistributedDataParallel when there are several processes.
        optimizers, schedulers, scalers: by name; a single one is called "main".
        stream: endless batches of this rank; its position is part of a checkpoint.
        checkpointer: saves and restores all of the above, and the random states of every rank.
        best: keeps the weights of the best evaluation; None without TEST.BEST_METRIC and on ranks other than 0.
        stopping: whether the training ends after this iteration, because a rank got SIGTERM; the same on all ranks.
        cpu_seconds: of this process by stage, see ``padding.engine.cpu_time``; while it trains.
        failing: whether the training ends by an error or an interrupt.
        ended_early: whether it ended by TEST.PATIENCE.
    """

    find_unused_parameters = False
    """Set by subclasses in which a step leaves some trainable parameters without gradient."""

    stage_name = "training"
    """Name of what a step spends in ``cpu_seconds/``, beside ``evaluation``."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.accumulate_steps = cfg.SOLVER.ACCUMULATE_STEPS
        self.micro_batch_size = self.images_per_forward(cfg)
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        module = self.build_model(cfg)
        set_class_weights(cfg, module)
        self.device = next(module.parameters()).device
        # Built before DistributedDataParallel wraps it: parameters keep their names.
        self.optimizers = self.build_optimizers(cfg, module)
        self.schedulers = self.build_schedulers(cfg)
        self.scalers = {name: self._build_scaler() for name in self.optimizers}
        self.model = distribute(module, find_unused_parameters=self.find_unused_parameters)
        self._open_stream()
        self.checkpointer = TrainingCheckpointer(module, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        metric = cfg.TEST.BEST_METRIC if comm.is_main_process() else ""
        self.best = BestCheckpoint(module, cfg.OUTPUT_DIR, metric, cfg.TEST.BEST_IS) if metric else None
        self._step_losses: dict[str, torch.Tensor] = {}
        self._data_seconds = 0.0
        self._last_results: dict[str, Any] = {}
        self.stopping = self.failing = self.ended_early = False
        self._early_stop = EarlyStop(cfg)
        self._termination = Termination()
        self.register_hooks(self.build_hooks())

    # What a method may replace ------------------------------------------------------------------------------------

    def images_per_forward(self, cfg: CfgNode) -> int:
        """Images of one forward pass of one process.

        Raises:
            ConfigError: if the images of a step cannot be split evenly.
        """
        return micro_batch_size(cfg.SOLVER.IMS_PER_BATCH, self.accumulate_steps, comm.get_world_size())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE on MODEL.DEVICE.

        Raises:
            ConfigError: for an unknown name.
        """
        if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
            raise ConfigError(f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; no model has this name")
        model = build_model(cfg)
        freeze_parameters(model, cfg.MODEL.FREEZE)
        logging.getLogger(__name__).info(
            "%s: %.2f M parameters, %.2f M trainable",
            type(model).__name__,
            sum(p.numel() for p in model.parameters()) / 1e6,
            sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
        )
        return model

    @classmethod
    def load_weights(cls, model: nn.Module, path: str, *, complete: bool) -> None:
        """Load initial or final weights into a model without DistributedDataParallel.

        Args:
            model: changed in place.
            path: MODEL.WEIGHTS; to start a training also published weights of the model's ``backbone`` alone.
            complete: True to evaluate (every parameter must be in the file), False to start a training.
        """
        backbone = getattr(model, "backbone", None)
        if complete or not isinstance(backbone, nn.Module):
            load_weights(model, path, complete=complete)
        else:
            load_initial_weights(model, backbone, path)

    @classmethod
    def add_classes(
        cls,
        cfg: CfgNode,  # noqa: ARG003  (for those who override it)
        model: nn.Module,
        names: Sequence[str],
        **options: Any,  # noqa: ARG003
    ) -> Any:
        """Add classes to a trained model by their names; a method that can overrides this.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            f"{type(model).__name__} (TRAINER {cls.__name__}) cannot learn {', '.join(names)} from "
            "names alone; PADing can"
        )

    @classmethod
    def packed_entries(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: ARG003  (for those who override it)
        """What a packed model holds beside its weights, configuration and label spaces: tensors and plain values."""
        return {}

    def build_optimizers(self, cfg: CfgNode, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Build every optimiser by name."""
        return {"main": build_optimizer(cfg, model)}

    def build_schedulers(self, cfg: CfgNode) -> dict[str, LRScheduler]:
        """Build the schedule of every optimiser in ``self.optimizers`` from its solver node."""
        return {
            name: build_lr_scheduler(solver_node(cfg, name), optimizer) for name, optimizer in self.optimizers.items()
        }

    def build_stream(self, cfg: CfgNode) -> TrainStream:
        """Build this rank's endless stream of micro-batches from DATASETS.TRAIN."""
        return self.stream_of(training_entries(cfg))

    def stream_of(self, entries: Sequence[Mapping[str, Any]]) -> TrainStream:
        """This rank's endless stream of micro-batches of some entries, read by the configured mapper."""
        return TrainStream(
            entries,
            build_mapper(self.cfg, is_train=True),
            batch_size=self.micro_batch_size,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    def run_step(self) -> None:
        """Forward and backward over the micro-batches of one step, then one optimiser step."""
        for batch in self.micro_batches():
            with self.autocast():
                losses = self.model(batch)
            self.backward(sum(losses.values()))
            self.record(losses)
        self.optimizer_step()

    # Tools for run_step -------------------------------------------------------------------------------------------

    def micro_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches of one optimiser step; processes exchange gradients during the last one only."""
        for part in range(self.accumulate_steps):
            last = part == self.accumulate_steps - 1
            with self._without_synchronisation() if not last else nullcontext():
                yield self.next_batch()

    def next_batch(self) -> list[dict[str, Any]]:
        """Return the next micro-batch; drawing it leaves the global random states alone."""
        start = time.perf_counter()
        with preserved_random_state(with_cuda=False):
            batch = next(self._batches)
        self._data_seconds += time.perf_counter() - start
        return batch

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for a forward pass, if SOLVER.AMP.ENABLED: bfloat16 on CPU, float16 on a GPU."""
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.cfg.SOLVER.AMP.ENABLED)

    def backward(self, loss: torch.Tensor, name: str = "main") -> None:
        """Add the gradients of one micro-batch's loss, scaled so that a step's micro-batches are averaged."""
        # Summed micro-batches of loss / N: the gradient of the mean over the whole step.
        self.scalers[name].scale(loss / self.accumulate_steps).backward()

    def record(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Note the losses of one micro-batch for the log, averaged over the step."""
        for name, loss in losses.items():
            part = loss.detach().float() / self.accumulate_steps
            self._step_losses[name] = self._step_losses[name] + part if name in self._step_losses else part

    def optimizer_step(self, name: str = "main") -> None:
        """Unscale, clip, step, and clear the gradients of one optimiser."""
        optimizer, scaler = self.optimizers[name], self.scalers[name]
        # Clipping sees true gradients: unscaled first, and of this optimiser alone.
        scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        clip_gradients_(parameters, solver_node(self.cfg, name).CLIP_GRADIENTS)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    # The loop -----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to SOLVER.MAX_ITER, evaluate, and check TEST.EXPECTED_RESULTS.

        Returns:
            Results of the final evaluation on rank 0, {} elsewhere or without DATASETS.TEST. With TEST.BEST_METRIC
            those of the best evaluation stand under "best".

        Raises:
            Terminated: after SIGTERM; where the iteration or the evaluation could be ended in time, with a checkpoint.
        """
        self.module.train()
        if comm.is_main_process():
            write_configuration(self.cfg)
        if self.best is not None:
            self.best.begin(self.start_iter)
        if self.start_iter < self.max_iter and not self._ended_before():
            with (
                self._termination,
                counted_stages() as self.cpu_seconds,
                stage(self.stage_name),
                suppress(EndOfTraining),
            ):
                super().train(self.start_iter, self.max_iter)
            if self.stopping:
                raise Terminated
        else:
            logging.getLogger(__name__).info(
                "Iteration %d of %d: nothing left to train", self.start_iter, self.max_iter
            )
            self._evaluate()
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_results)
        return self._last_results

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate on DATASETS.TEST; see ``padding.engine.evaluation_loop.evaluate``."""
        return evaluate(cfg, unwrap(model))

    def build_hooks(self) -> list[HookBase]:
        """Hooks in order: the checkpoint holds the stepped schedules and precedes the evaluation; writers see all."""
        cfg = self.cfg
        built: list[HookBase] = [
            hooks.IterationTimer(),
            ScheduleHook(),
            CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.COMPLETE_CHECKPOINTS),
        ]
        if cfg.DATASETS.TEST:
            built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            built.append(CpuSecondsHook(evaluates=bool(cfg.DATASETS.TEST)))
            built.append(RecordsHook(cfg.OUTPUT_DIR, cfg.SOLVER.LOG_PERIOD, cfg.ENGINE.WRITERS, cfg.ENGINE.EXPERIMENT))
        return [*built, self._early_stop]

    def after_step(self) -> None:
        """Write the step's losses to the event storage before the hooks run; after SIGTERM, write a checkpoint and end.

        Raises:
            FloatingPointError: if a loss is not finite; no checkpoint of that step is written.
            Terminated: after the checkpoint.
        """
        self._write_step_metrics()
        super().after_step()
        if self.stopping:
            done = self.iter + 1
            if done % self.cfg.SOLVER.CHECKPOINT_PERIOD and done < self.max_iter:
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            logging.getLogger(__name__).warning("SIGTERM: ended after iteration %d with a checkpoint", self.iter)
            raise Terminated

    def after_train(self) -> None:
        """Let the hooks end; after an error none of them evaluates."""
        self.failing = (
            self.iter < self.max_iter and not self.ended_early
        )  # the base class counts one more after the last iteration
        super().after_train()

    def _ended_before(self) -> bool:
        """Whether the training that is resumed ended by TEST.PATIENCE."""
        return bool(self.cfg.TEST.PATIENCE) and self.start_iter > 0 and self._early_stop.is_over(self.start_iter - 1)

    @property
    def module(self) -> nn.Module:
        """The model without DistributedDataParallel."""
        return unwrap(self.model)

    # Saving and resuming ------------------------------------------------------------------------------------------

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS.

        A start by torchrun after a failure continues even without ``resume``. Collective.

        Args:
            resume: continue if there is a checkpoint to continue from.
        """
        restarted = restarted_by_torchrun(self.cfg.OUTPUT_DIR)
        last = self.checkpointer.find_last() if resume or restarted else ""
        if last:
            self.checkpointer.restore(last)
            return
        self.checkpointer.forget_last()
        if self.cfg.MODEL.WEIGHTS:
            self.load_weights(self.module, self.cfg.MODEL.WEIGHTS, complete=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds beside the model, as tensors and plain containers. Collective."""
        state = super().state_dict()
        state["seed"] = self.seed
        state["images_per_step"] = self.cfg.SOLVER.IMS_PER_BATCH
        state["optimizers"] = {name: entry.state_dict() for name, entry in self.optimizers.items()}
        state["schedulers"] = {name: entry.state_dict() for name, entry in self.schedulers.items()}
        state["scalers"] = {name: entry.state_dict() for name, entry in self.scalers.items()}
        state["stream"] = self.stream.state_dict()
        # Every rank draws its own dropout: all states, in rank order.
        state["random_of_rank"] = comm.all_gather(capture_random_state())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the next iteration is the one after it.

        Raises:
            CheckpointError: if the state is another trainer's.
        """
        for kind in ("optimizers", "schedulers", "scalers"):
            own, saved = getattr(self, kind), state[kind]
            if set(own) != set(saved):
                raise CheckpointError(
                    f"the checkpoint holds {kind} {sorted(saved)}, {type(self).__name__} has {sorted(own)}: it was "
                    "written with another TRAINER; start a new training from it with MODEL.WEIGHTS instead"
                )
            for name, entry in own.items():
                entry.load_state_dict(saved[name])
        super().load_state_dict(state)
        # The iteration of the checkpoint is done: schedules, streams and random states stand after it.
        self.start_iter = self.iter + 1
        self._load_stream(state)
        self._load_random_state(state["random_of_rank"])

    # Details ------------------------------------------------------------------------------------------------------

    def _build_scaler(self) -> torch.amp.GradScaler:
        # Only float16 needs scaling; a disabled scaler passes everything through and has an empty state.
        return torch.amp.GradScaler("cuda", enabled=self.cfg.SOLVER.AMP.ENABLED and self.device.type == "cuda")

    def _open_stream(self) -> None:
        with preserved_random_state(with_cuda=False):
            self.stream = self.build_stream(self.cfg)
            self._batches = iter(self.stream)
        if comm.get_world_size() > 1:
            check_equal_on_ranks("The images and annotations of DATASETS.TRAIN", self.stream.fingerprint())

    def _load_stream(self, state: Mapping[str, Any]) -> None:
        if state["seed"] != self.seed:
            logging.getLogger(__name__).info("Resuming with the checkpoint's seed %d", state["seed"])
            self.seed = state["seed"]
            self._open_stream()
        if state["images_per_step"] != self.cfg.SOLVER.IMS_PER_BATCH:
            logging.getLogger(__name__).warning(
                "SOLVER.IMS_PER_BATCH was %d when the checkpoint was written, now it is %d",
                state["images_per_step"],
                self.cfg.SOLVER.IMS_PER_BATCH,
            )
        self.stream.load_state_dict(state["stream"])
        self._batches = iter(self.stream)

    def _load_random_state(self, of_rank: list[dict[str, Any]]) -> None:
        if len(of_rank) == comm.get_world_size():
            restore_random_state(of_rank[comm.get_rank()])
            return
        logging.getLogger(__name__).warning(
            "The checkpoint was written by %d process(es), now there are %d: random states start anew, so losses will "
            "differ slightly from an uninterrupted training",
            len(of_rank),
            comm.get_world_size(),
        )

    def _without_synchronisation(self) -> AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _evaluate(self) -> dict[str, Any]:
        alone = comm.get_world_size() == 1
        self.stopping = self.stopping or (alone and self._termination.requested)
        if self.stopping or self.failing:
            return {}
        try:
            with stage("evaluation"), self._termination.interruptible(alone):
                self._last_results = self.test(self.cfg, self.module) if self.cfg.DATASETS.TEST else {}
        except Terminated:
            if not alone:
                raise
            self.stopping = True
            self._termination.disarm()
            return {}
        if self.best is not None and self._last_results:
            best = self.best.update(self._last_results, min(self.iter, self.max_iter - 1))
            if best is not None:
                add_to_metrics(self.cfg, "best", {"metric": best.metric, "file": BEST_FILE, **best.as_results()})
                self._last_results = {**self._last_results, "best": best.as_results()}
        return self._last_results

    def _write_step_metrics(self) -> None:
        names = list(self._step_losses)
        values = torch.stack([self._step_losses[name] for name in names]).tolist() if names else []
        self._step_losses = {}
        mine = dict(zip(names, values, strict=True))
        bad = {name: value for name, value in mine.items() if not math.isfinite(value)}
        if bad:
            raise FloatingPointError(
                f"loss is not finite at iteration {self.iter} on rank {comm.get_rank()}: {bad}. Lower SOLVER.BASE_LR, "
                "enable SOLVER.CLIP_GRADIENTS, or disable SOLVER.AMP"
            )
        of_rank = comm.all_gather(
            {"losses": mine, "data_time": self._data_seconds, "stop": self._termination.requested}
        )
        self._data_seconds = 0.0
        if any(entry["stop"] for entry in of_rank):
            self.stopping = True
            self._termination.disarm()  # the checkpoint takes the time that it takes
        if comm.is_main_process():
            self.storage.put_scalar("data_time", max(entry["data_time"] for entry in of_rank))
            self.storage.put_scalars(**mean_losses([entry["losses"] for entry in of_rank]))
