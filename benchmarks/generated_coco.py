# SPDX-License-Identifier: Apache-2.0
"""Annotations and files of COCO's size and shape, generated: what the benchmarks of large data run on.

Images and label images are hard links to a few files, so that 118,287 of them take no space.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.prepare.coco_panoptic import FULL_TRAIN_IMAGES, FULL_TRAIN_KEPT

SIZE = (480, 640)
IMAGES = FULL_TRAIN_IMAGES
OBJECTS = 860_000
SEGMENTS = 40
"""Segments of an image with which the panoptic JSON of train2017's images reaches 500 MB; COCO itself has 11."""
_LINKS = 30_000  # a file system allows some ten thousand links to one file
_CELL = 32  # side of a label's squares, in pixels


def entries_of(folder: Path, count: int, *, size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """Data-set entries of the files that ``write_files`` writes."""
    return [
        {
            "file_name": str(folder / "images" / f"{index:012d}.jpg"),
            "sem_seg_file_name": str(folder / "labels" / f"{index:012d}.png"),
            "image_id": index,
            "height": size[0],
            "width": size[1],
        }
        for index in range(count)
    ]


def write_files(folder: Path, count: int, *, num_classes: int, size: tuple[int, int] = SIZE) -> None:
    """Write images of noise into ``images`` and semantic labels into ``labels``, named by their number."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    cells = rng.integers(0, num_classes, (size[0] // _CELL, size[1] // _CELL), dtype=np.uint8)
    contents = {"images": noise, "labels": cells.repeat(_CELL, 0).repeat(_CELL, 1)}
    for name, pixels in contents.items():
        ending = ".jpg" if name == "images" else ".png"
        Image.fromarray(pixels).save(folder / f"{name}{ending}")
        link_files(folder / f"{name}{ending}", folder / name, count)


def link_files(source: Path, folder: Path, count: int) -> None:
    """Fill a new folder with links to a file, named by their number."""
    folder.mkdir()
    content = source.read_bytes()
    for index in range(count):
        if index % _LINKS == 0:
            original = source.with_name(f"{source.stem}_{index}{source.suffix}")
            original.write_bytes(content)
        os.link(original, folder / f"{index:012d}{source.suffix}")


def write_panoptic_json(path: Path, count: int, split: ClassSplit, *, segments: int = SEGMENTS) -> int:
    """Write a panoptic annotation file in COCO's words; returns the number of segments.

    Args:
        path: of the JSON.
        count: images, numbered from 0.
        split: categories of the file.
        segments: mean number in an image. As many of COCO's images as the 119/14 protocol keeps hold seen classes
            alone, all others an unseen one.
    """
    rng = np.random.default_rng(1)
    known, seen, unseen = (
        np.asarray([split.dataset_ids[i] for i in ids])
        for ids in (range(split.num_classes), split.seen_ids, split.unseen_ids)
    )
    numbers = rng.integers(1, 2 * segments, count)
    with path.open("w", encoding="utf-8") as stream:
        _write_head(stream, count, split)
        stream.write('"annotations": [')
        for index, number in enumerate(numbers.tolist()):
            kept = (index + 1) * FULL_TRAIN_KEPT // IMAGES > index * FULL_TRAIN_KEPT // IMAGES
            records = _segments(rng, seen if kept else known, number, None if kept else int(rng.choice(unseen)))
            stream.write(
                f'{", " if index else ""}{{"segments_info": [{", ".join(records)}], '
                f'"file_name": "{index:012d}.png", "image_id": {index}}}'
            )
        stream.write("]}")
    return int(numbers.sum())


def write_instances_json(path: Path, count: int, split: ClassSplit, *, objects: int = OBJECTS) -> None:
    """Write an instance annotation file: ``objects`` polygons of 8 to 50 points, spread evenly over ``count`` images.

    Args:
        path: of the JSON.
        count: images, numbered from 0.
        split: categories of the file; objects are of its things.
        objects: in all images together.
    """
    rng = np.random.default_rng(2)
    things = [split.dataset_ids[i] for i in sorted(split.thing_ids)]
    # A thousand outlines, again and again: their text is what costs.
    outlines = [_outline(rng) for _ in range(min(objects, 1000))]
    image_ids, classes = np.arange(objects) * count // objects, rng.choice(things, objects)
    with path.open("w", encoding="utf-8") as stream:
        _write_head(stream, count, split)
        stream.write('"annotations": [')
        for index, (image_id, class_id) in enumerate(zip(image_ids.tolist(), classes.tolist(), strict=True)):
            outline, box, area = outlines[index % len(outlines)]
            stream.write(
                f'{", " if index else ""}{{"segmentation": [{outline}], "area": {area}, "iscrowd": 0, "image_id": '
                f'{image_id}, "bbox": {box}, "category_id": {class_id}, "id": {index + 1}}}'
            )
        stream.write("]}")


def _write_head(stream: TextIO, count: int, split: ClassSplit) -> None:
    info = {"description": "generated", "url": "http://example.invalid", "version": "1.0", "year": 2017}
    stream.write(f'{{"info": {json.dumps(info)}, "licenses": [], "images": [')
    stream.writelines(_images(count))
    categories = [
        {"supercategory": "any", "isthing": int(i in split.thing_ids), "id": split.dataset_ids[i], "name": name}
        for i, name in enumerate(split.names)
    ]
    stream.write(f'], "categories": {json.dumps(categories)}, ')


def _images(count: int) -> Iterator[str]:
    for index in range(count):
        name = f"{index:012d}.jpg"
        yield (
            f'{", " if index else ""}{{"license": 3, "file_name": "{name}", "coco_url": '
            f'"http://example.invalid/train2017/{name}", "height": {SIZE[0]}, "width": {SIZE[1]}, "date_captured": '
            f'"2013-11-14 17:02:52", "flickr_url": "http://example.invalid/{index * 7919:010d}_z.jpg", "id": {index}}}'
        )


def _segments(rng: np.random.Generator, classes: npt.NDArray[np.int64], number: int, first: int | None) -> list[str]:
    ids = (np.arange(number) * 104_729 + int(rng.integers(1, 104_729))).tolist()
    x, y, width, height = (rng.integers(0, side, number).tolist() for side in (320, 240, 320, 240))
    drawn = rng.choice(classes, number).tolist()
    drawn[0] = drawn[0] if first is None else first
    crowd = (rng.random(number) < 0.01).astype(int).tolist()
    columns = zip(ids, drawn, crowd, x, y, width, height, strict=True)
    return [
        f'{{"id": {i}, "category_id": {c}, "iscrowd": {k}, "bbox": [{a}, {b}, {w}, {h}], "area": {w * h + 1}}}'
        for i, c, k, a, b, w, h in columns
    ]


def _outline(rng: np.random.Generator) -> tuple[str, list[float], float]:
    """Text of a star-shaped polygon, its box and a number in the place of its area."""
    number = int(rng.integers(8, 50))
    angle, radius = np.sort(rng.random(number)) * 2 * np.pi, rng.uniform(5, 100, number)
    centre = rng.uniform((100, 100), (540, 380))
    points = (centre + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]).round(2)
    low, high = points.min(0), points.max(0)
    box = [round(float(value), 2) for value in (*low, *(high - low))]
    return json.dumps(points.ravel().tolist()), box, round(box[2] * box[3] / 2, 4)
