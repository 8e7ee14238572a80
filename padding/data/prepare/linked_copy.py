# SPDX-License-Identifier: Apache-2.0
"""Links below the data root that lead to the folders of an unpacked copy."""

from collections.abc import Mapping
from pathlib import Path

from padding.errors import PreparationError


def link_folders(folders: Mapping[Path, Path]) -> None:
    """Make links to folders; right ones are left alone, each new one is printed.

    Args:
        folders: place of the link -> existing folder.

    Raises:
        PreparationError: something else is in the way.
    """
    for path, folder in folders.items():
        if path.resolve() == folder.resolve():
            continue
        if path.exists() or path.is_symlink():
            raise PreparationError(f"{path} exists already and is another folder than {folder}; move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder.resolve(), target_is_directory=True)
        print(f"{path} -> {folder.resolve()}")  # noqa: T201  (the script's result)
