# SPDX-License-Identifier: Apache-2.0
"""A whole network that takes milliseconds: six classes, of which four are trained on."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from padding.data.class_split import ClassSplit
from padding.data.config import add_input_config
from padding.modeling import maskformer, segment_classifier  # noqa: F401  (register the models)
from padding.modeling.config import add_mask2former_config

TRAIN_NAME, TEST_NAME = "tiny_network_train", "tiny_network_val"


@pytest.fixture
def tiny_split() -> ClassSplit:
    """Things 0 to 2, stuff 3 to 5; "gem" (1) and "lake" (4) are unseen."""
    names = ("box", "gem", "tower", "sky", "lake", "ground")
    categories = [{"id": 10 + i, "name": name, "isthing": int(i < 3)} for i, name in enumerate(names)]
    return ClassSplit.from_categories(categories, ("gem", "lake"))


@pytest.fixture
def tiny_cfg(tiny_split: ClassSplit) -> Iterator[CfgNode]:
    """Training set with the four seen classes, test set with all six."""
    for name, split in ((TRAIN_NAME, tiny_split.seen_only()), (TEST_NAME, tiny_split)):
        MetadataCatalog.get(name).class_split = split
    cfg = get_cfg()
    add_input_config(cfg)
    add_mask2former_config(cfg)
    options = {
        "DATASETS.TRAIN": (TRAIN_NAME,),
        "DATASETS.TEST": (TEST_NAME,),
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.SMALL_RESNET.STEM_OUT_CHANNELS": 8,
        "MODEL.SMALL_RESNET.OUT_CHANNELS": [8, 8, 16, 16],
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
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 32,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 4,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.NHEADS": 4,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 3,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
        "MODEL.MASK_FORMER.DROPOUT": 0.0,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.2,
    }
    cfg.merge_from_list([entry for option in options.items() for entry in option])
    yield cfg
    for name in (TRAIN_NAME, TEST_NAME):
        MetadataCatalog.pop(name)


@pytest.fixture
def tiny_model(tiny_cfg: CfgNode) -> nn.Module:
    """The network of ``tiny_cfg``, in training mode."""
    return build_model(tiny_cfg)


@pytest.fixture
def make_sample() -> Callable[..., dict[str, Any]]:
    """Training sample with one rectangle per label; ``image_id`` decides the pixels."""

    def make(labels: list[int], size: tuple[int, int] = (64, 96), image_id: int = 1) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(image_id)
        masks = torch.zeros(len(labels), *size, dtype=torch.bool)
        for i, mask in enumerate(masks):
            mask[4 * i : 4 * i + 20, 6 * i : 6 * i + 30] = True
        instances = Instances(size)
        instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
        instances.gt_masks = masks
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        return {
            "image": image,
            "instances": instances,
            "height": size[0] // 2,
            "width": size[1] // 2,
            "image_id": image_id,
            "file_name": f"{image_id:012d}.png",
        }

    return make
