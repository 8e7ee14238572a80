# SPDX-License-Identifier: Apache-2.0
"""A tiny configuration of every kind of training; those that take seconds without values are slow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from padding.engine.commands import register_data
from tests.tiny_padding import tiny_padding_cfg
from tests.tiny_psi import tiny_psi_cfg
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_tcc import tiny_tcc_cfg

CASES = ["bank", *(pytest.param(k, marks=pytest.mark.slow) for k in ("segmentor", "padding", "tcc", "psi", "salseg"))]


def tiny_cfg(kind: str, root: Path, *opts: Any) -> CfgNode:
    """Configuration of a kind of training over the data of ``register_tiny_data(root)``."""
    makers: dict[str, Callable[..., CfgNode]] = {"tcc": tiny_tcc_cfg, "psi": tiny_psi_cfg, "salseg": tiny_salseg_cfg}
    if kind in makers:
        cfg = makers[kind](*opts)
        register_data(cfg)
        return cfg
    if kind == "segmentor":
        opts = ("MODEL.META_ARCHITECTURE", "MaskFormer", "TRAINER", "Trainer", *opts)
    if kind == "bank":
        opts = ("MODEL.PADING.FEATURE_BANK.ENABLED", True, *opts)
    return tiny_padding_cfg(root, root / "output", *opts)
