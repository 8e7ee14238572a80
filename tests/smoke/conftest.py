# SPDX-License-Identifier: Apache-2.0
"""A dozen generated images as the data root, and a small segmentor that trains on them."""

from pathlib import Path

import pytest

from padding.data.catalog import register_all
from tests.tiny_psi import write_dozen_scribbled_shapes
from tests.tiny_segmentor import write_config


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with 12 training and 4 validation images of the generated data set, and scribbles on the former."""
    return write_dozen_scribbled_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def shapes(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the data root that every entry point finds."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    register_all()
    return shapes_root


@pytest.fixture
def tiny_config(tmp_path: Path) -> str:
    """A configuration file for train_net.py."""
    return str(write_config(tmp_path))
