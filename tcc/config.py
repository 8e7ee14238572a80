# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of TCC: ``MODEL.TCC`` and what its trainer reads of ``SOLVER`` and ``DATASETS``.

The paper states optimiser, number of iterations, batch sizes, initial weights, heads and lambda = 1; every other
default is ours, with its reason in ``tcc/README.md``. Symbols in brackets are the paper's.
"""

from detectron2.config import CfgNode


def add_tcc_config(cfg: CfgNode) -> None:
    """Add TCC's keys in place; keys of the input, the solver and the evaluation are added elsewhere."""
    node = CfgNode()
    cfg.MODEL.TCC = node
    # The two students, called "cnn" and "vit" whatever their backbones are.
    node.CNN = _student_node(backbone="resnet50", output_stride=16, aspp_dilations=(6, 12, 18), seed_offset=0)
    node.VIT = _student_node(backbone="pvt_small", output_stride=32, aspp_dilations=(3, 6, 9), seed_offset=1)
    # "both", or one student alone: "cnn" or "vit", to learn from itself (TARGETS.SOURCE "self"), or for a checkpoint of
    # python -m tcc.export_student.
    node.STUDENTS = "both"
    # Student whose scores are the prediction: "cnn", "vit" or "ensemble" (mean of the probabilities).
    node.TEST = CfgNode({"STUDENT": "vit"})
    _add_supervised_keys(node)
    _add_ccd_keys(node)
    _add_cfcd_keys(node)
    # Weight [g(t)] of the unsupervised terms: "gaussian" exp(-5 (1 - t/ITERS)^2), "linear" t/ITERS or "none" (1).
    # ITERS < 0: 27 % of SOLVER.MAX_ITER, the share of Laine & Aila; 0: always 1.
    node.RAMP_UP = CfgNode({"TYPE": "gaussian", "ITERS": -1})
    _add_perturbation_keys(node)


def _student_node(*, backbone: str, output_stride: int, aspp_dilations: tuple[int, ...], seed_offset: int) -> CfgNode:
    node = CfgNode()
    # resnet50, resnet101, pvt_tiny, pvt_small, pvt_medium; for generated data and CamVid small_resnet, pvt_nano; any
    # network of timm, as convnext_small; or a name of Detectron2's BACKBONE_REGISTRY, built from the rest of the
    # configuration.
    node.BACKBONE = backbone
    # Local file of ImageNet weights: torchvision, timm, Detectron2 or either published PVT layout; "" for random ones.
    node.WEIGHTS = ""
    # Input pixels per cell of the last map: 8, 16 or 32 (PVT: 16 or 32).
    node.OUTPUT_STRIDE = output_stride
    # Mean and deviation of each channel that the weights expect, in the order of INPUT.FORMAT; () for MODEL.PIXEL_*.
    node.PIXEL_MEAN = ()
    node.PIXEL_STD = ()
    # Normalisation in the backbone where it is a choice: ResNet "BN", "SyncBN", "FrozenBN" or "GN", timm's networks of
    # batch norms the first three.
    node.NORM = "BN"
    # First parts of the backbone that stay at their weights: 0 none, 1 the stem, 2 also res2 ... ResNet and timm.
    node.FREEZE_AT = 0
    # Memory order of a network of timm, see MODEL.TIMM.CHANNELS_LAST.
    node.CHANNELS_LAST = False
    # Probability of stochastic depth in the last block; earlier blocks less, linearly. PVT and timm's that have it.
    node.DROP_PATH = 0.1
    # Recompute activations in the backward pass instead of keeping them.
    node.CHECKPOINT_ACTIVATIONS = False
    # Factor on the learning rate of the whole student.
    node.LR_MULTIPLIER = 1.0
    # Changes the seed of the initial values: with equal offsets, two students of one kind are and stay the same.
    node.SEED_OFFSET = seed_offset
    head = CfgNode()
    node.HEAD = head
    head.IN_FEATURES = ()  # low-level and last map of the backbone by name; () for its first and its last
    head.PROJECT_CHANNELS = 48  # of the low-level features (stride 4)
    head.ASPP_CHANNELS = 256
    head.DECODER_CHANNELS = 256
    head.ASPP_DILATIONS = aspp_dilations  # (6, 12, 18) at output stride 16
    head.ASPP_DROPOUT = 0.1
    head.NORM = "BN"  # "BN", "SyncBN", "GN" or "" for none
    head.POOL_NORM = ""  # of the image-pooling branch, which sees one value per image: none, so that one image suffices
    return node


