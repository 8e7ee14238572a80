# SPDX-License-Identifier: Apache-2.0
"""Reads a small panoptic data set whole: images, PNGs of segment ids, and what the JSON says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padding.data.readers import read_json, read_panoptic_ids
from padding.errors import UserError


@dataclass
class PhotographAudit:
    """Counts of one part of a data set, and a line for each problem."""

    num_images: int = 0  # annotated images
    num_segments: int = 0  # segments in the JSON
    num_classes: int = 0  # categories that occur
    problems: list[str] = field(default_factory=list)


def audit_photographs(files: Mapping[str, Path]) -> PhotographAudit:
    """Compare every image and PNG with its entry: size, segment ids, area, category.

    Args:
        files: ``image_root``, ``panoptic_root`` and ``panoptic_json``.

    Raises:
        MissingFileError, DataError: there is no JSON, or it is none.
    """
    content = read_json(files["panoptic_json"], required=("images", "annotations", "categories"))
    images = {image["id"]: image for image in content["images"]}
    known = {category["id"] for category in content["categories"]}
    audit, found = PhotographAudit(num_images=len(content["annotations"])), set()
    for annotation in content["annotations"]:
        segments = annotation["segments_info"]
        audit.num_segments += len(segments)
        categories = {segment["category_id"] for segment in segments}
        found |= categories
        try:
            problems = _problems_of(annotation, images[annotation["image_id"]], files)
        except (UserError, OSError) as error:
            problems = [str(error)]
        if categories - known:
            problems.append(f"unknown categories {sorted(categories - known)}")
        audit.problems += [f"{annotation['file_name']}: {problem}" for problem in problems]
    audit.num_classes = len(found)
    return audit


def _problems_of(annotation: Mapping[str, Any], image: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    with Image.open(files["image_root"] / image["file_name"]) as picture:
        picture.load()  # decodes: a cut file is found here
        size = (picture.height, picture.width)
    ids = read_panoptic_ids(files["panoptic_root"] / annotation["file_name"])
    listed = (image["height"], image["width"])
    if not size == ids.shape == listed:
        return [f"image {size}, PNG {ids.shape}, JSON {listed} (height, width); obtain the three from one version"]
    values, counts = np.unique(ids, return_counts=True)
    pixels = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
    areas = {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
    if pixels.keys() != areas.keys():
        return [f"PNG and JSON differ in the segments {sorted(pixels.keys() ^ areas.keys())[:5]}"]
    wrong = sorted(i for i, area in areas.items() if pixels[i] != area)
    return [f"the JSON gives segments {wrong[:5]} another area than the PNG"] if wrong else []
