# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the solver and the training loop (names as in Mask2Former's and DeepLab's configs)."""

from detectron2.config import CfgNode

__all__ = ["add_solver_config"]


def add_solver_config(cfg: CfgNode) -> None:
    """Add the keys that ``padding.engine`` reads beyond Detectron2's own.

    Args:
        cfg: configuration that holds Detectron2's defaults; changed in place.
    """
    # Class of the training loop, a name in padding.engine.TRAINER_REGISTRY.
    cfg.TRAINER = "Trainer"
    # "ADAMW", "ADAM" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of everything below a module named "backbone", as a multiple of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of nn.Embedding tables and of position tables; norm layers have Detectron2's WEIGHT_DECAY_NORM.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # IMS_PER_BATCH is what one optimiser step sees; it is computed in this many parts per process to save memory.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # WarmupPolyLR: rate = BASE_LR (1 - t/T)^POLY_LR_POWER, never below BASE_LR * POLY_LR_CONSTANT_ENDING.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Iterations between two lines in the log, in metrics.json and in TensorBoard; a line holds medians since the last.
    cfg.SOLVER.LOG_PERIOD = 20
    # "value" and "norm" (each parameter by itself) are Detectron2's; "full_model" clips the norm of all gradients.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
