# SPDX-License-Identifier: Apache-2.0
"""Config keys of Mask2Former, named and preset as in the official code, of the small backbone and of timm's."""

from detectron2.config import CfgNode

from padding.modeling import register_models

# Keys of official Mask2Former configs that have no effect on the core: accepted, so that those files load unchanged.
ACCEPTED_AND_IGNORED: tuple[str, ...] = (
    "MODEL.MASK_FORMER.ENC_LAYERS",  # encoder of MaskFormer, absent from Mask2Former
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",  # the weights of MODEL.MASK_FORMER count
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",  # each data set names its own ignore label
)


def add_mask2former_config(cfg: CfgNode) -> None:
    """Add ``MODEL.MASK_FORMER``, the nodes of our backbones and what ``MODEL.SEM_SEG_HEAD`` lacks in Detectron2.

    The models themselves are registered with Detectron2, so that whatever the keys name can be built.

    Defaults are the official ones, so that an official file means the same here, except where those name parts that
    do not exist here. They are no recommendation; ``configs/_base_/mask2former_r50.yaml`` holds the published model.

    Args:
        cfg: Detectron2's config, changed in place.
    """
    register_models()
    cfg.MODEL.MASK_FORMER = _mask_former_node()
    cfg.MODEL.SMALL_RESNET = _small_resnet_node()
    # Memory order of weights and maps of any backbone but those of TCC's students, which have a key of their own: same
    # numbers up to the order of sums. On a CPU with AVX-512 Mask2Former R50 takes less time with it (benchmarks).
    cfg.MODEL.BACKBONE.CHANNELS_LAST = False
    cfg.MODEL.TIMM = _timm_node()
    # Class loss of MaskFormer (over queries), cross entropy of TCC (SUP.CE_WEIGHT) and PSI (scribbles and what grows):
    # weights "inverse_log", 1 / ln(1.02 + share) of the segments or pixels in DATASETS.TRAIN, or "none"; focal factor
    # (1 - p)^FOCAL_GAMMA. SalSeg has MODEL.SALSEG.CLASS_WEIGHTS.
    cfg.MODEL.CLASS_BALANCE = CfgNode({"WEIGHTS": "none", "FOCAL_GAMMA": 0.0})
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"  # the only one
    head.MASK_DIM = 256  # channels of the mask features
    head.TRANSFORMER_ENC_LAYERS = 0  # deformable encoder layers; 6 in published models
    head.TRANSFORMER_ENC_DIM_FEEDFORWARD = 1024  # perceptron of those layers, a literal in the official code
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4  # per head and level
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    # Ours: "auto" (what suits the device), "grid_sample", "embedding_bag", or "compiled": on CUDA the operator of
    # Mask2Former or Deformable DETR, if it is installed. All give the same numbers up to rounding.
    head.DEFORMABLE_ATTENTION = "auto"


def _mask_former_node() -> CfgNode:
    node = CfgNode()
    # Transformer decoder
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"  # the only one
    node.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"  # the only one
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.DEC_LAYERS = 6  # predictions: layers + 1, for the one before the first layer
    node.PRE_NORM = False  # layer norm before each part of a layer instead of after it
    node.ENFORCE_INPUT_PROJ = False  # 1x1 convolution before attention even if CONVS_DIM equals HIDDEN_DIM
    node.DROPOUT = 0.1  # of the deformable encoder, probability; the decoder has none
    node.ENC_LAYERS = 0
    # Loss
    node.DEEP_SUPERVISION = True  # losses on every prediction, not only the last
    node.NO_OBJECT_WEIGHT = 0.1  # of the no-object class in the classification loss
    node.CLASS_WEIGHT = 1.0
    node.MASK_WEIGHT = 20.0
    node.DICE_WEIGHT = 1.0
    node.TRAIN_NUM_POINTS = 112 * 112  # points per mask for matching and loss
    node.OVERSAMPLE_RATIO = 3.0  # candidates per kept point, >= 1 (PointRend's k)
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of points at uncertain places, in [0, 1] (PointRend's beta)
    node.SEED_POINTS_BY_IMAGE = False  # ours: draw those points from the image id, to compare runs exactly
    # Input and inference
    node.SIZE_DIVISIBILITY = 32  # images are padded to multiples of this many pixels; negative: ask the backbone
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # lowest class probability of a panoptic segment
    node.TEST.OVERLAP_THRESHOLD = 0.0  # lowest share of its mask that a panoptic segment must keep
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False  # resize masks before, not after, semantic inference
    return node


def _small_resnet_node() -> CfgNode:
    node = CfgNode()
    node.STEM_OUT_CHANNELS = 24
    node.OUT_CHANNELS = [24, 48, 96, 96]  # res2, res3, res4, res5
    node.NUM_BLOCKS = [2, 2, 2, 1]
    node.NORM = "BN"
    node.OUTPUT_STRIDE = 32  # input pixels per cell of res5: 32 or 16
    return node


def _timm_node() -> CfgNode:
    node = CfgNode()  # read by MODEL.BACKBONE.NAME "build_timm_backbone"
    node.NAME = "convnext_small"  # of timm, without a tag of weights; MODEL.WEIGHTS names a local file
    node.OUTPUT_STRIDE = 32  # input pixels per cell of the last map: 8, 16 or 32
    node.DROP_PATH = 0.0  # probability of stochastic depth in the last block; earlier blocks less, linearly
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # maps that are returned; unused ones cost parameters
    # "BN", "SyncBN" or "FrozenBN": batch norms keep what the weights say. MODEL.BACKBONE.FREEZE_AT is as for a ResNet.
    node.NORM = "BN"
    # Memory order of weights and maps: same numbers; EfficientNets take 0.6 of the time with it on a CPU.
    node.CHANNELS_LAST = False
    return node
