# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the whole training state: written atomically, made of tensors and plain containers only.

The files are Detectron2's (``model``, ``trainer``, ``iteration``; ``last_checkpoint`` names the newest). They are read
with ``weights_only=True``, so that a file from elsewhere cannot run code.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from padding.data.files import replacing, set_aside, write_text
from padding.errors import CheckpointError, interrupt_behind
from padding.modeling.weights.checkpoint import first_line, read_torch
from padding.modeling.weights.report import describe_differences

LAST_CHECKPOINT = "last_checkpoint"
_WEIGHTS_ALONE = ("model", "iteration")


def read_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file that ``TrainingCheckpointer`` wrote, onto the CPU.

    Raises:
        CheckpointError: if the file is missing, cut, damaged, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {_other_checkpoints(path)}")
    try:
        state = read_torch(path)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... for a damaged file
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: "
            f"{first_line(error) or type(error).__name__}. It is cut, damaged or no training checkpoint; "
            f"{_other_checkpoints(path)}"
        ) from error
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"{path} holds no entry 'model'; expected a file written by train_net.py")
    return state


def _other_checkpoints(path: Path) -> str:
    others = sorted((p for p in path.parent.glob("*.pth") if p != path), key=lambda p: p.stat().st_mtime, reverse=True)
    if not others:
        return "no other checkpoint lies beside it: start anew without --resume"
    return f"to go on from {others[0].name}, write that name into {path.parent / LAST_CHECKPOINT}"


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain containers as a ``.pth`` file that readers see either whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # Closing the half of a file fails in torch, which hides why it is half.
            if (interrupt := interrupt_behind(error)) is not None:
                raise interrupt from None
            raise


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, a safe reader, and states that all ranks contribute to.

    ``save`` is collective: every rank calls it, because the trainer's state gathers the random states of all ranks.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and then ``last_checkpoint``.

        Args:
            name: file name without ending.
            kwargs: further plain entries, for example ``iteration``.
        """
        # Collective: states are gathered on all ranks before those that do not write leave.
        states = {key: entry.state_dict() for key, entry in self.checkpointables.items()}
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, {"model": self.model.state_dict(), **states, **kwargs})
        # The tag last: it never names a file that is not complete.
        self.tag_last_checkpoint(path.name)
        self.logger.info("Saved checkpoint %s", path)

    def keep_weights_alone(self, last_iteration: int) -> None:
        """Take the training state out of the periodic checkpoints up to an iteration; a damaged one stays as it is."""
        if not self.save_dir or not self.save_to_disk:
            return
        for path in sorted(Path(self.save_dir).glob("model_[0-9]*.pth")):
            if int(path.stem.removeprefix("model_")) <= last_iteration:
                # This saves space only: an old file must not end a training that does not need it.
                try:
                    state = read_training_checkpoint(path)
                except CheckpointError as error:
                    self.logger.warning("Left as it is: %s", error)
                    continue
                if len(state) > len(_WEIGHTS_ALONE):
                    write_checkpoint(path, {key: state[key] for key in _WEIGHTS_ALONE if key in state})

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file from which ``--resume`` goes on."""
        write_text(Path(self.save_dir) / LAST_CHECKPOINT, last_filename_basename)

    def forget_last(self) -> None:
        """Rename ``last_checkpoint``, so that an automatic restart cannot pick up an older training's state."""
        tag = Path(self.save_dir) / LAST_CHECKPOINT
        if self.save_to_disk and tag.is_file():
            set_aside(tag)
            self.logger.warning(
                "%s held another training, and this one starts anew: its %s is kept as %s.previous",
                self.save_dir,
                LAST_CHECKPOINT,
                LAST_CHECKPOINT,
            )

    def find_last(self) -> str:
        """Path of the last checkpoint as rank 0 sees it, "" if there is none. Collective."""
        path = self.get_checkpoint_file() if comm.is_main_process() and self.has_checkpoint() else ""
        return comm.all_gather(path)[0]

    def restore(self, path: str) -> dict[str, Any]:
        """Load model and every checkpointable from a training checkpoint; all keys must fit. Collective.

        Returns:
            The remaining entries of the file.

        Raises:
            CheckpointError: if the file cannot be read, or its parameters are not those of this model.
        """
        state = self._read_on_every_rank(path)
        _load_exactly(self.model, state.pop("model"), path)
        for key, entry in self.checkpointables.items():
            if key not in state:
                raise CheckpointError(
                    f"{path} holds no training state {key!r}, only {sorted(state)}; to start a new training from its "
                    "weights, set MODEL.WEIGHTS to it and leave out --resume"
                )
            entry.load_state_dict(state.pop(key))
        self.logger.info("Resumed from %s", path)
        return state

    @staticmethod
    def _read_on_every_rank(path: str) -> dict[str, Any]:
        if all(comm.all_gather(Path(path).is_file())) or comm.get_world_size() == 1:
            return read_training_checkpoint(path)
        # Machines without a shared file system: only rank 0 has the file, and sends it.
        content: list[Any] = [None]
        if comm.is_main_process():
            try:
                content = [read_training_checkpoint(path)]
            except CheckpointError as error:
                content = [error]
        dist.broadcast_object_list(content, src=0)
        if isinstance(content[0], CheckpointError):
            raise content[0]
        return content[0]


def _load_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    differences = describe_differences(state, model.state_dict())
    if differences:
        raise CheckpointError(
            f"{path} does not fit this model: parameters {differences}. --resume needs the configuration that wrote it "
            "(config.yaml beside it)"
        )
    model.load_state_dict(dict(state))
    logging.getLogger(__name__).debug("Loaded %d parameters and buffers from %s", len(state), path)
