# SPDX-License-Identifier: Apache-2.0
"""The zero-shot label spaces of COCO: panoptic 119/14, COCO-Stuff 156/15, instances 48/17 and 65/15 (PADing, Sec. 4).

Names come from ``datasets/splits`` and from Detectron2's category table; every id is derived from them.
"""

import colorsys
from functools import cache
from pathlib import Path
from typing import Any

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.readers import read_text
from padding.data.roots import splits_dir
from padding.errors import DataError

INSTANCE_SPLITS = ("48_17", "65_15")
_GOLDEN_RATIO = 0.618034


def coco_zsp_split() -> ClassSplit:
    """The 133 classes of COCO panoptic with the published 14 unseen ones."""
    return coco_panoptic_split(splits_dir() / "coco_zsp_119_14.txt")


def coco_panoptic_split(unseen: str | Path) -> ClassSplit:
    """The 133 classes of COCO panoptic, those unseen that a list of class names holds."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return ClassSplit.from_categories(COCO_CATEGORIES, read_name_list(unseen))


@cache
def coco_zss_split() -> ClassSplit:
    """The 171 classes of COCO-Stuff: 156 seen, then 15 unseen, each in the order of the PNG values.

    The data-set ids are the values of the official stuffthingmaps PNGs. Seen classes come first, as in the published
    preparation, so that a seen class has the same number in the narrow training space.
    """
    table = ClassSplit.from_categories(
        read_class_table(splits_dir() / "coco_stuff_171.tsv"), read_name_list(splits_dir() / "coco_zss_156_15.txt")
    )
    return table.restricted_to([table.names[i] for i in (*table.seen_ids, *table.unseen_ids)])


@cache
def coco_zsi_split(name: str) -> ClassSplit:
    """Instance classes of COCO in the order of the split's lists, seen classes first.

    Args:
        name: "48_17" (65 of the 80 classes, the others are background) or "65_15" (all).

    Raises:
        ValueError: for another name.
    """
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    if name not in INSTANCE_SPLITS:
        raise ValueError(f"unknown split {name!r} of COCO instances; expected one of {', '.join(INSTANCE_SPLITS)}")
    seen, unseen = (read_name_list(splits_dir() / f"coco_zsi_{name}_{part}.txt") for part in ("seen", "unseen"))

    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    return ClassSplit.from_categories(things, unseen).restricted_to((*seen, *unseen))


def read_class_table(path: str | Path) -> list[dict[str, Any]]:
    """Categories of a table with the columns id, kind ("thing" or "stuff") and name, separated by tabs.

    Returns:
        COCO-style entries in the order of the lines; colours are spread over the hues.

    Raises:
        DataError: naming the line that has another form.
    """
    path = Path(path)
    categories: list[dict[str, Any]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3 or not fields[0].isdigit() or fields[1] not in ("thing", "stuff"):
            raise DataError(f"{path}, line {number}: expected 'id<tab>thing or stuff<tab>name', found {line!r}")
        hue = len(categories) * _GOLDEN_RATIO % 1.0
        color = [round(255 * channel) for channel in colorsys.hls_to_rgb(hue, 0.5, 0.7)]
        categories.append({"id": int(fields[0]), "isthing": fields[1] == "thing", "name": fields[2], "color": color})
    return categories
