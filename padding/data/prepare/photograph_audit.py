# SPDX-License-Identifier: Apache-2.0
"""Reads a small panoptic data set whole: images, PNGs of segment ids, and what the JSON says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from padding.data.coco_json import ImageEntry, PanopticEntry, PanopticFile, content_findings, fill_sizes
from padding.data.readers import displayed_size, opened_image, read_panoptic_ids
from padding.data.typed_json import read_typed_json
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
    content = read_typed_json(files["panoptic_json"], PanopticFile)
    images = {image.id: image for image in content.images}
    audit, classes = PhotographAudit(num_images=len(content.annotations)), set()
    audit.problems += content_findings(content).problems
    for annotation in content.annotations:
        audit.num_segments += len(annotation.segments_info)
        classes |= {segment.category_id for segment in annotation.segments_info}
        try:
            image = images[annotation.image_id]
            fill_sizes([image], files["panoptic_json"], files["image_root"])
            problems = _problems_of(annotation, image, files)
        except (UserError, OSError) as error:
            problems = [str(error)]
        except KeyError:
            continue  # an image that is not listed is among the findings
        audit.problems += [f"{annotation.file_name}: {problem}" for problem in problems]
    audit.num_classes = len(classes)
    return audit


def _problems_of(annotation: PanopticEntry, image: ImageEntry, files: Mapping[str, Path]) -> list[str]:
    with opened_image(files["image_root"] / image.file_name) as picture:
        picture.load()  # decodes: a cut file is found here
    size = displayed_size(files["image_root"] / image.file_name)
    ids = read_panoptic_ids(files["panoptic_root"] / annotation.file_name)
    if not size == ids.shape == image.size:
        return [f"image {size}, PNG {ids.shape}, JSON {image.size} (height, width); obtain the three from one version"]
    values, counts = np.unique(ids, return_counts=True)
    pixels = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
    areas = {segment.id: segment.area for segment in annotation.segments_info}
    if pixels.keys() != areas.keys():
        return [f"PNG and JSON differ in the segments {sorted(pixels.keys() ^ areas.keys())[:5]}"]
    wrong = sorted(i for i, area in areas.items() if area is not None and pixels[i] != area)
    return [f"the JSON gives segments {wrong[:5]} another area than the PNG"] if wrong else []
