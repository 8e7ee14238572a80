# SPDX-License-Identifier: Apache-2.0
"""Where data lie: the user's data root and the lists shipped with the project."""

from __future__ import annotations

import os
from pathlib import Path


def data_root(root: str | Path | None = None) -> Path:
    """The given folder, else ``$DETECTRON2_DATASETS``, else ``datasets`` (Detectron2's convention)."""
    return Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def splits_dir() -> Path:
    """Folder of the shipped lists, ``datasets/splits`` of the repository."""
    return Path(__file__).resolve().parents[2] / "datasets" / "splits"
