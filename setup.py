# SPDX-License-Identifier: Apache-2.0
"""Puts what is shipped beside the packages into a wheel: configurations, lists, tables, samples and scripts.

They lie once, in the checkout; a wheel holds copies in ``padding/shipped``, where ``padding/data/roots.py`` finds them.
Everything else is in ``pyproject.toml``.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PATTERNS = (
    "train_net.py",
    "demo.py",
    "requirements/no_deps.txt",
    "configs/**/*.yaml",
    "datasets/README.md",
    "datasets/prepare_*.py",
    "datasets/splits/**/*",
    "datasets/embeddings/*",
    "datasets/samples/**/*",
)


class BuildWithShippedFiles(build_py):
    """The ordinary build of the packages, and then the shipped files; an editable installation uses the checkout."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "padding" / "shipped"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for source in sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithShippedFiles})
