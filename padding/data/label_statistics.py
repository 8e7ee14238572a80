# SPDX-License-Identifier: Apache-2.0
"""What label images hold: classes, void, values that are neither, files that cannot be used; nothing is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.readers import displayed_size, opened_image, read_label_map
from padding.data.sample import IGNORE_LABEL, DatasetDict

_SHOWN = 3
_SUSPECT_SHARE = 0.01  # of all pixels


@dataclass
class LabelAudit:
    """What was found."""

    names: tuple[str, ...]  # of the classes; label n is ``names[n]``
    num_images: int = 0  # images looked at
    # (K,) int64 pixels of each class; void ones are in ``void_pixels``.
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    void_pixels: int = 0  # pixels that mean nothing
    void_255: int = 0  # those of them that hold 255, in files that hold classes too
    palette_files: int = 0  # label images with a palette, whose indices are the labels
    missing: list[str] = field(default_factory=list)  # images without a label file
    unreadable: list[str] = field(default_factory=list)  # message for each label file that holds colours or is damaged
    wrong_size: list[str] = field(default_factory=list)  # message for each label file of another size than its image
    all_void: list[str] = field(default_factory=list)  # label files in which nothing is labeled
    # Value that is neither class nor void -> files that hold it.
    outside: dict[int, list[str]] = field(default_factory=dict)

    def problems(self, *, all_labeled: bool = False) -> list[str]:
        """What training would fail on or learn wrongly, a line each.

        Args:
            all_labeled: every image needs labels; otherwise only an audit without any label file is a problem.
        """
        lines = [
            *first_files("label files cannot be used as labels", self.unreadable),
            *first_files("label files have another size", self.wrong_size),
        ]
        for value, files in sorted(self.outside.items()):
            lines += first_files(
                f"label files hold {value}, which is neither one of the {len(self.names)} classes nor void", files
            )
        if (suspect := self.void_for_class()) and self.has_one_class:
            lines.append(suspect)
        if self.missing and (all_labeled or len(self.missing) == self.num_images):
            lines += first_files("label files do not exist", self.missing)
        return lines

    @property
    def has_one_class(self) -> bool:
        """Whether the pixels of several classes all fell to one, which is never what is meant."""
        return int((self.pixels > 0).sum()) < min(2, len(self.names))

    def void_for_class(self) -> str:
        """A sentence where 255 is frequent and a class has no pixel, as in black and white masks; else ""."""
        share = self.void_255 / max(int(self.pixels.sum()) + self.void_pixels, 1)
        absent = [name for name, count in zip(self.names, self.pixels, strict=True) if count == 0]
        if not absent or share < _SUSPECT_SHARE:
            return ""
        return (
            f"255 covers {100 * share:.1f} % and means nothing, while {', '.join(absent)} "
            f"{'has' if len(absent) == 1 else 'have'} no pixel; if 255 is a class, name the value of each in "
            "DATASETS.FOLDERS.LABEL_VALUES, such as (0, 255)"
        )

    def lines(self) -> list[str]:
        """The audit for a reader: remarks, then the share of every class."""
        read = self.num_images - len(self.missing) - len(self.unreadable)
        text = [
            f"{self.num_images} images, {read} label files read ({self.palette_files} with a palette: its indices "
            f"count, not its colors), {len(self.missing)} images without labels"
        ]
        text += [
            f"remark: {line}" for line in first_files("label files hold void alone and teach nothing", self.all_void)
        ]
        total = max(int(self.pixels.sum()) + self.void_pixels, 1)
        shares = [*zip(self.names, self.pixels, strict=True), ("void", self.void_pixels)]
        width = max(len(name) for name, _ in shares)
        text += [f"  {name:<{width}}  {100 * int(count) / total:7.3f} %" for name, count in shares]
        absent = [name for name, count in zip(self.names, self.pixels, strict=True) if count == 0]
        if (suspect := self.void_for_class()) and not self.has_one_class:
            return [*text, f"remark: {suspect}"]
        return [*text, *([f"remark: no pixel of {', '.join(absent)}"] if absent else [])]


def first_files(what: str, files: Sequence[str]) -> list[str]:
    """How many files have a fault, and the first of them: no line or one."""
    shown = "; ".join(files[:_SHOWN])
    return [f"{len(files)} {what}: {shown}{' ...' if len(files) > _SHOWN else ''}"] if files else []


def audit_labels(
    entries: Sequence[DatasetDict], names: Sequence[str], *, label_map: Mapping[int, int] | None = None
) -> LabelAudit:
    """Read every label file of a semantic data set.

    Args:
        entries: with ``file_name`` and ``sem_seg_file_name``.
        names: of the K classes.
        label_map: value in the file -> class or 255; None: the values are classes and 255.

    Returns:
        What was found; nothing is raised for a bad file.
    """
    audit = LabelAudit(names=tuple(names), pixels=np.zeros(len(names), np.int64))
    for entry in tqdm(entries, desc="labels", unit="img", disable=None):
        audit.num_images += 1
        _audit_one(audit, entry, label_map)
    return audit


def _audit_one(audit: LabelAudit, entry: DatasetDict, label_map: Mapping[int, int] | None) -> None:
    path = entry["sem_seg_file_name"]
    if not Path(path).is_file():
        audit.missing.append(path)
        return
    try:
        labels = read_label_map(path)
        size = displayed_size(entry["file_name"])
        with opened_image(path) as image:
            audit.palette_files += image.mode == "P"
    except (ValueError, OSError) as error:
        audit.unreadable.append(str(error))
        return
    if labels.shape != size:
        audit.wrong_size.append(f"{path} ({labels.shape[0]} x {labels.shape[1]}, its image {size[0]} x {size[1]})")
    counts = np.bincount(labels.ravel())  # ten times faster than sorting
    values = np.flatnonzero(counts).tolist()
    labeled = 0
    for value, count in zip(values, counts[values].tolist(), strict=True):
        label = value if label_map is None else label_map.get(value, -1)
        if 0 <= label < len(audit.names):
            audit.pixels[label] += count
            labeled += count
        elif label == IGNORE_LABEL:
            audit.void_pixels += count
        else:
            audit.outside.setdefault(value, []).append(path)
    if labeled and (label_map or {}).get(IGNORE_LABEL, IGNORE_LABEL) == IGNORE_LABEL and len(counts) > IGNORE_LABEL:
        audit.void_255 += int(counts[IGNORE_LABEL])
    if labeled == 0 and set(values).isdisjoint(audit.outside):
        audit.all_void.append(path)
