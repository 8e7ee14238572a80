# SPDX-License-Identifier: Apache-2.0
"""Packed models of every method, untrained but for the second stage of PADing, and the page's view of them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from padding.bank.seen_statistics import FILE_NAME
from padding.data.catalog import register_all
from padding.engine.commands import load_model
from padding.engine.packing import pack_model
from padding.engine.trainer import TRAINER_REGISTRY
from padding.page.models import PageModel, open_models
from tests.separable_features import separable_cfg, train_second_stage
from tests.tiny_psi import tiny_psi_cfg
from tests.tiny_salseg import tiny_salseg_cfg


def with_weights(cfg: CfgNode, path: Path) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    cfg.freeze()
    return cfg


def pack_second_stage(folder: Path) -> Path:
    """PADing over 26 seen and 4 unseen classes; its table knows two more, ``separable_features.ADDED``."""
    node = "MODEL.PADING.ADD_CLASSES."
    cfg = separable_cfg(folder, f"{node}NUM_PER_CLASS", 20, f"{node}ITERATIONS", 5)
    model, statistics = train_second_stage(cfg, iterations=20)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    statistics.save(folder / FILE_NAME)
    cfg = with_weights(cfg, folder / "model_final.pth")
    path = folder / "zero_shot.safetensors"
    pack_model(cfg, load_model(cfg), path)
    return path


def pack_untrained(make: Callable[..., CfgNode], folder: Path, name: str) -> Path:
    """A dense model of the embedded data's 17 classes."""
    register_all()
    cfg = make("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 0)
    torch.manual_seed(0)
    model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
    for key, parameter in model.named_parameters():
        if key.endswith("predictor.bias"):
            torch.nn.init.normal_(parameter)  # otherwise every pixel is a tie
    torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    path = folder / f"{name}.safetensors"
    pack_model(with_weights(cfg, folder / f"{name}.pth"), model, path)
    return path


@pytest.fixture(scope="session")
def packed_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("page_models")
    dense = ((tiny_psi_cfg, "scribbles"), (tiny_salseg_cfg, "saliency"))
    return [pack_second_stage(folder), *(pack_untrained(make, folder, name) for make, name in dense)]


@pytest.fixture(scope="session")
def opened(packed_models: list[Path]) -> Mapping[str, PageModel]:
    return open_models(packed_models)


@pytest.fixture
def models(opened: Mapping[str, PageModel]) -> Iterator[Mapping[str, PageModel]]:
    """As they were packed, whatever a test adds."""
    yield opened
    for model in opened.values():
        if model.added_names:
            model.reset()


@pytest.fixture
def image() -> np.ndarray:
    """(40, 56, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
