# SPDX-License-Identifier: Apache-2.0
"""Writes a folder laid out like COCO-Stuff and COCO 2014 instances with a few small images and COCO's own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

HEIGHT, WIDTH = 12, 16
# Values of the official PNG in each image, top to bottom; 20 (cow), 123 (grass) and 168 (tree) are unseen.
STUFF = {1: [0, 181], 2: [20, 123, 156], 3: [255, 155], 4: [168, 0]}
# Category ids of the objects; "crowd" flags with the sign. Unseen in both splits: airplane (5), cat (17); bus (6) and
# dog (18) only in 48/17; traffic light (10) is outside 48/17.
OBJECTS = {1: [1, 3], 2: [5, 1], 3: [6, 10], 4: [10], 5: [], 6: [1, -17], 7: [3, 10, 44]}


def write_tiny_stuff(root: Path) -> Path:
    """Write ``stuffthingmaps/{train,val}2017`` and images; returns the root."""
    for subset in ("train2017", "val2017"):
        (root / "stuffthingmaps" / subset).mkdir(parents=True, exist_ok=True)
        (root / subset).mkdir(parents=True, exist_ok=True)
        for image_id, values in STUFF.items():
            labels = np.repeat(np.array(values, np.uint8), HEIGHT // len(values))[:, None].repeat(WIDTH, axis=1)
            Image.fromarray(labels).save(root / "stuffthingmaps" / subset / f"{image_id:012d}.png")
            Image.new("RGB", (WIDTH, HEIGHT), (9 * image_id, 90, 10)).save(root / subset / f"{image_id:012d}.jpg")
    return root


def write_tiny_instances(root: Path, *, annotations_first: bool = False) -> Path:
    """Write ``annotations/instances_{train,val}2014.json`` and images; returns the root."""
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for subset in ("train", "val"):
        content: dict[str, Any] = {"info": {"year": 2014}, "licenses": [], "categories": things}
        lists: dict[str, Any] = {"images": [], "annotations": []}
        (root / f"{subset}2014").mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for image_id, categories in OBJECTS.items():
            name = f"COCO_{subset}2014_{image_id:012d}.jpg"
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"{subset}2014" / name)
            lists["images"].append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
            lists["annotations"] += [_object(image_id, i, category) for i, category in enumerate(categories)]
        order = ("annotations", "images") if annotations_first else ("images", "annotations")
        content |= {key: lists[key] for key in order}
        (root / "annotations" / f"instances_{subset}2014.json").write_text(json.dumps(content))
    return root


def _object(image_id: int, index: int, category: int) -> dict[str, Any]:
    left = 4 * index
    polygon = [left, 2, left + 3, 2, left + 3, 8, left, 8]
    code = {"size": [HEIGHT, WIDTH], "counts": [0, 6, HEIGHT * WIDTH - 6]}
    return {
        "id": 10 * image_id + index,
        "image_id": image_id,
        "category_id": abs(category),
        "iscrowd": int(category < 0),
        "area": 18.0,
        "bbox": [left, 2, 3, 6],
        "segmentation": code if category < 0 else [polygon],
    }
