# SPDX-License-Identifier: Apache-2.0
"""A tiny PADing over tiny data, configured by KEY, VALUE pairs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from padding.meta_arch import PADing
from tests.tiny_padding import register_tiny_data, tiny_padding_cfg


@pytest.fixture(scope="session")
def tiny_data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny_padding")
    register_tiny_data(root)
    return root


@pytest.fixture
def padding_cfg(tiny_data_root: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    return lambda *opts: tiny_padding_cfg(tiny_data_root, tmp_path / "output", *opts)


@pytest.fixture
def padding_model(padding_cfg: Callable[..., CfgNode]) -> Callable[..., PADing]:
    def build(*opts: Any) -> PADing:
        return build_model(padding_cfg(*opts))

    return build


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Register dataset dicts and metadata under a name, until the end of the test."""
    names = []

    def add(name: str, records: list[dict[str, Any]], **metadata: Any) -> str:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
