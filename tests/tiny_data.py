# SPDX-License-Identifier: Apache-2.0
"""Writes a COCO panoptic data set of a few small images, as the tests of the whole project need it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padding.data.class_split import ClassSplit

CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 2, "name": "box", "isthing": 1, "color": [220, 20, 60]},
    {"id": 5, "name": "tower", "isthing": 1, "color": [119, 11, 32]},
    {"id": 6, "name": "gem", "isthing": 1, "color": [0, 0, 142]},
    {"id": 40, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 41, "name": "lake", "isthing": 0, "color": [0, 80, 100]},
    {"id": 43, "name": "ground", "isthing": 0, "color": [152, 251, 152]},
)
UNSEEN = ("gem", "lake")


@dataclass(frozen=True)
class TinyPanoptic:
    """Where the files lie; ``registration`` holds arguments of ``register_panoptic`` and ``load_panoptic``."""

    root: Path
    class_split: ClassSplit
    json_file: Path

    @property
    def registration(self) -> dict[str, Any]:
        return {
            "image_root": self.root / "images",
            "panoptic_root": self.root / "panoptic",
            "panoptic_json": self.root / "panoptic.json",
            "class_split": self.class_split,
        }

    @property
    def sem_seg_root(self) -> Path:
        return self.root / "sem_seg"

    def read_panoptic_json(self) -> dict[str, Any]:
        return json.loads((self.root / "panoptic.json").read_text())

    def write_panoptic_json(self, content: dict[str, Any]) -> None:
        (self.root / "panoptic.json").write_text(json.dumps(content))


def tiny_split() -> ClassSplit:
    """Six classes, three things and three stuff; "gem" and "lake" are unseen."""
    return ClassSplit.from_categories(CATEGORIES, UNSEEN)


def write_tiny_panoptic(
    root: Path, *, num_images: int = 4, size: tuple[int, int] = (64, 96), with_unseen: bool = True, seed: int = 0
) -> TinyPanoptic:
    """Write images, panoptic PNGs, semantic PNGs (contiguous ids, 255 void), panoptic and instance JSON.

    Each image shows sky over ground, a "box", a "tower" and a void strip at the bottom; the second image's tower is a
    crowd. With ``with_unseen``, odd images have a lake for ground and an extra "gem".

    Args:
        root: folder to write to; created.
        num_images: number of images.
        size: (h, w) of every image, at least (32, 32).
        with_unseen: whether the unseen classes appear.
        seed: of positions and noise.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "panoptic", "sem_seg"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": list(CATEGORIES)}
    instances: dict[str, Any] = {"images": [], "annotations": [], "categories": [c for c in CATEGORIES if c["isthing"]]}
    for index in range(num_images):
        unseen_here = with_unseen and index % 2 == 1
        regions = _regions(rng, size, unseen_here)
        ids, segments = _segments(rng, regions, crowd_tower=index == 1)
        name = f"{index + 1:012d}.png"
        image = {"id": index + 1, "file_name": name, "height": size[0], "width": size[1]}
        content["images"].append(image)
        content["annotations"].append({"image_id": index + 1, "file_name": name, "segments_info": segments})
        instances["images"].append(image)
        instances["annotations"] += _instances(ids, segments, image_id=index + 1)
        _write_pngs(root, name, ids, segments, rng)
    (root / "panoptic.json").write_text(json.dumps(content))
    (root / "instances.json").write_text(json.dumps(instances))
    return TinyPanoptic(root=root, class_split=tiny_split(), json_file=root / "instances.json")


def _regions(rng: np.random.Generator, size: tuple[int, int], unseen_here: bool) -> list[tuple[str, np.ndarray]]:
    """(name, mask) pairs, later ones in front."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    horizon = height // 2 + int(rng.integers(-4, 5))
    regions = [
        ("sky", rows < horizon),
        ("lake" if unseen_here else "ground", (rows >= horizon) & (rows < height - 3)),
    ]
    for order, name in enumerate(("box", "tower", *(("gem",) if unseen_here else ()))):
        top, left = int(rng.integers(2, height // 2)), width * order // 3 + int(rng.integers(0, width // 12))
        tall, wide = height // (4 if name == "box" else 3), width // (5 if name == "box" else 7)
        regions.append((name, (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)))
    return regions


def _segments(
    rng: np.random.Generator, regions: list[tuple[str, np.ndarray]], *, crowd_tower: bool
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    by_name = {category["name"]: category for category in CATEGORIES}
    ids = np.zeros(regions[0][1].shape, np.int64)
    segment_ids = rng.choice(np.arange(1, 2**24), len(regions), replace=False)
    for segment_id, (_, mask) in zip(segment_ids, regions, strict=True):
        ids[mask] = segment_id
    segments = []
    for segment_id, (name, _) in zip(segment_ids, regions, strict=True):
        ys, xs = np.nonzero(ids == segment_id)
        left, top = int(xs.min()), int(ys.min())
        segments.append(
            {
                "id": int(segment_id),
                "category_id": by_name[name]["id"],
                "iscrowd": int(crowd_tower and name == "tower"),
                "area": len(ys),
                "bbox": [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1],
            }
        )
    return ids, segments


def _instances(ids: np.ndarray, segments: list[dict[str, Any]], *, image_id: int) -> list[dict[str, Any]]:
    """COCO instances: a polygon for every visible box, run-length code for the others."""
    from pycocotools import mask as coco_mask

    things = {category["id"] for category in CATEGORIES if category["isthing"]}
    annotations = []
    for order, segment in enumerate(s for s in segments if s["category_id"] in things):
        mask = np.asfortranarray(ids == segment["id"]).astype(np.uint8)
        code = coco_mask.encode(mask)
        left, top, wide, tall = segment["bbox"]
        corners = [left, top, left + wide, top, left + wide, top + tall, left, top + tall]
        is_rectangle = segment["area"] == wide * tall
        annotations.append(
            {
                "id": image_id * 100 + order,
                "image_id": image_id,
                **{key: segment[key] for key in ("category_id", "iscrowd", "area", "bbox")},
                "segmentation": [corners]
                if is_rectangle and not segment["iscrowd"]
                else {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
    return annotations


def _write_pngs(
    root: Path, name: str, ids: np.ndarray, segments: list[dict[str, Any]], rng: np.random.Generator
) -> None:
    by_id = {category["id"]: (index, category) for index, category in enumerate(CATEGORIES)}
    image = np.zeros((*ids.shape, 3), np.float64)
    sem_seg = np.full(ids.shape, 255, np.uint8)
    for segment in segments:
        index, category = by_id[segment["category_id"]]
        image[ids == segment["id"]] = category["color"]
        sem_seg[ids == segment["id"]] = index
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(root / "images" / name)
    Image.fromarray(channels).save(root / "panoptic" / name)
    Image.fromarray(sem_seg).save(root / "sem_seg" / name)