def _add_supervised_keys(node: CfgNode) -> None:
    node.SUP = CfgNode()
    node.SUP.DICE_WEIGHT = 1.0  # [L_s], Eq. 10
    node.SUP.CE_WEIGHT = 0.0
    node.SUP.CE_TYPE = "ce"  # or "ohem"
    node.SUP.OHEM = CfgNode({"THRESHOLD": 0.7, "MIN_KEPT_PER_IMAGE": 50000})
    dice = CfgNode()
    node.SUP.DICE = dice
    dice.CLASSES = "present"  # mean over the classes of the batch's labels, or over "all"
    dice.SMOOTH = 1.0
    dice.POWER = 2  # of the probabilities in the denominator: 1 or 2
    dice.BATCH = True  # sums over the batch; False: per image, then the mean
    dice.SYNC = False  # sums over all processes


def _add_ccd_keys(node: CfgNode) -> None:
    ccd = CfgNode()
    node.CCD = ccd  # [L_d], Eq. 8
    ccd.ENABLED = True
    ccd.WEIGHT = 1.0
    ccd.MODE = "soft"  # KL divergence; "hard": cross entropy with the peer's arg-max, which is CPS
    ccd.TEMPERATURE = 1.0  # > 0
    ccd.DETACH = True  # the peer is a fixed target
    ccd.REDUCTION = "pixel"  # mean over pixels of the sum over classes; "element": also divided by their number
    ccd.ON_LABELED = True
    ccd.ON_UNLABELED = True
    ccd.LOSS_STRIDE = 1  # logits are compared at 1/LOSS_STRIDE of the image size
    ccd.CONF_THRESHOLD = 0.0  # pixels whose target has a lower largest probability are left out
    # The sum over the pixels that are left is divided by the number of these ("kept"), or of all "valid" ones of the
    # image, as FixMatch has it: then few confident pixels weigh little.
    ccd.NORMALIZE_BY = "kept"


def _add_cfcd_keys(node: CfgNode) -> None:
    cfcd = CfgNode()
    node.CFCD = cfcd  # [L_f], Eq. 3 to 7
    cfcd.ENABLED = True
    cfcd.WEIGHT = 1.0  # [lambda]
    cfcd.FEATURE = "backbone"  # last stage (literal), "aspp" or "decoder"
    cfcd.STRIDE = 16  # of the common grid
    cfcd.RESIZE = "features"  # bring features to the common grid; "similarity": compare there, resize the maps after
    cfcd.LABEL_SOURCE = "cross"  # labels of the peer (Eq. 3, 4), "own", or "agree": pixels where both agree
    cfcd.PROTOTYPE_SCOPE = "image"  # mean over the image, the "batch" of a process, or "batch_sync" of all
    cfcd.DETACH_PROTOTYPE = False
    cfcd.DIRECTION = "mutual"  # or one-way: "cnn_to_vit", "vit_to_cnn" (the first is the fixed target)
    cfcd.ON_LABELED = False  # also on labelled images, with their true labels
    cfcd.MIN_PIXELS = 1  # a class with fewer cells has no prototype
    cfcd.CONF_THRESHOLD = 0.0  # cells below it leave prototypes and loss
    cfcd.NORMALIZE = "none"  # or "standardize": each similarity map to mean 0, deviation 1 per image


def _add_perturbation_keys(node: CfgNode) -> None:
    cutmix = CfgNode()
    node.CUTMIX = cutmix
    cutmix.ENABLED = False
    cutmix.PROB = 1.0
    cutmix.NUM_BOXES = 3
    cutmix.AREA = (0.25, 0.5)  # range of the summed area of the boxes, before overlaps
    # Second image: "roll" the next one of the batch, "second_stream" one of another stream, "self" the same image.
    cutmix.PARTNER = "roll"
    # Batch norm of the pass that makes the targets: "batch_no_update" (batch statistics, running ones untouched),
    # "batch" (running ones move as well) or "running" (evaluation mode).
    cutmix.TEACHER_BN = "batch_no_update"
    # Targets come from the weakly augmented view, gradients from a strongly augmented one (colour, blur).
    # INPUT.STRONG_VIEWS 2: from two of them, the mean of both losses.
    node.STRONG_AUG = False
    # Probability of dropping a feature channel of the unlabelled images (first and last stage); 0 switches it off.
    node.FEATURE_DROPOUT = 0.0
    # The dropout acts on the weak view instead, which is trained on as well, with CCD.WEIGHT (UniMatch).
    node.FEATURE_VIEW = False
    # Whose scores a student learns from (CCD): its "peer"'s; those of "self", the student or its moving average, as
    # FixMatch and Mean Teacher have it; or at each pixel those of whichever of both is "surest", by its largest
    # probability. "self" needs CCD.ON_LABELED False: a labeled image has one view.
    node.TARGETS = CfgNode({"SOURCE": "peer"})
    # Targets (and the evaluation) from an exponential moving average of each student; DECAY 0 switches it off. WARM_UP:
    # after iteration t (from 0) the decay is min(1 - 1 / (t + 1), DECAY), so that initial values are forgotten at once.
    node.EMA = CfgNode({"DECAY": 0.0, "WARM_UP": False})
