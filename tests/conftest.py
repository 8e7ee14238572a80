# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: threads, fixed seeds, a private data root, golden refresh; and a quick set-up of Detectron2."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import functools
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import padding  # noqa: F401  (applies the Detectron2 fixes before any test imports it)

# isort: split
import detectron2.engine.defaults
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data import registration

GOLDENS = Path(__file__).parent / "goldens"
# OMP_NUM_THREADS asks for more; two threads on contended cores are slower than one.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
torch.set_num_threads(THREADS)  # for fixtures of a module, which come before those of a test
# The threads of a pool do not survive a fork, and a child that waits for them waits forever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/goldens with what this run computes")


@pytest.fixture(scope="session", autouse=True)
def _quick_setup() -> Iterator[None]:
    """What every set-up does again and takes most of its time: parse the same YAML, ask for the same environment.

    libyaml reads and writes what the YAML package in Python does; Detectron2 turns the whole configuration into an
    OmegaConf tree for each key it asks for.
    """
    slow = detectron2.engine.defaults._try_get_key

    def look_up(cfg: Any, *keys: str, default: Any = None) -> Any:
        if not isinstance(cfg, CfgNode):
            return slow(cfg, *keys, default=default)
        return next((cfg[key] for key in keys if key in cfg), default)

    with pytest.MonkeyPatch.context() as patch:
        if yaml.__with_libyaml__:
            patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
            patch.setattr(yaml, "SafeDumper", yaml.CSafeDumper)
        patch.setattr(detectron2.engine.defaults, "_try_get_key", look_up)
        for name in ("collect_env_info", "_highlight"):
            patch.setattr(detectron2.engine.defaults, name, functools.cache(getattr(detectron2.engine.defaults, name)))
        yield


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """A fixed number of threads and fixed seeds make a failure repeatable."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (Detectron2's augmentations draw from the global state)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # the other keeps a traceback for devices that never come
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Commands set up the loggers of the whole process; the next test, which may listen, finds them as before."""
    loggers = [logging.getLogger(name) for name in ("padding", "tcc", "psi", "salseg", "detectron2")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture
def restored_catalogs() -> Iterator[None]:
    """What a test registers is gone after it."""
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        registration._registered.discard(name)


@pytest.fixture
def goldens() -> Path:
    """Folder of golden values, each described in its README."""
    return GOLDENS


@pytest.fixture
def real_data() -> Path:
    """Folder with real samples, named by SEGMENTATION_TEST_DATA; the test is skipped without it."""
    folder = os.environ.get("SEGMENTATION_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set SEGMENTATION_TEST_DATA to the folder with the real samples")
    return Path(folder)
