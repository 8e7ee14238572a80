# SPDX-License-Identifier: Apache-2.0
"""A tiny SalSeg on the generated data set and batches of random images: milliseconds a step."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from padding.engine import add_core_config
from salseg.config import add_salseg_config

OPTIONS: dict[str, Any] = {
    "TRAINER": "SalSegTrainer",
    "SEED": 3,
    "DATASETS.TRAIN": ("shapes_train_sem_seg_coarse",),
    "DATASETS.TRAIN_SALIENCY": ("shapes_train_saliency",),
    "DATASETS.TEST": ("shapes_val_sem_seg_coarse", "shapes_val_saliency"),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.DATASET_MAPPER_NAME": "semantic_scale_crop",
    "INPUT.SEMANTIC_MASKS": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.SALIENCY.SIZE": (64, 64),
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "SalSeg",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SMALL_RESNET.STEM_OUT_CHANNELS": 8,
    "MODEL.SMALL_RESNET.OUT_CHANNELS": [8, 8, 16, 16],
    "MODEL.SMALL_RESNET.NUM_BLOCKS": [1, 1, 1, 1],
    "MODEL.SALSEG.ASPP.CHANNELS": 8,
    "MODEL.SALSEG.ASPP.DILATIONS": (1, 2, 3),
    "MODEL.SALSEG.ASPP.DROPOUT": 0.0,
    "MODEL.SALSEG.DECODER.PROJECT_CHANNELS": 4,
    "MODEL.SALSEG.DECODER.CHANNELS": 8,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.IMS_PER_BATCH_SALIENCY": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}


def tiny_salseg_cfg(*opts: Any) -> CfgNode:
    """The frozen configuration with KEY, VALUE, ... on top."""
    cfg = get_cfg()
    add_core_config(cfg)
    add_salseg_config(cfg)
    pairs = OPTIONS | dict(zip(opts[::2], opts[1::2], strict=True))
    cfg.merge_from_list([word for pair in pairs.items() for word in pair])
    cfg.freeze()
    return cfg


def random_samples(
    segmentation: int = 2, saliency: int = 2, joint: int = 0, *, size: int = 64, num_classes: int = 17, seed: int = 0
) -> list[dict[str, Any]]:
    """Samples as the mappers make them: blocks of one class and color, a padded margin; odd classes are salient."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (num_classes, 3), generator=generator, dtype=torch.uint8)
    samples = []
    for index in range(segmentation + saliency + joint):
        blocks = torch.randint(0, num_classes, (4, 4), generator=generator)
        labels = blocks.repeat_interleave(size // 4, 0).repeat_interleave(size // 4, 1)
        valid = torch.ones(size, size, dtype=torch.bool)
        valid[:, size - 8 :] = False
        sample: dict[str, Any] = {"file_name": f"{index}.png", "image": colors[labels].permute(2, 0, 1).clone()}
        if not segmentation <= index < segmentation + saliency:
            sample["sem_seg"] = torch.where(valid, labels, 255)
        if index >= segmentation:
            sample["saliency"] = (labels % 2 * valid).float()[None]
            sample["saliency_valid"] = valid
        samples.append(sample)
    return samples
