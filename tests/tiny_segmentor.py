# SPDX-License-Identifier: Apache-2.0
"""A Mask2Former of 0.1 M parameters for a dozen generated images: trains and predicts in a second."""

from pathlib import Path

import torch
from detectron2.config import CfgNode

from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_shapes
from padding.engine.trainer import Trainer

TINY_MASKFORMER = """
VERSION: 2
TRAINER: Trainer
SEED: 1
MODEL:
  META_ARCHITECTURE: MaskFormer
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {NAME: build_small_resnet_backbone, FREEZE_AT: 0}
  SMALL_RESNET: {STEM_OUT_CHANNELS: 8, OUT_CHANNELS: [8, 8, 16, 16], NUM_BLOCKS: [1, 1, 1, 1], NORM: FrozenBN}
  SEM_SEG_HEAD:
    NAME: MaskFormerHead
    IN_FEATURES: [res2, res3, res4, res5]
    NUM_CLASSES: 35
    CONVS_DIM: 32
    MASK_DIM: 32
    TRANSFORMER_ENC_LAYERS: 1
    TRANSFORMER_ENC_DIM_FEEDFORWARD: 32
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: 2
  MASK_FORMER:
    HIDDEN_DIM: 32
    NUM_OBJECT_QUERIES: 10
    NHEADS: 2
    DIM_FEEDFORWARD: 32
    DEC_LAYERS: 3
    DROPOUT: 0.0
    TRAIN_NUM_POINTS: 64
    CLASS_WEIGHT: 2.0
    MASK_WEIGHT: 5.0
    DICE_WEIGHT: 5.0
    TEST: {SEMANTIC_ON: True, PANOPTIC_ON: True, INSTANCE_ON: False, OVERLAP_THRESHOLD: 0.1}
DATASETS:
  TRAIN: [shapes_train_panoptic_zsp]
  TEST: [shapes_val_panoptic_zsp]
DATALOADER: {NUM_WORKERS: 0}
INPUT:
  FORMAT: RGB
  DATASET_MAPPER_NAME: coco_panoptic_lsj
  IMAGE_SIZE: 64
  MIN_SIZE_TEST: 64
  MAX_SIZE_TEST: 64
SOLVER:
  BASE_LR: 0.001
  IMS_PER_BATCH: 4
  MAX_ITER: 2
  STEPS: ()
  WARMUP_ITERS: 0
  CHECKPOINT_PERIOD: 1
  LOG_PERIOD: 1
  CLIP_GRADIENTS: {ENABLED: True, CLIP_VALUE: 0.1}
"""


def write_dozen_shapes(root: Path) -> Path:
    """Write 12 training and 4 validation images of the generated data set below ``root``; return ``root``."""
    write_shapes(root, ShapesConfig(num_train=12, num_val=4, size=64, max_objects=2))
    return root


def write_config(folder: Path) -> Path:
    """Write the configuration file for train_net.py."""
    path = folder / "tiny.yaml"
    path.write_text(TINY_MASKFORMER)
    return path


def write_untrained_weights(cfg: CfgNode, path: Path) -> None:
    """Save the model of ``cfg`` as it is initialised, from a fixed seed."""
    torch.manual_seed(0)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
