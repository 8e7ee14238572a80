# SPDX-License-Identifier: Apache-2.0
"""PADing on four images of 32 x 48 with a network of some ten thousand parameters: a training step in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Instances

import padding
from padding.data.catalog import register_panoptic
from padding.data.class_embeddings import random_class_embeddings, save_class_embeddings
from padding.engine import add_core_config
from tests.tiny_data import tiny_split, write_tiny_panoptic

TRAIN, TEST = "tiny_padding_train", "tiny_padding_val"
FEATURE_WIDTH = 32
EMBEDDING_WIDTH = 6

OPTIONS: dict[str, Any] = {
    "TRAINER": "GeneratorClassifierTrainer",
    "SEED": 3,
    "DATASETS.TRAIN": (TRAIN,),
    "DATASETS.TEST": (TEST,),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": (32,),
    "INPUT.MAX_SIZE_TRAIN": 64,
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.MAX_SIZE_TEST": 64,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "PADing",
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SMALL_RESNET.STEM_OUT_CHANNELS": 8,
    "MODEL.SMALL_RESNET.OUT_CHANNELS": [8, 8, 8, 8],
    "MODEL.SMALL_RESNET.NUM_BLOCKS": [1, 1, 1, 1],
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 16,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 2,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.PADING.GENERATOR.NUM_PRIMITIVES": 10,
    "MODEL.PADING.GENERATOR.NUM_LAYERS": 2,
    "MODEL.PADING.GENERATOR.NUM_HEADS": 2,
    "MODEL.PADING.GENERATOR.FFN_DIM": 16,
    "MODEL.PADING.FEATURE_BANK.SHARD_SIZE": 3,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.LOG_PERIOD": 1,
}


def register_tiny_data(root: Path) -> Path:
    """Write and register the training set (seen classes) and the test set (all); return the class embeddings' file."""
    for name, with_unseen, split in ((TRAIN, False, tiny_split().seen_only()), (TEST, True, tiny_split())):
        data = write_tiny_panoptic(root / name, size=(32, 48), with_unseen=with_unseen)
        register_panoptic(name, **{**data.registration, "class_split": split})
    names = tiny_split().names
    path = root / "class_embeddings.npz"
    save_class_embeddings(path, names, 3.0 * random_class_embeddings(names, EMBEDDING_WIDTH, seed=0))
    return path


def tiny_padding_cfg(root: Path, output: Path, *opts: Any) -> CfgNode:
    """Configuration over the data of ``register_tiny_data(root)``; ``opts`` are KEY, VALUE, ..."""
    cfg = get_cfg()
    add_core_config(cfg)
    padding.add_padding_config(cfg)
    cfg.merge_from_list([entry for option in OPTIONS.items() for entry in option])
    cfg.MODEL.PADING.EMBEDDINGS.PATH = str(root / "class_embeddings.npz")
    cfg.OUTPUT_DIR = str(output)
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def make_sample(labels: list[int], image_id: int = 1, size: tuple[int, int] = (32, 48)) -> dict[str, Any]:
    """Training sample with one rectangle for each label (ids of the training set)."""
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[3 * i : 3 * i + 10, 5 * i : 5 * i + 12] = True
    instances = Instances(size)
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = masks
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(image_id), dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "height": size[0],
        "width": size[1],
        "image_id": image_id,
        "file_name": f"{image_id}.png",
    }
