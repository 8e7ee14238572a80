# SPDX-License-Identifier: Apache-2.0
"""Writes a folder laid out like COCO 2017 panoptic with a few small images; categories are COCO's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

PERSON, CAR, ROAD, COW, SKY, WALL = 1, 3, 149, 21, 187, 199
HEIGHT, WIDTH = 24, 32
# Categories of each image, top to bottom; "cow" in the third is a crowd of one pixel row, the fourth has no segment.
IMAGES: dict[int, list[int]] = {
    1: [PERSON, WALL],
    2: [CAR, ROAD, WALL],
    3: [PERSON, COW, CAR],
    4: [],
    5: [PERSON, CAR, WALL],
    6: [SKY, COW],
}
KEPT = (1, 4, 5)


def segment_id(image_id: int, index: int) -> int:
    """Ids above 65536 use all three channels of the PNG."""
    return 70_000 * image_id + 300 * (index + 1)


def write_tiny_coco(root: Path, *, subsets: tuple[str, ...] = ("train", "val")) -> Path:
    """Write ``annotations/panoptic_*2017.json``, panoptic PNGs and images; returns the root."""
    for subset in subsets:
        content: dict[str, Any] = {"info": {"year": 2017}, "licenses": [], "images": [], "annotations": []}
        for folder in (f"{subset}2017", f"panoptic_{subset}2017", "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for image_id, categories in IMAGES.items():
            image, annotation, ids = _image(image_id, categories)
            content["images"].append(image)
            content["annotations"].append(annotation)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(root / f"panoptic_{subset}2017" / annotation["file_name"])
            Image.new("RGB", (WIDTH, HEIGHT), (40 * image_id, 90, 10)).save(root / f"{subset}2017" / image["file_name"])
        content["categories"] = [dict(category) for category in COCO_CATEGORIES]
        (root / "annotations" / f"panoptic_{subset}2017.json").write_text(json.dumps(content))
    return root


def edit_json(path: Path, change: Any) -> None:
    """Load, let ``change`` modify the content, write back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _image(image_id: int, categories: list[int]) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    segments = []
    for index, category in enumerate(categories):
        crowd = category == COW and len(categories) == 3
        rows = slice(6 * index, 6 * index + (1 if crowd else 6))
        ids[rows] = segment_id(image_id, index)
        area = int((ids == segment_id(image_id, index)).sum())
        segments.append(
            {"id": segment_id(image_id, index), "category_id": category, "iscrowd": int(crowd), "area": area}
        )
    name = f"{image_id:012d}"
    image = {"id": image_id, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
    return image, {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}, ids
