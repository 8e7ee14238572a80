# SPDX-License-Identifier: Apache-2.0
"""The folder of a set of scribbles: label PNGs, and beside them the lines as XML, settings and statistics as JSON.

The settings decide: a folder made with others is not continued, and one that was not made here is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from padding.data.files import TEMPORARY, write_json
from padding.data.typed_json import read_typed_json
from padding.errors import DataError, PreparationError


class ScribbleNumbers(msgspec.Struct):
    """What is read again of the statistics."""

    coverage_pct: float


class ScribbleManifest(msgspec.Struct):
    """Settings of a run and, once it is complete, its statistics."""

    settings: dict[str, Any]
    statistics: ScribbleNumbers | None = None


@dataclass(frozen=True)
class ScribbleFolder:
    """Where the files lie: a folder of PNGs and what stands beside it."""

    path: Path

    def png(self, key: str) -> Path:
        """Label map of an image."""
        return self.path / f"{key}.png"

    def xml(self, key: str) -> Path:
        """Lines of an image."""
        return self.path.with_name(f"{self.path.name}_xml") / f"{key}.xml"

    @property
    def manifest(self) -> Path:
        """Settings and statistics."""
        return self.path.with_name(f"{self.path.name}.json")

    def content(self) -> ScribbleManifest | None:
        """What the manifest says; None if this module did not make the folder.

        Raises:
            PreparationError: it cannot be read.
        """
        if not self.manifest.is_file():
            return None
        try:
            return read_typed_json(self.manifest, ScribbleManifest, cure="Pass --overwrite to start anew.")
        except DataError as error:
            raise PreparationError(str(error)) from error

    def settings(self) -> dict[str, Any] | None:
        """What the folder was made with; None and errors as of ``content``."""
        content = self.content()
        return None if content is None else content.settings

    def begin(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready for a run with these settings.

        Raises:
            PreparationError: the folder holds something else, and ``overwrite`` is not set.
        """
        if overwrite:
            self._clear()
        earlier, is_empty = self.settings(), next(self.path.glob("*.png"), None) is None
        if earlier is None and not is_empty:
            raise PreparationError(
                f"{self.path}: holds label images that this command did not write; name another --output, or pass "
                "--overwrite to replace them"
            )
        if earlier is not None and earlier != settings and not is_empty:
            other = [k for k in sorted({*earlier, *settings}) if earlier.get(k) != settings.get(k)]
            differing = ", ".join(f"{k} {earlier.get(k)} (now {settings.get(k)})" for k in other)
            raise PreparationError(
                f"{self.path}: made with other settings: {differing}; name another --output, or pass --overwrite"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(TEMPORARY), *self.xml("").parent.glob(TEMPORARY)]:
            leftover.unlink(missing_ok=True)
        self.write_manifest(settings, complete=False)

    def _clear(self) -> None:
        # The manifest goes first: what is interrupted here is nobody's folder and asks for --overwrite again.
        self.manifest.unlink(missing_ok=True)
        for path in [*self.path.glob("*.png"), *self.xml("").parent.glob("*.xml")]:
            path.unlink()

    def write_manifest(self, settings: Mapping[str, Any], **entries: Any) -> None:
        """Write settings and further entries."""
        write_json(self.manifest, {"settings": dict(settings), **entries})
