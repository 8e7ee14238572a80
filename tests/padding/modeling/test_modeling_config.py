# SPDX-License-Identifier: Apache-2.0
"""Official keys load unchanged, and every key is read or declared to have no effect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from padding.data.class_split import ClassSplit
from padding.data.config import add_input_config
from padding.modeling.config import ACCEPTED_AND_IGNORED, add_mask2former_config
from padding.modeling.maskformer import MaskFormer

# The keys of MODEL.MASK_FORMER and MODEL.SEM_SEG_HEAD in the official config code and files, with the values of
# coco/panoptic-segmentation/maskformer2_R50_bs16_50ep (a fact sheet, not their file).
OFFICIAL = """
MODEL:
  SEM_SEG_HEAD:
    NAME: MaskFormerHead
    IN_FEATURES: [res2, res3, res4, res5]
    IGNORE_VALUE: 255
    NUM_CLASSES: 133
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: GN
    PIXEL_DECODER_NAME: MSDeformAttnPixelDecoder
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: [res3, res4, res5]
    DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS: 4
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: 8
    COMMON_STRIDE: 4
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_DECODER_NAME: MultiScaleMaskedTransformerDecoder
    TRANSFORMER_IN_FEATURE: multi_scale_pixel_decoder
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    CLASS_WEIGHT: 2.0
    MASK_WEIGHT: 5.0
    DICE_WEIGHT: 5.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    PRE_NORM: False
    ENFORCE_INPUT_PROJ: False
    SIZE_DIVISIBILITY: 32
    DEC_LAYERS: 10
    TRAIN_NUM_POINTS: 12544
    OVERSAMPLE_RATIO: 3.0
    IMPORTANCE_SAMPLE_RATIO: 0.75
    TEST:
      SEMANTIC_ON: True
      INSTANCE_ON: True
      PANOPTIC_ON: True
      OVERLAP_THRESHOLD: 0.8
      OBJECT_MASK_THRESHOLD: 0.8
      SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE: False
"""
OURS = (
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION",
    "MODEL.MASK_FORMER.SEED_POINTS_BY_IMAGE",
)
# Keys of Detectron2's own segmentation heads.
FOREIGN = ("MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES")
NODES = ("MASK_FORMER", "SEM_SEG_HEAD", "SMALL_RESNET")


class RecordingNode(CfgNode):
    """A config node that notes which of its keys were read."""

    def __getattr__(self, name: str) -> Any:
        self.__dict__.setdefault("reads", set()).add(name)
        return super().__getattr__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.__dict__.setdefault("reads", set()).add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.__dict__.setdefault("reads", set()).add(name)
        return super().__getitem__(name)


def make_config() -> CfgNode:
    cfg = get_cfg()
    add_input_config(cfg)
    add_mask2former_config(cfg)
    return cfg


def leaves(node: CfgNode, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


@pytest.fixture
def official_file(tmp_path: Path) -> str:
    path = tmp_path / "official.yaml"
    path.write_text("VERSION: 2\n" + OFFICIAL)
    return str(path)


def test_official_keys_load_unchanged(official_file: str) -> None:
    cfg = make_config()
    cfg.merge_from_file(official_file)
    assert cfg.MODEL.MASK_FORMER.DEC_LAYERS == 10
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    assert cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD == 1024


def test_we_add_no_key_that_is_not_listed(official_file: str) -> None:
    official = make_config()
    listed = CfgNode(CfgNode.load_yaml_with_base(official_file))
    known = {*OURS, *FOREIGN, *leaves(listed.MODEL, "MODEL")}
    for node in ("MASK_FORMER", "SEM_SEG_HEAD"):
        assert set(leaves(official.MODEL[node], f"MODEL.{node}")) <= known


def test_ignored_keys_exist() -> None:
    cfg = make_config()
    existing = {name for node in NODES for name in leaves(cfg.MODEL[node], f"MODEL.{node}")}
    assert set(ACCEPTED_AND_IGNORED) <= existing


def test_every_key_is_read_or_declared_to_have_no_effect() -> None:
    cfg = make_config()
    small = {
        "NUM_CLASSES": 2,
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "CONVS_DIM": 32,
        "NAME": "MaskFormerHead",
    }
    cfg.MODEL.SEM_SEG_HEAD.merge_from_other_cfg(CfgNode(small))
    cfg.MODEL.MASK_FORMER.merge_from_other_cfg(CfgNode({"HIDDEN_DIM": 32, "DIM_FEEDFORWARD": 32, "DEC_LAYERS": 2}))
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_backbone"
    name = "modeling_config_two_classes"
    categories = [{"id": 1, "name": "disk", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    cfg.DATASETS.TRAIN = (name,)
    for node in NODES:
        cfg.MODEL[node] = RecordingNode(cfg.MODEL[node])
    cfg.MODEL.MASK_FORMER.TEST = RecordingNode(cfg.MODEL.MASK_FORMER.TEST)
    for node in (*(cfg.MODEL[node] for node in NODES), cfg.MODEL.MASK_FORMER.TEST):
        node.__dict__["reads"] = set()
    MetadataCatalog.get(name).class_split = ClassSplit.from_categories(categories, unseen_names=())
    try:
        MaskFormer.from_config(cfg)
    finally:
        MetadataCatalog.remove(name)
    unread = {
        full_name
        for prefix, node in (
            *((f"MODEL.{node}", cfg.MODEL[node]) for node in NODES),
            ("MODEL.MASK_FORMER.TEST", cfg.MODEL.MASK_FORMER.TEST),
        )
        for full_name in leaves(CfgNode({k: v for k, v in node.items() if not isinstance(v, CfgNode)}), prefix)
        if full_name.rsplit(".", 1)[1] not in node.__dict__["reads"]
    }
    assert unread - set(FOREIGN) == set(ACCEPTED_AND_IGNORED)
