# SPDX-License-Identifier: Apache-2.0
"""Configuration, training loop, evaluation and prediction, shared by all methods; each is loaded when it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {"Predictor": "predictor", "TRAINER_REGISTRY": "trainer", "Trainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'setup')}"), name)
