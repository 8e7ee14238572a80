# SPDX-License-Identifier: Apache-2.0
"""Where data lie: the user's data root, and what is shipped with the project."""

from __future__ import annotations

import os
from pathlib import Path


def data_root(root: str | Path | None = None) -> Path:
    """The given folder, else ``$DETECTRON2_DATASETS``, else ``datasets`` (Detectron2's convention)."""
    return Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def project_dir() -> Path:
    """Folder that holds ``configs``, ``datasets`` and the scripts: the checkout, or ``padding/shipped`` of a wheel."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "shipped"  # setup.py fills it; a checkout has none
    return shipped if shipped.is_dir() else package.parent


def splits_dir() -> Path:
    """Folder of the shipped lists, ``datasets/splits``."""
    return project_dir() / "datasets" / "splits"


def find_config(path: str | Path) -> Path:
    """A configuration file as it stands; ``configs/...`` that is not there is looked up among the shipped ones."""
    path = Path(path)
    shipped = project_dir() / path
    return shipped if path.parts[:1] == ("configs",) and not path.is_file() and shipped.is_file() else path
