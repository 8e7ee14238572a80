# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of PSI: ``MODEL.PSI`` and ``SOLVER.THRESHOLD``.

Values that the paper states are the paper's, except where they make a term inert; the choices it leaves open and their
reasons stand in ``psi/README.md``. Symbols in brackets are the paper's.
"""

from detectron2.config import CfgNode


def add_psi_config(cfg: CfgNode) -> None:
    """Add PSI's keys in place; keys of the input, the solver and the evaluation are added elsewhere."""
    node = CfgNode()
    cfg.MODEL.PSI = node
    # Backbone features of strides 4, 8, 16 and 16 (output stride 16), called X1 to X4 in the paper.
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    _add_aggregation_keys(node)
    _add_decoder_keys(node)
    _add_diffusion_keys(node)
    _add_teacher_keys(node)
    _add_loss_keys(node)
    # Of the threshold network [theta]; missing keys are those of SOLVER.
    cfg.SOLVER.THRESHOLD = CfgNode({"BASE_LR": 0.001, "WEIGHT_DECAY": 0.0})


def _add_aggregation_keys(node: CfgNode) -> None:
    # Context that joins the decoder: "none" (DeepLabV3+), "up" (upsample and add), "sf" (semantic flow) or "cpp".
    node.AGGREGATION = "cpp"
    cpp = CfgNode()
    node.CPP = cpp
    # The first six are read by "up" and "sf" as well.
    cpp.CHANNELS = 256  # [C] after the lateral 1x1 convolutions, and of the result
    cpp.DESTINATION = "res5"  # [k]
    cpp.NORM = "BN"  # in [sigma], of the result: "BN", "SyncBN", "GN" or "" for none
    cpp.ACTIVATION = True  # ReLU in it
    cpp.LATERAL_NORM = "BN"
    cpp.LATERAL_ACTIVATION = True
    cpp.RADII = (1, 1, 1, 4)  # [rho] of X1 to X4, in cells of each level
    cpp.DISTANCE = "chebyshev"  # "l2" or "l1"
    cpp.INCLUSIVE = False  # neighbors closer than the radius, or also those at it
    cpp.SCALE = "sqrt_dim"  # of the similarity: "sqrt_dim", "dim", "none" (literal) or "learned"
    cpp.SIMILARITY = "inner"  # "cosine" (of vectors of length sqrt(C)) or "euclidean" (negative squared distance)
    cpp.LATERAL_POOL = False  # average finer levels onto the destination's grid instead of sampling one cell
    cpp.BACKEND = "auto"  # "dense", "banded", "shift" or "unfold"; all give the same


def _add_decoder_keys(node: CfgNode) -> None:
    node.DECODER = CfgNode()
    node.DECODER.HIGH_LEVEL = "aspp"  # or "res5", the last map after its lateral convolution
    node.DECODER.PRE_REDUCE = False  # 1x1 to CHANNELS before upsampling: the cost of DeepLabV3+
    node.DECODER.DECODER_CHANNELS = 256
    node.DECODER.PROJECT_CHANNELS = 48
    node.DECODER.ASPP_CHANNELS = 256
    node.DECODER.ASPP_DILATIONS = (6, 12, 18)
    node.DECODER.ASPP_DROPOUT = 0.1
    node.DECODER.NORM = "BN"
    node.DECODER.POOL_NORM = ""
    node.DECODER.INIT = "xavier"  # of the new convolutions of pyramid and decoder; "kaiming" (literal)


def _add_diffusion_keys(node: CfgNode) -> None:
    sld = CfgNode()
    node.SLD = sld
    sld.STEPS = 3  # [T] diffusions whose result supervises; 0: scribbles alone
    sld.MODE = "online"  # "inner_loop": a step of both for each t; "rounds": labels stored between rounds
    # Where stored labels lie ("": OUTPUT_DIR/labels), and whether those of earlier rounds stay, to be looked at.
    sld.ROUNDS = CfgNode({"FOLDER": "", "KEEP": True})
    sld.START_ITER = -1  # scribbles alone before it; < 0: 10 % of SOLVER.MAX_ITER
    sld.STRIDE = 4  # of the grid on which labels grow
    sld.RADIUS = 16  # [r_0] in input pixels
    sld.GROWTH = "linear"  # r_t = r_0 (t + 1); "geometric" r_0 2^t; "list" takes RADII
    sld.RADII = ()
    sld.SHARPNESS = 20.0  # [k]
    sld.SCOPE = "window"  # grow inside the window; "global": anywhere, the window gives statistics alone
    sld.BINARIZER = "relu_sigmoid"  # of the threshold's loss: Eq. 9, "rescaled" (2B - 1) or "sigmoid"
    sld.GATE_ARGMAX = True  # a pixel enters only with the class that the network ranks first
    sld.KEEP_DIFFUSED = True  # diffused labels stay in the following steps; False: a stronger class replaces them
    sld.TARGET = "hard"  # the strongest class; "soft": every selected class with its B' = 2B - 1
    # What colours say beside the scores. The affinity of a cell to a class is exp(-d^2 / (2 SIGMA^2)), d the distance
    # of its mean colour to that of the labels of the class within the window's radius (black and white: sqrt(3)).
    # "gate": a cell enters only with an affinity of at least MIN; "factor": scores are multiplied with it; "none".
    sld.AFFINITY = CfgNode({"MODE": "none", "SIGMA": 0.1, "MIN": 0.5})
    sld.THRESHOLD_NET = CfgNode({"HIDDEN": (16, 16), "BOUND": 3.0})  # [g]; output BOUND tanh(x / BOUND)


def _add_teacher_keys(node: CfgNode) -> None:
    # Whose scores grow the labels: those of the network (DECAY 0), or of its moving average. WARM_UP: after iteration t
    # (from 0) the decay is min(1 - 1 / (t + 1), DECAY), so that initial values are forgotten at once. BATCH_NORM of the
    # pass: "running" statistics, or those of the batch, "batch_no_update" or "batch" (running ones move as well).
    # EVALUATE: predictions are the average's as well.
    node.TEACHER = CfgNode({"DECAY": 0.0, "WARM_UP": True, "BATCH_NORM": "running", "EVALUATE": False})
    # Labels grow on the scores of the image; all losses of the network are those of "image_strong", the same pixels in
    # other colours (INPUT.STRONG_VIEW True).
    node.WEAK_TO_STRONG = False


def _add_loss_keys(node: CfgNode) -> None:
    node.LOSS = CfgNode()
    node.LOSS.REGION_NORM = "separate"  # mean over scribbles plus mean over diffused pixels; "joint": one mean
    node.LOSS.DIFFUSED_WEIGHT = 1.0  # factor on the diffused pixels in either
    # Factor on it, from the iteration on at which labels begin to grow: "gaussian" exp(-5 (1 - t/ITERS)^2), "linear"
    # t/ITERS or "none" (1). ITERS < 0: 27 % of SOLVER.MAX_ITER.
    node.LOSS.DIFFUSED_RAMP = CfgNode({"TYPE": "none", "ITERS": -1})
    node.LOSS.SMOOTH_WEIGHT = 100.0  # [lambda_1]
    node.LOSS.SMOOTH_ON = "probability"  # "argmax" is the paper's, which has no gradient
    node.LOSS.SMOOTH_REDUCTION = "mean"  # over channels; "sum"
    node.LOSS.SMOOTH_STRIDE = 1  # resolution of the prediction it is computed on
    node.LOSS.DIFFUSION_WEIGHT = 1.0  # [lambda_2]
    node.LOSS.DIFFUSION_REGION = "selected"  # second term of L_sld over selected pixels; "all"
