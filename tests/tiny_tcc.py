# SPDX-License-Identifier: Apache-2.0
"""TCC with two networks of some ten thousand parameters, and batches of random images: milliseconds a step."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from padding.engine import add_core_config
from tcc.config import add_tcc_config

HEAD = ("PROJECT_CHANNELS", 4, "ASPP_CHANNELS", 8, "DECODER_CHANNELS", 8, "ASPP_DILATIONS", (1, 2, 3))
OPTIONS: dict[str, Any] = {
    "TRAINER": "SemiSupervisedTrainer",
    "SEED": 3,
    "DATASETS.TRAIN": ("shapes_train_sem_seg_coarse",),
    "DATASETS.TEST": ("shapes_val_sem_seg_coarse",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.DATASET_MAPPER_NAME": "semantic_scale_crop",
    "INPUT.SEMANTIC_MASKS": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.VALID_MASK": True,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.MIN_SIZE_TEST": 0,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "TCC",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SMALL_RESNET.STEM_OUT_CHANNELS": 8,
    "MODEL.SMALL_RESNET.OUT_CHANNELS": [8, 8, 16, 16],
    "MODEL.SMALL_RESNET.NUM_BLOCKS": [1, 1, 1, 1],
    "MODEL.TCC.CNN.BACKBONE": "small_resnet",
    "MODEL.TCC.CNN.OUTPUT_STRIDE": 32,
    "MODEL.TCC.VIT.BACKBONE": "pvt_nano",
    "MODEL.TCC.VIT.DROP_PATH": 0.0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.IMS_PER_BATCH_UNLABELED": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.SEM_SEG.PARTS": ("cnn", "vit", "ensemble"),
}


def tiny_tcc_cfg(*opts: Any) -> CfgNode:
    """The frozen configuration with KEY, VALUE, ... on top."""
    cfg = get_cfg()
    add_core_config(cfg)
    add_tcc_config(cfg)
    pairs = dict(OPTIONS)
    for student in ("CNN", "VIT"):
        for key, value in zip(HEAD[::2], HEAD[1::2], strict=True):
            pairs[f"MODEL.TCC.{student}.HEAD.{key}"] = value
    pairs |= dict(zip(opts[::2], opts[1::2], strict=True))
    cfg.merge_from_list([word for pair in pairs.items() for word in pair])
    cfg.freeze()
    return cfg


def random_samples(
    labeled: int = 2, unlabeled: int = 2, *, size: int = 64, num_classes: int = 17, seed: int = 0
) -> list[dict[str, Any]]:
    """Samples as the mappers make them: blocks of one class and one colour, a padded margin on the right."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (num_classes, 3), generator=generator, dtype=torch.uint8)
    samples = []
    for index in range(labeled + unlabeled):
        blocks = torch.randint(0, num_classes, (4, 4), generator=generator)
        labels = blocks.repeat_interleave(size // 4, 0).repeat_interleave(size // 4, 1)
        valid = torch.ones(size, size, dtype=torch.bool)
        valid[:, size - 8 :] = False
        image = colors[labels].permute(2, 0, 1).clone()
        sample: dict[str, Any] = {"file_name": f"{index}.png", "image": image, "valid": valid, "is_labeled": True}
        if index < labeled:
            sample["sem_seg"] = torch.where(valid, labels, 255)
        else:
            sample["is_labeled"] = False
        samples.append(sample)
    return samples
