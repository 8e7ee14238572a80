# SPDX-License-Identifier: Apache-2.0
"""Instance mapper at large-scale jitter: objects as polygons, drawn after the crop, against masks that are resized.

The same objects are given once as polygons and once as run-length code, which is decoded at the size of the file and
augmented like any label map. ``ratio`` is the CPU time of polygons over masks, ``differing`` the share of pixels in
which the targets differ, of those that either has: the borders, which a resized mask has in steps.

    python -m benchmarks.instance_mapper [--objects 8] [--points 30] [--side 1024]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import add_numbers, time_in_turn
from padding.data.augmentation import large_scale_jitter
from padding.data.mappers import InstanceMapper
from padding.data.masks import run_length_code
from padding.errors import run_command

SIZE = (480, 640)


def draw_objects(count: int, points: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Annotations of star-shaped polygons of all sizes, with two decimals as COCO writes them."""
    height, width = SIZE
    objects = []
    for number in range(count):
        radius = rng.uniform(0.02, 0.3) * width * rng.uniform(0.7, 1.0, points)
        angle = np.sort(rng.uniform(0, 2 * np.pi, points))
        x = np.clip(rng.uniform(0, width) + radius * np.cos(angle), 0, width)
        y = np.clip(rng.uniform(0, height) + radius * np.sin(angle), 0, height)
        polygon = np.round(np.stack([x, y], axis=1).ravel(), 2).tolist()
        objects.append({"id": number + 1, "category_id": number, "iscrowd": 0, "segmentation": [polygon]})
    return objects


def write_entries(folder: Path, images: int, count: int, points: int) -> dict[str, list[dict[str, Any]]]:
    """Images and their entries, with "polygons" and with "masks"."""
    rng = np.random.default_rng(0)
    entries: dict[str, list[dict[str, Any]]] = {"polygons": [], "masks": []}
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (SIZE[0] // 16, SIZE[1] // 16, 3), np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize(SIZE[::-1], Image.Resampling.BILINEAR).save(path)
        objects = draw_objects(count, points, rng)
        codes = [{**entry, "segmentation": run_length_code(entry["segmentation"], SIZE)} for entry in objects]
        head = {"file_name": str(path), "image_id": number, "height": SIZE[0], "width": SIZE[1]}
        entries["polygons"].append({**head, "annotations": objects})
        entries["masks"].append({**head, "annotations": codes})
    return entries


def map_all(mapper: InstanceMapper, entries: Sequence[dict[str, Any]]) -> list[Any]:
    """Samples of all entries, always with the same draws."""
    np.random.seed(0)  # noqa: NPY002  (Detectron2's augmentations draw from the global state)
    return [mapper(entry) for entry in entries]


def differing(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Share of the pixels of targets in which two lists of samples differ; objects that only one shows count whole."""
    different = either = 0
    for one, other in zip(found, expected, strict=True):
        masks = [
            {int(c): m for c, m in zip(s["instances"].gt_classes, s["instances"].gt_masks, strict=True)}
            for s in (one, other)
        ]
        for name in masks[0].keys() | masks[1].keys():
            a, b = (m.get(name, next(iter(m.values())).new_zeros(())) for m in masks)
            different += int((a ^ b).sum())
            either += int((a | b).sum())
    return different / max(either, 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; the last line printed is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_numbers(parser, images=8, objects=8, points=30, side=1024, repeats=3)
    args = parser.parse_args(arguments)
    mapper = InstanceMapper(is_train=True, plan=large_scale_jitter(image_size=args.side, min_scale=0.1, max_scale=2.0))
    with tempfile.TemporaryDirectory() as folder:
        entries = write_entries(Path(folder), args.images, args.objects, args.points)
        forms = {name: (lambda given=given: map_all(mapper, given)) for name, given in entries.items()}
        seconds, samples = time_in_turn(forms, args.repeats)
    result = {
        "benchmark": "instance_mapper",
        "ratio": round(seconds["polygons"] / seconds["masks"], 3),
        "differing": round(differing(samples["polygons"], samples["masks"]), 5),
        "milliseconds_an_image": {name: round(1000 * value / args.images, 2) for name, value in seconds.items()},
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    sys.exit(run_command(main))
