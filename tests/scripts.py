# SPDX-License-Identifier: Apache-2.0
"""Loads a script of `datasets/` by its path: that folder is a data root, not a package that could be imported."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DATASETS = Path(__file__).parents[1] / "datasets"


def load_script(name: str) -> ModuleType:
    """The module of ``datasets/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
