# SPDX-License-Identifier: Apache-2.0
"""Configuration, training loop, evaluation and prediction, shared by all methods."""

from padding.engine.predictor import Predictor
from padding.engine.setup import ConfigError, add_core_config, load_cfg, setup_cfg
from padding.engine.trainer import TRAINER_REGISTRY, Trainer

__all__ = [
    "TRAINER_REGISTRY",
    "ConfigError",
    "Predictor",
    "Trainer",
    "add_core_config",
    "load_cfg",
    "setup_cfg",
]
