# SPDX-License-Identifier: Apache-2.0
"""Class weights of a training, counted from its data (MODEL.CLASS_BALANCE.WEIGHTS)."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from padding.data.class_frequency import training_class_weights
from padding.data.class_split import class_split_of
from padding.errors import MethodError
from padding.modeling.class_balance import ClassBalance

FREQUENCY_FILE = "class_frequency.json"


def set_class_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Count the classes of DATASETS.TRAIN and give the model its weights; nothing without the key. Collective.

    Raises:
        MethodError: no loss of the model has such weights.
        DataError: the labels cannot be counted.
    """
    if cfg.MODEL.CLASS_BALANCE.WEIGHTS == "none":
        return
    balance = next((module for module in model.modules() if isinstance(module, ClassBalance)), None)
    if balance is None:
        raise MethodError(
            f"MODEL.CLASS_BALANCE.WEIGHTS is '{cfg.MODEL.CLASS_BALANCE.WEIGHTS}', but {type(model).__name__} has no "
            "such loss; MaskFormer, TCC and PSI have, SalSeg has MODEL.SALSEG.CLASS_WEIGHTS"
        )
    weights = training_class_weights(cfg, cache=Path(cfg.OUTPUT_DIR) / FREQUENCY_FILE)
    balance.set_weights(weights.to(balance.weights))
    names = class_split_of(cfg.DATASETS.TRAIN[0]).names
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights.tolist(), strict=True))
    logging.getLogger(__name__).info("Class weights: %s", listed)
