# SPDX-License-Identifier: Apache-2.0
"""Loader of COCO instance JSON files into data-set entries, in the label space of the data set.

Detectron2's own loader numbers the classes by sorted id; zero-shot splits have an order of their own, seen classes
first (PADing, Tab. 5), and a narrow training space. Categories are found by id and checked by name.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from padding.data.class_split import ClassSplit
from padding.data.loaders.panoptic_json import check_files, names_outside
from padding.data.readers import read_json
from padding.data.sample import DatasetDict
from padding.errors import DataError

logger = logging.getLogger(__name__)

_MIN_POLYGON_NUMBERS = 6
_KEPT_FIELDS = ("id", "bbox", "area", "segmentation")


def load_instances(
    *, json_file: str | Path, image_root: str | Path, class_split: ClassSplit, cure: str = ""
) -> list[DatasetDict]:
    """List the images of a COCO instance file with their objects.

    An image without objects stays in the list: evaluation needs it, training drops it when
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is set.

    Args:
        json_file: COCO instance annotations; masks are polygons or run-length code.
        image_root: folder of the images.
        class_split: label space of the result; may be narrower than the file's as long as no object needs more.
        cure: sentence for error messages: how the files are obtained.

    Returns:
        Entries in the order of the file, ``annotations[i]["category_id"]`` contiguous in ``class_split``.

    Raises:
        MissingFileError: the JSON, the folder or an image is missing.
        DataError: the file contradicts itself or ``class_split``.
    """
    content = read_json(json_file, required=("images", "annotations", "categories"), cure=cure)
    outside = names_outside(content["categories"], class_split, class_split.contiguous_id, json_file)
    objects = _objects_by_image(content["annotations"], class_split, outside, json_file)
    entries: list[DatasetDict] = [
        {
            "file_name": os.path.join(image_root, image["file_name"]),  # noqa: PTH118  (100k joins: 10x faster)
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "annotations": objects.pop(image["id"], []),
        }
        for image in content["images"]
    ]
    if objects:
        raise DataError(f"{json_file}: objects of images that are not listed: {sorted(objects)[:5]}; obtain it again")
    check_files(image_root, [entry["file_name"] for entry in entries], cure)
    logger.info("%s: %d images, %d objects", json_file, len(entries), len(content["annotations"]))
    return entries


def _objects_by_image(
    annotations: Iterable[Mapping[str, Any]], class_split: ClassSplit, outside: Mapping[int, str], json_file: str | Path
) -> dict[Any, list[dict[str, Any]]]:
    """Objects of each image with contiguous classes."""
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    num_dropped = 0
    for annotation in annotations:
        category = class_split.contiguous_id.get(annotation["category_id"])
        if category is None:
            raise _not_allowed(annotation, class_split, outside, json_file)
        segmentation = _usable(annotation.get("segmentation"))
        if not segmentation:
            num_dropped += 1
            continue
        kept = {key: annotation[key] for key in _KEPT_FIELDS if key in annotation}
        kept |= {"segmentation": segmentation, "category_id": category, "iscrowd": int(annotation.get("iscrowd", 0))}
        objects[annotation["image_id"]].append(kept)
    if num_dropped:
        logger.warning("%s: %d objects without a polygon of three points or more are left out", json_file, num_dropped)
    return objects


def _usable(segmentation: Any) -> Any:
    """Run-length code as it is; of polygons those with at least three points (COCO 2014 has a few others)."""
    if not isinstance(segmentation, list):
        return segmentation
    return [p for p in segmentation if len(p) >= _MIN_POLYGON_NUMBERS and len(p) % 2 == 0]


def _not_allowed(
    annotation: Mapping[str, Any], class_split: ClassSplit, outside: Mapping[int, str], json_file: str | Path
) -> ValueError:
    number = annotation["category_id"]
    if number not in outside:
        return ValueError(f"{json_file}: object {annotation.get('id')} has the unknown category id {number}")
    return ValueError(
        f"{json_file}: image {annotation['image_id']} holds '{outside[number]}' (category {number}), which is not one "
        f"of the {class_split.num_classes} classes this set may show. Prepare a JSON without such objects"
    )
