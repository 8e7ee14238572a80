# SPDX-License-Identifier: Apache-2.0
"""A tiny PSI with random scribbles for steps of milliseconds, and simulated scribbles for a dozen generated images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from padding.data.catalog import register_all
from padding.data.prepare.scribbles import simulate_files, tasks_of_dataset
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.simulator import SimulatorConfig
from padding.data.sets.scribbles import SCRIBBLE_SETS, scribble_tags
from padding.engine import add_core_config
from psi import add_psi_config, losses
from psi.meta_arch import PSI, LabelsAtStep
from psi.supervision import PixelSupervision, Supervision
from tests.tiny_segmentor import write_dozen_shapes

OPTIONS: dict[str, Any] = {
    "TRAINER": "ScribbleTrainer",
    "SEED": 3,
    "DATASETS.TRAIN": ("shapes_train_scribble_coarse",),
    "DATASETS.TEST": ("shapes_val_sem_seg_coarse",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.DATASET_MAPPER_NAME": "StoredLabelMapper",
    "INPUT.SEMANTIC_MASKS": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.VALID_MASK": True,
    "INPUT.ROTATION": 10.0,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.CROP.MIN_LABELED": 4,
    "INPUT.MIN_SIZE_TEST": 0,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "PSI",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SMALL_RESNET.STEM_OUT_CHANNELS": 8,
    "MODEL.SMALL_RESNET.OUT_CHANNELS": [8, 8, 16, 16],
    "MODEL.SMALL_RESNET.NUM_BLOCKS": [1, 1, 1, 1],
    "MODEL.SMALL_RESNET.OUTPUT_STRIDE": 16,
    "MODEL.PSI.CPP.CHANNELS": 8,
    "MODEL.PSI.CPP.RADII": (1, 1, 1, 2),
    "MODEL.PSI.DECODER.PROJECT_CHANNELS": 4,
    "MODEL.PSI.DECODER.ASPP_CHANNELS": 8,
    "MODEL.PSI.DECODER.DECODER_CHANNELS": 8,
    "MODEL.PSI.DECODER.ASPP_DILATIONS": (1, 2, 3),
    "MODEL.PSI.DECODER.ASPP_DROPOUT": 0.0,
    "MODEL.PSI.SLD.STEPS": 2,
    "MODEL.PSI.SLD.START_ITER": 0,
    "MODEL.PSI.SLD.RADIUS": 4,
    "MODEL.PSI.LOSS.SMOOTH_WEIGHT": 1.0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}
NODE = "MODEL.PSI."
VOID = 255
NO_BATCH_NORM: tuple[Any, ...] = (
    *("MODEL.SMALL_RESNET.NORM", "FrozenBN", "MODEL.PSI.CPP.NORM", "GN", "MODEL.PSI.CPP.LATERAL_NORM", "GN"),
    *("MODEL.PSI.CPP.CHANNELS", 32, "MODEL.PSI.DECODER.NORM", "GN"),
)
"""Then the gradient of a batch is the mean of those of its parts; Detectron2's group norm has 32 groups."""


def tiny_psi_cfg(*opts: Any) -> CfgNode:
    """The frozen configuration with KEY, VALUE, ... on top."""
    cfg = get_cfg()
    add_core_config(cfg)
    add_psi_config(cfg)
    pairs = OPTIONS | dict(zip(opts[::2], opts[1::2], strict=True))
    cfg.merge_from_list([word for pair in pairs.items() for word in pair])
    cfg.freeze()
    return cfg


def random_samples(
    count: int = 2, *, size: tuple[int, int] = (64, 64), num_classes: int = 17, seed: int = 0
) -> list[dict[str, Any]]:
    """Samples as the mapper makes them: blocks of a class and color, a line drawn in most, padding on the right.

    Two things no mapper leaves, and nobody may look at: lines in the padding, and the dense labels as ``truth``.
    """
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (num_classes, 3), generator=generator, dtype=torch.uint8)
    height, width = size
    samples = []
    for index in range(count):
        blocks = torch.randint(0, num_classes, (4, 4), generator=generator)
        labels = blocks.repeat_interleave(-(-height // 4), 0).repeat_interleave(-(-width // 4), 1)[:height, :width]
        valid = torch.ones(size, dtype=torch.bool)
        valid[:, width - 9 :] = False
        scribbles = torch.full(size, 255)
        step = height // 4
        scribbles[step // 2 :: step, 3:] = labels[step // 2 :: step, 3:]
        scribbles[:, width // 2 - 3 : width // 2 + 3] = 255
        samples.append(
            {
                "file_name": f"{index}.png",
                "image": colors[labels].permute(2, 0, 1).clone(),
                "valid": valid,
                "sem_seg": scribbles,
                "truth": labels,
            }
        )
    return samples


def build(*opts: Any) -> PSI:
    """A model whose scores differ between places; short keys are of MODEL.PSI."""
    words = (
        NODE + word if i % 2 == 0 and not word.startswith(("SOLVER", "INPUT")) else word for i, word in enumerate(opts)
    )
    torch.manual_seed(0)
    model = build_model(tiny_psi_cfg(*words))
    assert isinstance(model, PSI)
    with torch.no_grad():
        model.network.head.decoder.predictor.weight.normal_(std=0.3)
    return model.train()


def run(
    model: PSI, samples: list[dict[str, Any]], *, iteration: int = 3, step: int = 0, grid: Supervision | None = None
) -> dict[str, Tensor]:
    with EventStorage(iteration):
        found, _ = model(samples, LabelsAtStep(step, grid))
        return found


def supervision_of(
    monkeypatch: pytest.MonkeyPatch, model: PSI, samples: list[dict[str, Any]], *, iteration: int = 3, **how: Any
) -> PixelSupervision:
    """What the loss of the network is given."""
    seen: list[PixelSupervision] = []
    original = losses.segmentation_loss

    def spy(logits: Tensor, supervision: PixelSupervision, **options: Any) -> Tensor:
        seen.append(supervision)
        return original(logits, supervision, **options)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "segmentation_loss", spy)
        run(model, samples, iteration=iteration, **how)
    assert len(seen) == 1
    return seen[0]


def scribbles_of(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Scribbles, void in the padding; and the pixels of the images."""
    valid = torch.stack([sample["valid"] for sample in samples])
    return torch.stack([sample["sem_seg"] for sample in samples]).masked_fill(~valid, VOID), valid


def write_scribbles(root: Path) -> None:
    """Simulate the scribbles of the generated data set below ``root``, which is registered as the data root."""
    register_all(root)
    one = SCRIBBLE_SETS["shapes_train_scribble_coarse"]
    tasks, space = tasks_of_dataset(one.dense, scribble_tags(one.dense))
    simulate_files(tasks, space, SimulatorConfig(**one.simulator), ScribbleFolder(root / one.folder))


def write_dozen_scribbled_shapes(root: Path) -> Path:
    """Write a dozen images as ``write_dozen_shapes`` does, and scribbles for the training images; return ``root``."""
    write_dozen_shapes(root)
    write_scribbles(root)
    return root
