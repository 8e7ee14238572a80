# SPDX-License-Identifier: Apache-2.0
"""An installed package made of files: a module's folder, and the metadata of a distribution that lists them."""

from collections.abc import Mapping
from pathlib import Path


def write_package(site: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    """Write package ``name`` below ``site`` and return its module's folder; importing it is an error."""
    module = name.replace("-", "_")
    folder, info = site / module, site / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    everything = {"__init__.py": b"raise AssertionError('imported')", **files}
    for inside, content in everything.items():
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / inside).write_bytes(content)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{module}/{inside},,\n" for inside in everything))
    return folder
