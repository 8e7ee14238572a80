# SPDX-License-Identifier: Apache-2.0
"""Class ids of label images that show every class in a color of its own, as annotation tools draw them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from padding.data.loaders.listed_images import images_by_id
from padding.data.prepare.label_conversion import LabelPair, Palette
from padding.data.readers import opened_image, read_text
from padding.data.sample import IGNORE_LABEL
from padding.errors import DataError

_GAP = r"\s*[\s,;]\s*"
_RGB = _GAP.join(rf"(?P<{channel}>\d{{1,3}})" for channel in "rgb")
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?P<name>[^:]+):{_RGB}(:.*)?",  # CVAT's name:r,g,b:parts:actions
        rf"(?P<name>.*?[^\s,;]){_GAP}{_RGB}",
        rf"{_RGB}{_GAP}(?P<name>\S.*)",
    )
)
_HEX = re.compile(r"(?P<name>.*?[^\s,;:])\s*[\s,;:]\s*#(?P<rgb>[0-9a-fA-F]{6})")
_DIGITS = re.compile(r"\d")


@dataclass(frozen=True)
class ColorTable:
    """Which color stands for which class.

    Attributes:
        path: file the table was read from, for messages.
        names: of the K classes, in the order of their ids.
        colors: of the classes and then of what is void, RGB, 0 to 255.
    """

    path: Path
    names: tuple[str, ...]
    colors: Palette

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        codes = np.array([r << 16 | g << 8 | b for r, g, b in self.colors], np.int32)
        ids = np.full(len(codes), IGNORE_LABEL, np.uint8)
        ids[: len(self.names)] = np.arange(len(self.names))
        order = np.argsort(codes)
        return codes[order], ids[order]

    def labels(self, rgb: npt.NDArray[np.uint8], *, place: str | Path) -> npt.NDArray[np.uint8]:
        """(h, w) uint8 class ids and 255 of a picture (h, w, 3).

        Raises:
            DataError: it has a color that the table lacks; ``place`` is its file.
        """
        code = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
        codes, ids = self._sorted
        position = np.searchsorted(codes, code).clip(max=len(codes) - 1)
        if (wrong := codes[position] != code).any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"{place}: {wrong.sum()} of {wrong.size} pixels have a color that {self.path} does not list, first "
                f"{','.join(map(str, rgb[row, column]))} in row {row}, column {column}; add it there, or, if such "
                "pixels lie along edges only, export the labels without smoothing and as PNG"
            )
        return ids[position]


def read_color_table(path: str | Path, void: Sequence[str] = ()) -> ColorTable:
    """Classes and colors of a text file, a line each: CVAT's ``labelmap.txt``, ``name,r,g,b``, ``r g b name`` or
    ``name,#rrggbb``.

    Lines that start with ``#``, empty ones, and a first line without a digit (the header of a table) are skipped.

    Args:
        path: of the file.
        void: names that are no class: their pixels become 255.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line is none of these, a name or a color stands twice, ``void`` names what is not there, or there
            are not 1 to 255 classes.
    """
    path = Path(path)
    found: dict[str, tuple[int, int, int]] = {}
    lines = [line.strip() for line in read_text(path).splitlines()]
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line and not line.startswith("#")]
    if numbered and not _DIGITS.search(numbered[0][1]):
        del numbered[0]
    for i, line in numbered:
        name, color = _parse(line, place=f"{path}, line {i}")
        twice = [other for other, known in found.items() if known == color]
        if twice or name in found:
            what = f"{twice[0]} has this color too" if twice else f"{name} stands there twice"
            raise DataError(f"{path}, line {i}: {what}; give every class one line and a color of its own")
        found[name] = color
    if unknown := [name for name in void if name not in found]:
        raise DataError(f"{path}: does not list {', '.join(unknown)}, named as void; it has {', '.join(found)}")
    names = tuple(name for name in found if name not in void)
    if not 0 < len(names) <= IGNORE_LABEL:
        raise DataError(f"{path}: {len(names)} classes; an index image holds 1 to {IGNORE_LABEL}")
    return ColorTable(path, names, tuple(found[name] for name in (*names, *(n for n in found if n in void))))


def _parse(line: str, *, place: str) -> tuple[str, tuple[int, int, int]]:
    if hexadecimal := _HEX.fullmatch(line):
        r, g, b = bytes.fromhex(hexadecimal["rgb"])
        readings = {(hexadecimal["name"], (r, g, b))}
    else:
        matches = [match for form in _FORMS if (match := form.fullmatch(line))]
        readings = {(m["name"], (int(m["r"]), int(m["g"]), int(m["b"]))) for m in matches}
    if len(readings) != 1:
        fault = "may be read in two ways" if readings else "is no class with a color"
        raise DataError(f"{place}: '{line}' {fault}; write name:r,g,b, with channels of 0 to 255")
    ((name, color),) = readings
    if max(color) > 255:
        raise DataError(f"{place}: '{line}' has a channel above 255; write name:r,g,b, with channels of 0 to 255")
    return name.strip().strip('"'), color


def read_color_labels(path: Path, *, table: ColorTable) -> npt.NDArray[np.uint8]:
    """(h, w) uint8 class ids and 255 of a label image in colors: RGB, RGBA without transparency, palette or grey.

    A palette image is read by its colors, whatever its indices are.

    Raises:
        DataError: it cannot be decoded, is transparent somewhere, or has a color that the table lacks.
    """
    with opened_image(path) as image:
        if image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
            raise DataError(f"{path}: has transparent pixels, whose class is unknown; export the labels without them")
        rgb = np.asarray(image.convert("RGB"))
    return table.labels(rgb, place=path)


def color_label_pairs(labels: Path, output: Path) -> list[LabelPair]:
    """Every image of a folder and of those below, and the PNG of the same name below ``output``.

    Raises:
        MissingFileError, DataError: see ``images_by_id``.
    """
    cure = "--labels is the folder of the label images in colors"
    files = images_by_id(labels, cure, subfolders=True)
    return [LabelPair(labels / name, output / f"{i}.png") for i, name in files.items()]
