# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: one thread, fixed seeds, a private data root, golden refresh."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import padding  # noqa: F401  (applies the Detectron2 fixes before any test imports it)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data import registration

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/goldens with what this run computes")


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Two threads on contended cores are slower than one, and a fixed seed makes a failure repeatable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (Detectron2's augmentations draw from the global state)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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
