# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the solver, the training loop and the evaluation (names as in Mask2Former's and DeepLab's)."""

from detectron2.config import CfgNode

# Keys that are gone -> what to write instead.
REPLACED_KEYS = {
    "SOLVER.HEAD_MULTIPLIER": "BASE_LR is the rate of the heads: set SOLVER.BASE_LR to BASE_LR * HEAD_MULTIPLIER and "
    "SOLVER.BACKBONE_MULTIPLIER to 1 / HEAD_MULTIPLIER",
}


def add_solver_config(cfg: CfgNode) -> None:
    """Add the keys that ``padding.engine`` reads beyond Detectron2's own.

    Args:
        cfg: configuration that holds Detectron2's defaults; changed in place.
    """
    # True: a training begins anew in an OUTPUT_DIR that holds another; without it, that is an error.
    cfg.OUTPUT_OVERWRITE = False
    # Class of the training loop, a name in padding.engine.TRAINER_REGISTRY.
    cfg.TRAINER = "Trainer"
    # On a CPU keep freed memory instead of giving it back (glibc): up to a fifth less time, 0.3 to 0.5 GiB more.
    cfg.ENGINE = CfgNode({"KEEP_MEMORY": True})
    # Who gets the numbers of a training beside the log and metrics.json: "tensorboard", "wandb" (Weights & Biases) and
    # "mlflow", which must be installed; the latter write to what their environment variables say, else to OUTPUT_DIR.
    cfg.ENGINE.WRITERS = ("tensorboard",)
    # Project of Weights & Biases, experiment of MLflow; "": the name of the folder that OUTPUT_DIR lies in.
    cfg.ENGINE.EXPERIMENT = ""
    # Parameters that training leaves as they are, by patterns of their names: ("backbone.*", "!backbone.res5.*"). A
    # batch norm that is kept keeps its statistics too. (): what MODEL.BACKBONE.FREEZE_AT and the method say.
    cfg.MODEL.FREEZE = ()
    # Images per step that BASE_LR is stated for: the rate used is BASE_LR * IMS_PER_BATCH / REFERENCE_BATCH.
    # 0: BASE_LR whatever the batch.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # How many of the IMS_PER_BATCH images of a step are unlabeled, for methods that use such images.
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 0
    # Images of a step that come with saliency, beside the IMS_PER_BATCH with class labels (SalSeg); 0: none.
    cfg.SOLVER.IMS_PER_BATCH_SALIENCY = 0
    # "ADAMW", "ADAM" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of backbones, as a multiple of BASE_LR, which is that of everything else. One convention for all
    # methods: 0.1 where they are pre-trained, 1 where they start from nothing.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of nn.Embedding tables and of position tables; norm layers have Detectron2's WEIGHT_DECAY_NORM.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # IMS_PER_BATCH is what one optimiser step sees; it is computed in this many parts per process to save memory.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # WarmupPolyLR: rate = BASE_LR (1 - t/T)^POLY_LR_POWER, never below BASE_LR * POLY_LR_CONSTANT_ENDING.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Checkpoints from which a training can go on: of older ones only the weights stay (a third of the size). 0: all.
    cfg.SOLVER.COMPLETE_CHECKPOINTS = 0
    # Iterations between two lines in the log, in metrics.json and in TensorBoard; a line holds medians since the last.
    cfg.SOLVER.LOG_PERIOD = 20
    # "value" and "norm" (each parameter by itself) are Detectron2's; "full_model" clips the norm of all gradients.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    _add_evaluation_keys(cfg)


def _add_evaluation_keys(cfg: CfgNode) -> None:
    # Metric of which the best value so far is kept, with its weights in model_best.pth, such as "sem_seg/mIoU"; where
    # there are several data sets, with the name of one in front. "": only the last weights.
    cfg.TEST.BEST_METRIC = ""
    # Processes, beside each that runs the model, that read the truth and compare semantic and panoptic predictions with
    # it; 0: the one that runs the model. Results are the same to the last bit.
    cfg.TEST.EVALUATION_WORKERS = 0
    # Which value of it is the best: "highest" or "lowest" (an error such as "saliency/MAE").
    cfg.TEST.BEST_IS = "highest"
    # The training ends after so many evaluations (TEST.EVAL_PERIOD) without a better BEST_METRIC; 0: at MAX_ITER.
    cfg.TEST.PATIENCE = 0
    # Write what is predicted in an evaluation to OUTPUT_DIR/inference/<data set>/predictions: COCO's panoptic JSON with
    # PNGs, COCO results, index images and saliency maps, as far as the model predicts them.
    cfg.TEST.SAVE_PREDICTIONS = False
    # Semantic models that give scores per pixel; mask classification has rules of its own (MODEL.MASK_FORMER.TEST).
    node = CfgNode()
    cfg.TEST.SEM_SEG = node
    # "whole" image; "slide", windows of CROP_SIZE whose probabilities are averaged; "center_crop", only the middle of
    # an image is segmented and evaluated, as some publications do: for comparison with those.
    node.MODE = "whole"
    node.CROP_SIZE = (512, 512)  # height, width
    node.STRIDE = (0, 0)  # height, width between windows; 0: two thirds of the window
    node.SCALES = (1.0,)  # factors on the image's size; probabilities are averaged
    node.FLIP = False  # average with the mirrored image
    # Further predictions of the model that are evaluated by themselves: "cnn" is "sem_seg_cnn" in its output.
    node.PARTS = ()
