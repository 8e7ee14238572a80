# SPDX-License-Identifier: Apache-2.0
"""Files that installed packages carry (weights, vectors), found without importing the package."""

import importlib.metadata
import importlib.util
import shlex
from collections.abc import Collection
from pathlib import Path

from padding.errors import MissingFileError


def installed_file(name: str, inside: str, suffixes: Collection[str]) -> Path:
    """A file of an installed distribution or of a module's folder; neither is imported.

    Args:
        name: of the distribution, or of a top-level module.
        inside: path in the module's folder, or the last parts of a path that the distribution lists.
        suffixes: kinds of files that the error lists where there is no such file.

    Raises:
        MissingFileError: no such package, with the command that installs it, or no such file in it.
    """
    try:
        listed = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        listed = None
    module = importlib.util.find_spec(name) if name.isidentifier() else None
    if listed is None and module is None:
        raise MissingFileError(
            f"package://{name}/{inside}: the package '{name}' is not installed; install it once by 'pip install "
            f"{shlex.quote(name)}', or name a local file instead"
        )
    files = [Path(str(file.locate())) for file in listed or ()]
    folders = (module.submodule_search_locations if module else None) or ()
    candidates = [Path(folder) / inside for folder in folders]
    candidates += [file for file in files if file.as_posix().endswith(f"/{inside}")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    others = sorted({file.name for file in files if file.suffix in suffixes})
    raise MissingFileError(
        f"package://{name}/{inside}: the package is installed and has no such file; its vector and weight files are "
        f"called {', '.join(others) or 'nothing that is read here'}"
    )
