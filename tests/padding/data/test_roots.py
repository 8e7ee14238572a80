# SPDX-License-Identifier: Apache-2.0
"""Where data lie."""

from pathlib import Path

import pytest

from padding.data.roots import data_root


def test_data_root_follows_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    assert data_root() == Path("/somewhere")
    assert data_root("here") == Path("here")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert data_root() == Path("datasets")
