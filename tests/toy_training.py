# SPDX-License-Identifier: Apache-2.0
"""A model of 200 parameters on 12 random images: all of the training loop in milliseconds a step.

The mapper augments at random and the model drops at random, so that nothing but exact states gives equal losses.
As a script under torchrun it dies once: ``torchrun ... tests/toy_training.py OUTPUT ITERATION``.
"""

import json
import os
import random
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import padding  # noqa: F401

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn

from padding.data.streams import TrainStream
from padding.engine.config import add_solver_config
from padding.engine.distributed import torchrun_process_group
from padding.engine.trainer import TRAINER_REGISTRY, Trainer

NUM_IMAGES = 12


@META_ARCH_REGISTRY.register()
class ToyModel(nn.Module):
    """Predicts the mean colour of an image, with losses that are means over images."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU())
        self.dropout = nn.Dropout(cfg.MODEL.TOY.DROPOUT)
        self.head = nn.Linear(6, 3)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = torch.stack([sample["image"] for sample in batch]).float().to(self.head.weight.device) / 255.0
        predicted = self.head(self.dropout(self.backbone(images).mean(dim=(2, 3))))
        target = images.mean(dim=(2, 3))
        return {"loss_colour": (predicted - target).square().mean(), "loss_size": 0.1 * predicted.abs().mean()}


class ToyMapper:
    """Flips and adds noise with every global generator."""

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        image = np.random.default_rng(entry["image_id"]).integers(0, 200, (3, 8, 8), dtype=np.int64)  # its "file"
        if random.random() < 0.5:
            image = image[:, :, ::-1]
        image = image + np.random.randint(0, 40)  # noqa: NPY002
        noise = torch.randint(0, 15, (3, 8, 8))
        return {"image": torch.from_numpy(np.ascontiguousarray(image)) + noise, "image_id": entry["image_id"]}


@TRAINER_REGISTRY.register()
class ToyTrainer(Trainer):
    """The real loop over the toy images."""

    def build_stream(self, cfg: CfgNode) -> TrainStream:
        return TrainStream(
            [{"image_id": i} for i in range(NUM_IMAGES)],
            ToyMapper(),
            batch_size=self.micro_batch_size,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )


def toy_cfg(output: Path, *opts: Any) -> CfgNode:
    """Return the frozen configuration of a toy training of 8 iterations on CPU; ``opts`` are KEY, VALUE, ..."""
    cfg = get_cfg()
    add_solver_config(cfg)
    cfg.MODEL.CLASS_BALANCE = CfgNode({"WEIGHTS": "none", "FOCAL_GAMMA": 0.0})
    cfg.MODEL.TOY = CfgNode({"DROPOUT": 0.5})
    cfg.MODEL.META_ARCHITECTURE = "ToyModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.TRAINER = "ToyTrainer"
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(output)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SOLVER.LOG_PERIOD = 1
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def train_toy(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    """Train as train_net.py does, from a fixed seed."""
    random.seed(cfg.SEED)
    np.random.seed(cfg.SEED)  # noqa: NPY002
    torch.manual_seed(cfg.SEED)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER)(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def losses_by_iteration(output: Path) -> dict[int, tuple[float, float]]:
    """Read (loss_colour, lr) of every iteration from metrics.json; a repeated iteration keeps its last line."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: (line["loss_colour"], line["lr"]) for line in lines if "loss_colour" in line}


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DieOnce(HookBase):
    """End rank 1 without a word in one iteration of torchrun's first attempt."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self) -> None:
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first_attempt and self.trainer.iter == self.iteration and comm.get_rank() == 1:
            os._exit(1)


@TRAINER_REGISTRY.register()
class DyingTrainer(ToyTrainer):
    """The toy loop that dies in the iteration given on the command line."""

    def build_hooks(self) -> list[HookBase]:
        return [*super().build_hooks(), DieOnce(int(sys.argv[2]))]


if __name__ == "__main__":
    with torchrun_process_group("cpu"):
        train_toy(toy_cfg(Path(sys.argv[1]), "TRAINER", "DyingTrainer"))
