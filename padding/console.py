# SPDX-License-Identifier: Apache-2.0
"""Console commands of an installation; each is a script of the checkout under a name that is found everywhere.

``mss-train`` is ``train_net.py``, ``mss-demo`` is ``demo.py``, ``mss-prepare shapes`` is
``datasets/prepare_shapes.py``, ``mss-export`` and ``mss-pack`` are modules of ``padding``.
"""

import importlib.util
import runpy
import sys
from collections.abc import Sequence

from padding.data.roots import project_dir
from padding.errors import ConfigError, MissingFileError, run_command


def train_command() -> None:
    """``mss-train``: train or evaluate any method."""
    _need_detectron2()
    _run_script("train_net.py")


def demo_command() -> None:
    """``mss-demo``: segment pictures, folders and videos."""
    _need_detectron2()
    _run_script("demo.py")


def graph_command() -> None:
    """``mss-export``: ``python -m padding.export``."""
    _run_module("padding.export")


def pack_command() -> None:
    """``mss-pack``: ``python -m padding.pack``."""
    _run_module("padding.pack")


def prepare_command() -> None:
    """``mss-prepare NAME ...``: get a data set, its splits or class embeddings ready."""
    words = sys.argv[1:]
    status = run_command(lambda _: _check_preparation(words), [])
    if status:
        sys.exit(status)
    sys.argv[1:] = words[1:]
    _run_script(f"datasets/prepare_{words[0]}.py")


def preparations() -> tuple[str, ...]:
    """What ``mss-prepare`` knows, sorted."""
    return tuple(sorted(path.stem.removeprefix("prepare_") for path in project_dir().glob("datasets/prepare_*.py")))


def _check_preparation(words: Sequence[str]) -> None:
    known = preparations()
    if not words or words[0] not in known:
        found = f"'{words[0]}' is not known" if words else "nothing is named"
        raise ConfigError(f"mss-prepare NAME [OPTIONS]: {found}; NAME is one of {', '.join(known)}")


def _need_detectron2() -> None:
    def check(_: Sequence[str]) -> None:
        if importlib.util.find_spec("detectron2") is None:
            listed = project_dir() / "requirements" / "no_deps.txt"
            options = "--require-hashes --no-deps --no-build-isolation --use-pep517"
            raise MissingFileError(
                "Detectron2 is not installed, and a wheel cannot ask for it; bring your own (v0.6 or main), or run: "
                f"{sys.executable} -m pip install {options} -r {listed}"
            )

    status = run_command(check, [])
    if status:
        sys.exit(status)


def _run_module(name: str) -> None:
    _need_detectron2()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_script(name: str) -> None:
    """Run a script as ``python NAME`` would; processes that it starts find their functions by its path."""
    runpy.run_path(str(project_dir() / name), run_name="__main__")
