# SPDX-License-Identifier: Apache-2.0
"""A dozen generated images, and a Mask2Former of 0.1 M parameters that trains on them in a second."""

from pathlib import Path

import pytest

from padding.data.catalog import register_all
from padding.data.shapes import ShapesConfig, write_shapes

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


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with 12 training and 4 validation images of the generated data set."""
    root = tmp_path_factory.mktemp("data")
    write_shapes(root, ShapesConfig(num_train=12, num_val=4, size=64, max_objects=2))
    return root


@pytest.fixture
def shapes(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the data root that every entry point finds."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    register_all()
    return shapes_root


@pytest.fixture
def tiny_config(tmp_path: Path) -> str:
    """A configuration file for train_net.py."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_MASKFORMER)
    return str(path)
