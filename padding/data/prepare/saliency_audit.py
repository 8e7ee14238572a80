# SPDX-License-Identifier: Apache-2.0
"""Look for the usual mistakes in saliency maps: damaged files, other sizes, 0 and 1 instead of 0 and 255, no object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from padding.data.label_statistics import first_files
from padding.data.readers import displayed_size, opened_image
from padding.data.saliency.maps import SALIENT_ABOVE, read_saliency, saliency_to_bytes


@dataclass
class SaliencyAudit:
    """What was found."""

    num_images: int = 0  # images looked at
    num_read: int = 0  # saliency maps that were read
    pixels: int = 0  # of these maps
    known: int = 0  # pixels among them whose saliency is known
    salient: int = 0  # pixels above 128
    grey: int = 0  # pixels that are neither 0 nor 255
    soft_files: int = 0  # maps with such pixels
    unreadable: list[str] = field(default_factory=list)  # message for each damaged or unsuitable file
    wrong_size: list[str] = field(default_factory=list)  # message for each map of another size than its image
    # Maps whose largest value is 1: a mask that was not multiplied by 255.
    zero_one: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # maps without a salient pixel

    def problems(self) -> list[str]:
        """What training or evaluation would fail on, or learn wrongly, a line each."""
        return [
            *first_files("files cannot be used", self.unreadable),
            *first_files("maps have another size than their images", self.wrong_size),
            *first_files("maps hold 0 and 1, not 0 and 255; multiply them", self.zero_one),
        ]

    def remarks(self) -> list[str]:
        """What is unusual, but no obstacle."""
        return first_files("maps have no salient pixel", self.empty)

    def row(self) -> dict[str, Any]:
        """Numbers for a table; shares in percent."""
        known = max(self.known, 1)
        return {
            "images": self.num_images,
            "maps read": self.num_read,
            "soft maps": self.soft_files,
            "grey %": round(100 * self.grey / known, 2),
            "salient %": round(100 * self.salient / known, 2),
            "unknown %": round(100 * (self.pixels - self.known) / max(self.pixels, 1), 2),
            "empty": len(self.empty),
        }


def audit_saliency(entries: Sequence[Mapping[str, Any]], *, name: str = "saliency") -> SaliencyAudit:
    """Decode every image and every saliency map.

    Args:
        entries: that ``read_saliency`` can read.
        name: for the progress bar.

    Returns:
        What was found; nothing is raised for a bad file.
    """
    audit = SaliencyAudit()
    for entry in tqdm(entries, desc=name, unit="img", disable=None):
        audit.num_images += 1
        _audit_one(audit, entry)
    return audit


def _audit_one(audit: SaliencyAudit, entry: Mapping[str, Any]) -> None:
    path = entry.get("saliency_file_name", entry.get("sem_seg_file_name", entry["file_name"]))
    try:
        saliency, known = read_saliency(entry)
    except (ValueError, OSError) as error:
        audit.unreadable.append(str(error))
        return
    audit.num_read += 1
    grey = saliency_to_bytes(saliency)
    salient = int(np.count_nonzero((grey > SALIENT_ABOVE) & known))
    between = int(np.count_nonzero((grey > 0) & (grey < 255)))
    audit.pixels += grey.size
    audit.known += int(np.count_nonzero(known))
    audit.salient += salient
    audit.grey += between
    audit.soft_files += between > 0
    if grey.size and grey.max() == 1:
        audit.zero_one.append(path)
    elif salient == 0:
        audit.empty.append(path)
    try:
        size = displayed_size(entry["file_name"])
        with opened_image(entry["file_name"]) as image:
            image.load()  # a file that was cut has a sound header
    except (ValueError, OSError) as error:
        audit.unreadable.append(str(error))
        return
    if saliency.shape != size:
        h, w = saliency.shape
        audit.wrong_size.append(f"{path} ({h} x {w}, its image {size[0]} x {size[1]})")
