# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of SalSeg: ``MODEL.SALSEG``.

Values that the paper states are the paper's; the choices it leaves open and their reasons stand in
``salseg/README.md``. Symbols in brackets are the paper's.
"""

from detectron2.config import CfgNode


def add_salseg_config(cfg: CfgNode) -> None:
    """Add SalSeg's keys in place; keys of the input, the solver and the evaluation are added elsewhere."""
    node = CfgNode()
    cfg.MODEL.SALSEG = node
    node.IN_FEATURES = ()  # low-level [x_R1] and last map of MODEL.BACKBONE by name; () for its first and its last
    node.NORM = "BN"  # of pyramid and decoders: "BN", "SyncBN", "GN" or "" for none
    _add_encoder_keys(node)
    _add_saliency_keys(node)
    _add_loss_keys(node)
    # Whether evaluation also returns `saliency`, as far as the model has the branch.
    node.TEST = CfgNode({"SALIENCY": True})
    _add_resnet_keys(cfg)


def _add_encoder_keys(node: CfgNode) -> None:
    aspp = CfgNode()
    node.ASPP = aspp
    aspp.ENABLED = True  # False: a single 1x1 convolution makes [x_mid], as in the network SalSeg grew out of (JSWS)
    aspp.DSC = True  # atrous branches depthwise, then pointwise (DSC-ASPP); False: plain
    aspp.CHANNELS = 256  # [c1]
    aspp.DILATIONS = (6, 12, 18)  # at output stride 16
    aspp.DROPOUT = 0.1
    aspp.POOL_NORM = ""  # of the image-pooling branch, which sees one value per image: none, so that one image suffices
    node.DECODER = CfgNode()
    node.DECODER.PROJECT_CHANNELS = 48  # of the low-level map
    node.DECODER.CHANNELS = 256


def _add_saliency_keys(node: CfgNode) -> None:
    saliency = CfgNode()
    node.SALIENCY = saliency
    saliency.ENABLED = True
    saliency.SHARE_DECODER = False  # class-wise maps [s_seg] are the segmentation's logits instead of an own decoder's
    saliency.CHANNELS = 0  # [n] class-wise maps; 0: the number of classes
    # How the maps become saliency (Eq. 4): "softmax" over the n maps, "softmax_no_background" (the same without map 0),
    # "logit" (the weighted sum is the logit) or "sigmoid" of each map (weighted mean).
    saliency.READING = "softmax"
    # Batch norm of the encoder in passes over images that have saliency labels alone: "seg_only" (batch statistics,
    # running ones untouched), "per_task" (running ones of their own) or "shared".
    saliency.BN_STATS = "seg_only"
    saliency.LR_MULTIPLIER = 1.0  # of the branch, on SOLVER.BASE_LR


def _add_loss_keys(node: CfgNode) -> None:
    # "uncertainty" (Eq. 8), "liebel" (its variant that stays positive), "likelihood" (sigma^2 divides the logits, which
    # Eq. 8 approximates: no loss weighs more for being small), "fixed" (WEIGHTS), "uniform" (0.5 each);
    # "seg_only" and "saliency_only" train one task alone and have no use for images of the other.
    node.WEIGHTING = "uncertainty"
    node.WEIGHTS = (0.8, 0.2)  # of segmentation and saliency with "fixed"
    node.LOG_VARIANCE = CfgNode()  # [log sigma^2] of "uncertainty", "liebel" and "likelihood"
    node.LOG_VARIANCE.LR_MULTIPLIER = 1.0  # of SOLVER.BASE_LR
    node.LOG_VARIANCE.CLAMP = 6.0  # they stay within [-CLAMP, CLAMP], where they weigh losses
    node.BALANCE = CfgNode()  # of the tasks, whatever WEIGHTING makes of them
    node.BALANCE.FLOOR = (0.0, 0.0)  # least share of segmentation and saliency in the sum of the weights, which stays
    # A loss is divided by its mean over the past steps, each of which counts this much less than the next; 0: not.
    node.BALANCE.RUNNING_MEAN = 0.0
    # Eq. 8 is summed over pixels, as a likelihood is, and not over tasks: both terms of a task count by its pixels in
    # the step (times the weights of their classes).
    node.BALANCE.PIXEL_SUMS = False
    weights = CfgNode()
    node.CLASS_WEIGHTS = weights  # 1 / ln(1.02 + share of the class), counted once over the training labels
    weights.ENABLED = False
    weights.OVER = "labeled"  # the shares are of the labeled pixels, or of "all"
    weights.CACHE = ""  # JSON file of the counts; "": class_frequency.json in OUTPUT_DIR


def _add_resnet_keys(cfg: CfgNode) -> None:
    """What "build_resnet_deeplab_backbone" of Detectron2's DeepLab project reads, under its names."""
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"  # 7x7, or "deeplab": three 3x3
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
