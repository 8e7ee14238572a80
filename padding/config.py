# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of PADing: ``MODEL.PADING``, ``SOLVER.GENERATOR`` and ``SOLVER.CLASSIFIER``.

The defaults are the preset "ours". The presets "paper" (equations as printed) and "official" (released code) are
``configs/_base_/padding_paper.yaml`` and ``padding_official.yaml``. Symbols in brackets are the paper's.
"""

from detectron2.config import CfgNode


def add_padding_config(cfg: CfgNode) -> None:
    """Add PADing's keys in place; the keys of the Mask2Former core and of the solver are added elsewhere.

    Model and training loop are registered, so that whatever the keys name can be built.
    """
    from padding import meta_arch, trainer  # noqa: F401  (importing registers)

    node = CfgNode()
    cfg.MODEL.PADING = node
    # "supervised" (the segmentor's own classes only), "projection" (class embeddings as classifier) or "generative".
    node.METHOD = "generative"
    # "interleaved": generator and classifier step in each iteration; "sequential": first all steps of the generator.
    node.SCHEDULE = "interleaved"
    # Share of the iterations given to the generator when SCHEDULE is "sequential", in (0, 1).
    node.GENERATOR_SHARE = 0.5

    # Table of class embeddings [a], npz with the names of all classes; a relative path is looked up in the data root.
    # ALLOW_IDENTICAL: accept a table in which classes share one row; nothing can tell them apart.
    # RANDOM_SEED: >= 0 puts random unit vectors of the table's width, drawn from this seed and the name, in its place:
    # the control that says what knowing the names is worth; -1 is off.
    node.EMBEDDINGS = CfgNode({"PATH": "", "L2_NORMALIZE": True, "ALLOW_IDENTICAL": False, "RANDOM_SEED": -1})
    # Backbone maps ("res4", "res5") whose mean under each query's mask is put beside its embedding; (): the paper's
    # features. METHOD "supervised" does not look at them.
    node.POOLED_FEATURES = ()
    # Divisor of the cosines of METHOD "projection", > 0.
    node.PROJECTION = CfgNode({"TEMPERATURE": 0.01})
    _add_generator_keys(node)
    _add_loss_keys(node)
    _add_classifier_keys(node)
    _add_solver_keys(cfg)


def _add_generator_keys(node: CfgNode) -> None:
    node.GENERATOR = CfgNode()
    # "primitive_transformer" (released), "primitive_paper" (Eq. 1) or "gmmn" (the baseline without primitives).
    node.GENERATOR.NAME = "primitive_transformer"
    node.GENERATOR.NUM_PRIMITIVES = 400
    node.GENERATOR.NUM_LAYERS = 3
    node.GENERATOR.NUM_HEADS = 8
    node.GENERATOR.FFN_DIM = 1024
    node.GENERATOR.DROPOUT = 0.1
    # Standard deviation of the noise [Z], drawn in training and in evaluation; 0 switches it off.
    node.GENERATOR.NOISE_STD = 1.0
    # Primitives attend to each other first (the paper's relationship graph; the released code has none).
    node.GENERATOR.PRIMITIVE_SELF_ATTENTION = False
    # Layers of "primitive_transformer" start as copies of the first (released), instead of each with its own values.
    node.GENERATOR.EQUAL_LAYERS = False


def _add_loss_keys(node: CfgNode) -> None:
    node.MMD = CfgNode()
    # Kernel widths [sigma]; BANDWIDTH "variance" takes them as sigma^2, "sigma" as sigma, "median" uses their ratios
    # and sets the geometric mean of the variances to the median squared distance of the batch.
    node.MMD.SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    node.MMD.BANDWIDTH = "median"
    node.MMD.SQRT = True
    node.MMD.UNBIASED = False
    # Means over pairs, or plain sums as printed.
    node.MMD.NORMALIZE = True
    # "batch" (classes mixed), "per_class", "joint", or "auto": per_class when fed from a bank, else batch.
    node.MMD.GROUPING = "auto"
    # Classes of a batch with fewer real rows are filled up to so many for the generator's step, drawn from running
    # estimates of their mean and variance (padding/class_moments.py); 0: off. For "per_class" and a long tail.
    node.MMD.ROWS_PER_CLASS = 0

    node.ALIGN = CfgNode()
    node.ALIGN.ENABLED = True
    # "related": the encoded features E_R(x); "visual": the features themselves (the only choice without DISENTANGLE).
    node.ALIGN.SPACE = "related"
    # Semantic side of alignment and relation: "raw" class embeddings or their learnt projection ("projected").
    node.ALIGN.TARGET = "raw"
    # No gradient into the semantic side.
    node.ALIGN.DETACH = True
    # "semantic_to_visual" is KL(semantic || visual), "visual_to_semantic" the reverse.
    node.ALIGN.DIRECTION = "semantic_to_visual"
    # "row_mean" or "numel" (as released, smaller by the number of columns).
    node.ALIGN.REDUCTION = "row_mean"
    # Divisor of similarities in all losses [tau], > 0.
    node.ALIGN.TEMPERATURE = 0.1
    # Real features of seen classes are aligned and disentangled too, not only synthetic ones.
    node.ALIGN.USE_REAL_SEEN = True

    _add_disentangle_keys(node)
    _add_loss_weights(node)


def _add_disentangle_keys(node: CfgNode) -> None:
    node.DISENTANGLE = CfgNode()
    node.DISENTANGLE.ENABLED = True
    # "ours" or "official": layers of encoders and decoder (see padding/alignment.py).
    node.DISENTANGLE.ARCH = "ours"
    node.DISENTANGLE.DROPOUT = 0.1
    # Scores of the relation loss: "dot" or "relation_net".
    node.DISENTANGLE.RELATION = "dot"
    # Unseen features are scored against all classes, or against the unseen ones only; seen features likewise.
    node.DISENTANGLE.RELATION_AMONG_ALL = True
    node.DISENTANGLE.RELATION_SEEN_AMONG_ALL = True
    # Prior on the unrelated part: "moment", "vae" or "official".
    node.DISENTANGLE.UNRELATED = "moment"
    # Relation, prior and absolute differences of the reconstruction: "mean" over samples (and channels), then over the
    # seen and the unseen set, or plain "sum", as Eq. 3 to 5 print it.
    node.DISENTANGLE.RELATION_REDUCTION = "mean"
    node.DISENTANGLE.UNRELATED_REDUCTION = "mean"
    node.DISENTANGLE.RECONSTRUCTION = "mean"


def _add_loss_weights(node: CfgNode) -> None:
    # Total = MMD + CONSISTENCY * L_cls + STRUCTURE [lambda] * (ALIGN * L_A + RELATION * L_R + UNRELATED * L_U +
    # RECONSTRUCTION * L_recon), each L a mean over the sets it is computed on unless its reduction is "sum".
    node.LOSS_WEIGHT = CfgNode()
    node.LOSS_WEIGHT.CONSISTENCY = 0.001
    node.LOSS_WEIGHT.STRUCTURE = 0.002
    node.LOSS_WEIGHT.ALIGN = 1.0
    node.LOSS_WEIGHT.RELATION = 0.2
    node.LOSS_WEIGHT.UNRELATED = 0.5
    node.LOSS_WEIGHT.RECONSTRUCTION = 0.5
    # L_cls scores synthetic seen features against the seen classes, or against all classes and no-object.
    node.CONSISTENCY_AMONG_ALL = False


def _add_classifier_keys(node: CfgNode) -> None:
    node.CLASSIFIER = CfgNode()
    # Rows of known classes and of no-object: "pretrained" from the segmentor's class head, or "random".
    node.CLASSIFIER.INIT = "pretrained"
    # Rows of unseen classes with INIT "pretrained": "pretrained" where the checkpoint has them (a wide head) and random
    # elsewhere, "random" or "zeros".
    node.CLASSIFIER.UNSEEN_INIT = "pretrained"
    # Weights in the cross-entropy; a seen class has 1.
    node.CLASSIFIER.UNSEEN_WEIGHT = 5.0
    node.CLASSIFIER.NO_OBJECT_WEIGHT = 0.1
    # Unseen classes drawn in each iteration (0: all of them), and synthetic features of each.
    node.CLASSIFIER.CLASSES_PER_ITER = 5
    node.CLASSIFIER.NUM_PER_CLASS = 1

    node.FEATURE_BANK = CfgNode()
    # Extract all features once and train from disk instead of running the frozen segmentor in each iteration.
    node.FEATURE_BANK.ENABLED = False
    # Folder; "" for OUTPUT_DIR/feature_bank.
    node.FEATURE_BANK.PATH = ""
    # Passes over the training set, each with its own augmentation.
    node.FEATURE_BANK.VIEWS = 1
    # Unmatched queries kept of each image (0: all); each stands for all that were not kept.
    node.FEATURE_BANK.NO_OBJECT_PER_IMAGE = 10
    # Images whose features make one batch; 0 for SOLVER.IMS_PER_BATCH.
    node.FEATURE_BANK.IMAGES_PER_BATCH = 0
    # Images whose features make one file.
    node.FEATURE_BANK.SHARD_SIZE = 4096
    # Of the augmentations in the bank; not SEED, so that trainings with several seeds share one bank.
    node.FEATURE_BANK.SEED = 0
    # "float16" or "float32" on disk.
    node.FEATURE_BANK.DTYPE = "float16"

    # Real features kept beside the checkpoint, of each class and of no-object: from them classes are added later.
    node.STATISTICS = CfgNode({"PER_CLASS": 200, "NO_OBJECT": 3000})
    # Adding classes: synthetic features of each unseen class, and steps of the optimiser (L-BFGS).
    node.ADD_CLASSES = CfgNode({"NUM_PER_CLASS": 300, "ITERATIONS": 100})

    # The released converter's narrow heads: their no-object row lies on the first unseen class, and its zero rows take
    # part in the matching. Off, misplaced rows of released files are moved to where they belong.
    node.COMPAT = CfgNode({"OFFICIAL_HEAD_PAD": False})

    node.TEST = CfgNode()
    # "gzsl": all classes compete; "zsl": unseen classes and no-object only.
    node.TEST.MODE = "gzsl"
    # Subtracted from the logits of seen classes [gamma]; 0 is the paper's setting.
    node.TEST.SEEN_BIAS = 0.0


def _add_solver_keys(cfg: CfgNode) -> None:
    """Keys of the two optimisers; any key of SOLVER not given here is taken from SOLVER."""
    cfg.SOLVER.GENERATOR = _solver_node("ADAM", base_lr=5e-4, weight_decay=0.0)
    cfg.SOLVER.CLASSIFIER = _solver_node("SGD", base_lr=1e-3, weight_decay=5e-4)


def _solver_node(optimizer: str, *, base_lr: float, weight_decay: float) -> CfgNode:
    node = CfgNode()
    node.OPTIMIZER = optimizer
    node.BASE_LR = base_lr
    node.WEIGHT_DECAY = weight_decay
    # Of "SGD" only.
    node.MOMENTUM = 0.9
    node.NESTEROV = False
    # STEPS and GAMMA act with "WarmupMultiStepLR" only. STEPS are iterations of MAX_ITER; with SCHEDULE "sequential",
    # where an optimiser has a share of these, they are the same share of its own.
    node.LR_SCHEDULER_NAME = "constant"
    node.STEPS = (14000, 18500)
    node.GAMMA = 0.1
    node.WARMUP_ITERS = 0
    return node
