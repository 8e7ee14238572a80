# SPDX-License-Identifier: Apache-2.0
"""Training of PSI in its three readings of the closed loop: online, inner loop, rounds (psi/README.md).

"online": one forward a step, in which labels grow T times. "inner_loop": T + 1 passes over the batch of a step, each
with its own optimiser step, labels growing once between two of them. "rounds": the schedule falls into T + 1 equal
parts; before each part but the first the network labels the training set, and what it labels is stored.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from padding.engine.optimizer import base_learning_rate, groups_of_parts, make_optimizer, parameter_groups, solver_node
from padding.engine.output_folder import check_writable
from padding.engine.random_state import preserved_random_state
from padding.engine.trainer import TRAINER_REGISTRY, Trainer, training_entries
from padding.errors import ConfigError, MethodError
from padding.modeling.weights.loading import load_initial_weights
from psi.label_store import LabelStore
from psi.labeling import SupervisionReader, grow_labels
from psi.meta_arch import PSI, LabelsAtStep


def round_at(iteration: int, *, max_iter: int, steps: int) -> int:
    """Round t of an iteration: 0 to T, parts of the schedule that differ by one iteration at most.

    >>> [round_at(i, max_iter=10, steps=3) for i in range(10)]
    [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    """
    return min(iteration * (steps + 1) // max_iter, steps)


@TRAINER_REGISTRY.register()
class ScribbleTrainer(Trainer):
    """Train ``PSI``.

    Attributes:
        store: labels of the rounds; None in the other modes.
        round: t of the current iteration in "rounds", else 0.
        labeled_rounds: rounds whose labels this training made; part of a checkpoint.
        saved_round: round of the last checkpoint that this process wrote.
    """

    find_unused_parameters = False
    round = 0

    def __init__(self, cfg: CfgNode) -> None:
        self.labeled_rounds: list[int] = []
        self.saved_round = 0
        self.store: LabelStore | None = None
        super().__init__(cfg)
        if self.mode == "rounds" and self.steps:
            folder = cfg.MODEL.PSI.SLD.ROUNDS.FOLDER or Path(cfg.OUTPUT_DIR) / "labels"
            if comm.is_main_process():
                check_writable(folder)  # the first labels are written after a part of the training
            self.store = LabelStore(folder, num_classes=self.network.num_classes)
            _check_ids(training_entries(cfg))

    @classmethod
    def grow_labels(cls, model: PSI, sample: Mapping[str, Any], scribbles: Tensor) -> list[Tensor]:
        """Labels of one image after 0 to T steps, each (h, w) int64; see ``Predictor.grow_labels``.

        Args:
            model: trained.
            sample: ``image`` (3, H, W) uint8 as the network sees it.
            scribbles: (h, w) int64 at the image's own size.
        """
        return [state.labels[0] for state in grow_labels(model, sample, scribbles).states]

    @property
    def mode(self) -> str:
        """MODEL.PSI.SLD.MODE."""
        return str(self.cfg.MODEL.PSI.SLD.MODE)

    @property
    def steps(self) -> int:
        """T."""
        return int(self.cfg.MODEL.PSI.SLD.STEPS)

    @property
    def network(self) -> PSI:
        """The model without DistributedDataParallel."""
        module = self.module
        assert isinstance(module, PSI)
        return module

    @classmethod
    def load_weights(cls, model: nn.Module, path: str, *, complete: bool) -> None:
        """A checkpoint of the model or, to start from, ImageNet weights of its backbone."""
        if complete or not isinstance(model, PSI):
            super().load_weights(model, path, complete=complete)
        else:
            load_initial_weights(model, model.network.backbone, path)

    def build_optimizers(self, cfg: CfgNode, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """One optimiser; BASE_LR, BACKBONE_MULTIPLIER times it for the backbone, g at its own rate.

        Raises:
            MethodError: if the model is not ``PSI``.
        """
        if not isinstance(model, PSI):
            raise MethodError(f"TRAINER 'ScribbleTrainer' trains PSI, not {type(model).__name__}.")
        rate = base_learning_rate(cfg.SOLVER)
        backbone_rate = rate * cfg.SOLVER.BACKBONE_MULTIPLIER
        parts = [(model.network.backbone, backbone_rate), (model.network.head, rate)]
        groups = groups_of_parts(cfg.SOLVER, parts)
        if model.threshold_net is not None:
            node = solver_node(cfg, "threshold")
            groups += parameter_groups(model.threshold_net, base_lr=node.BASE_LR, weight_decay=node.WEIGHT_DECAY)
        return {"main": make_optimizer(cfg.SOLVER, groups)}

    def build_hooks(self) -> list[HookBase]:
        """The base's hooks, after the one that starts rounds."""
        return [_RoundHook(), *super().build_hooks()]

    def run_step(self) -> None:
        """One step of the mode."""
        if self.mode == "inner_loop" and self.steps:
            self._run_inner_loop()
            return
        for batch in self.micro_batches():
            with self.autocast():
                # A sample brings its labels, scribbles or stored ones; the step says which radius is next.
                losses, _ = self.model(batch, LabelsAtStep(self.round))
            self.backward(sum(losses.values()))
            self.record(losses)
        self.optimizer_step()
        self.network.update_average()

    def _run_inner_loop(self) -> None:
        """For t = 0, ..., T: fit the network to y_t and g to M_t, then let the labels grow to y_{t+1}."""
        batches = [self.next_batch() for _ in range(self.accumulate_steps)]
        # The same images T + 1 times; y_t of each micro-batch goes in and y_{t+1} comes out.
        labels = [LabelsAtStep() for _ in batches]
        for _ in range(self.steps + 1):
            for index, batch in enumerate(batches):
                last = index == len(batches) - 1
                with nullcontext() if last else self._without_synchronisation():
                    with self.autocast():
                        losses, labels[index] = self.model(batch, labels[index])
                    self.backward(sum(losses.values()))
                self.record({name: loss / (self.steps + 1) for name, loss in losses.items()})
            self.optimizer_step()
            self.network.update_average()

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue, or start from MODEL.WEIGHTS; a moving average starts where the network does."""
        super().resume_or_load(resume=resume)
        if self.start_iter == 0:
            self.network.reset_average()

    # Rounds -------------------------------------------------------------------------------------------------------

    def enter_round(self, number: int) -> None:
        """Make the labels of round ``number`` the training's, growing them if this training has not. Collective."""
        assert self.store is not None
        for missing in range(1, number + 1):  # several, where a schedule was shortened or has few iterations
            if missing not in self.labeled_rounds:
                self._label_training_set(missing)
                self.labeled_rounds.append(missing)
        entries = training_entries(self.cfg)
        self._replace_entries(self.store.entries(entries, number))
        self.round = number

    def _replace_entries(self, entries: list[dict[str, Any]]) -> None:
        """Go on at the same position of the same sequence of images, with other labels."""
        # The order of images stays that of an uninterrupted training: only labels change between rounds.
        position = self.stream.state_dict()
        with preserved_random_state(with_cuda=False):
            self.stream = self.stream_of(entries)
            self.stream.load_state_dict(position)
            self._batches = iter(self.stream)

    def _label_training_set(self, number: int) -> None:
        """Grow y_{number} of every image from y_{number - 1}; each rank labels its share."""
        store, model = self.store, self.network
        assert store is not None
        entries = training_entries(self.cfg)
        if number > 1:
            entries = store.entries(entries, number - 1)
        if comm.is_main_process():
            store.start_round(number)
        comm.synchronize()
        read = SupervisionReader(self.cfg)
        share = entries[comm.get_rank() :: comm.get_world_size()]
        # Dropout and augmentation of the training do not depend on what was labeled in between.
        with preserved_random_state():
            for entry in tqdm(
                share, desc=f"labels of round {number}", unit="image", disable=not comm.is_main_process()
            ):
                sample, scribbles = read(entry)
                stored = store.read(number - 1, entry["image_id"]) if number > 1 else None
                grown = grow_labels(model, sample, scribbles, stored=stored, steps=[number - 1])
                store.write(number, entry["image_id"], grown.states[-1])
        comm.synchronize()
        if comm.is_main_process():
            # Files first, then the manifest that declares the round complete.
            details = {"iteration": self.iter, "data": list(self.cfg.DATASETS.TRAIN)}
            store.finish_round(number, [e["image_id"] for e in entries], details)
        comm.synchronize()

    def forget_rounds(self) -> None:
        """With ROUNDS.KEEP off, delete labels that the last checkpoint, already on disk, does not need."""
        keep = self.cfg.MODEL.PSI.SLD.ROUNDS.KEEP
        if self.store is not None and not keep and comm.is_main_process():
            self.store.forget_before(self.saved_round)

    def state_dict(self) -> dict[str, Any]:
        """The base's state and the rounds whose labels are on disk. Collective."""
        # As the checkpoint holds it: a crash before the next one goes back to this round, whose labels must stay.
        self.saved_round = self.round
        return {**super().state_dict(), "labeled_rounds": list(self.labeled_rounds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.labeled_rounds = list(state.get("labeled_rounds", []))
        logging.getLogger(__name__).info("Rounds with labels: %s", self.labeled_rounds or "none")


def _check_ids(entries: Sequence[Mapping[str, Any]]) -> None:
    """Before the training, since labels are stored by the id of an image after a part of it."""
    files: dict[str, Any] = {}
    for entry in entries:
        name, file = str(entry["image_id"]), entry["file_name"]
        if files.setdefault(name, file) != file:
            raise ConfigError(
                f"DATASETS.TRAIN has two images of the id '{name}', {files[name]} and {file}; MODEL.PSI.SLD.MODE "
                "'rounds' stores labels by id: choose sets without common ids, or the mode 'online'"
            )


class _RoundHook(HookBase):
    """Starts a round when its first iteration comes, or when a resumed training is in it."""

    trainer: ScribbleTrainer

    def before_step(self) -> None:
        trainer = self.trainer
        if trainer.store is None:
            return
        trainer.forget_rounds()
        number = round_at(trainer.iter, max_iter=trainer.cfg.SOLVER.MAX_ITER, steps=trainer.steps)
        if number != trainer.round:
            trainer.enter_round(number)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # not after an exception, maybe in the writing of a checkpoint
            self.trainer.forget_rounds()
