# SPDX-License-Identifier: Apache-2.0
"""Verify a folder of the embedded data set ``shapes``: files, digests, annotations against PNGs, no unseen pixel."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.readers import read_label_map, read_panoptic_ids
from padding.data.shapes.classes import SPLITS, class_table, coarse_ids, shapes_split
from padding.data.shapes.write import FOLDER, GENERATOR_VERSION, IMAGE_FOLDERS, file_digest
from padding.errors import UserError

_COLOURED = ("images", "images_camouflaged", "panoptic")
_MEND = "run datasets/prepare_shapes.py again with the same parameters to mend it"


def check_shapes(root: str | Path, *, on_progress: Callable[[int], None] | None = None) -> list[str]:
    """Everything wrong with ``<root>/shapes``; empty when the data set is complete and sound.

    Args:
        root: data root that holds the folder ``shapes``.
        on_progress: called with the number of images just checked.

    Returns:
        One line per problem, each naming the file; ends early when the manifest or an annotation file is unusable.
    """
    folder = Path(root) / FOLDER
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        return [f"{manifest_path}: missing; create the data set with datasets/prepare_shapes.py"]
    try:
        manifest = json.loads(manifest_path.read_bytes())
        complete, version, counts = manifest["complete"], manifest["version"], manifest["counts"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{manifest_path}: not readable ({type(error).__name__}: {error}); {_MEND}"]
    if not complete:
        return [f"{manifest_path}: the data set is unfinished; {_MEND}"]
    if version != GENERATOR_VERSION:
        return [f"{manifest_path}: made by generator version {version}, this is {GENERATOR_VERSION}; make it again"]
    problems = _check_digests(folder, manifest)
    for split in SPLITS:
        problems += _check_split(folder, split, counts[split], on_progress)
    return problems


def _check_digests(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Missing, changed and unlisted files."""
    sums_path = folder / "sha256sums.txt"
    if not sums_path.is_file():
        return [f"{sums_path}: missing; {_MEND}"]
    sums = sums_path.read_bytes()
    if hashlib.sha256(sums).hexdigest() != manifest.get("sha256"):
        return [f"{sums_path}: its digest differs from the one in manifest.json; {_MEND}"]
    listed = {line[66:]: line[:64] for line in sums.decode().splitlines()}
    problems = []
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing; {_MEND}")
        elif file_digest(path) != digest:
            problems.append(f"{path}: damaged, its SHA-256 is not the one in sha256sums.txt; {_MEND}")
    pngs = (path for name in IMAGE_FOLDERS for path in (folder / name).rglob("*.png"))
    unlisted = sorted(path for path in pngs if path.relative_to(folder).as_posix() not in listed)
    return problems + [f"{path}: not part of the data set; delete it" for path in unlisted]


def _check_split(folder: Path, split: str, count: int, on_progress: Callable[[int], None] | None) -> list[str]:
    """Annotations against the PNGs of one split."""
    problems: list[str] = []
    tables = {}
    for kind in ("panoptic", "instances"):
        path = folder / f"annotations/{kind}_{split}.json"
        try:
            tables[kind] = json.loads(path.read_bytes())
            num_images = len(tables[kind]["images"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [f"{path}: not readable ({type(error).__name__}: {error}); {_MEND}"]
        if num_images != count:
            problems.append(f"{path}: lists {num_images} images, manifest.json says {count}; {_MEND}")
    try:
        return problems + _check_tables(folder, split, tables, on_progress)
    except (KeyError, TypeError) as error:
        where = folder / f"annotations/{{panoptic,instances}}_{split}.json"
        return [*problems, f"{where}: an entry is missing or of the wrong kind: {error}; {_MEND}"]


def _check_tables(
    folder: Path, split: str, tables: dict[str, dict[str, Any]], on_progress: Callable[[int], None] | None
) -> list[str]:
    """Both annotation files against each other, the panoptic one against the PNGs."""
    panoptic = tables["panoptic"]
    problems = []
    if [entry["id"] for entry in panoptic["categories"]] != [entry["id"] for entry in class_table()]:
        problems.append(f"{folder}/annotations/panoptic_{split}.json: its categories are not those of this generator")
    problems += _check_instances(folder / f"annotations/instances_{split}.json", panoptic, tables["instances"])
    images = {image["id"]: image for image in panoptic["images"]}
    for annotation in panoptic["annotations"]:
        problems += _check_image(folder, split, images[annotation["image_id"]], annotation)
        if on_progress is not None:
            on_progress(1)
    return problems


def _check_instances(path: Path, panoptic: dict[str, Any], instances: dict[str, Any]) -> list[str]:
    """Every visible thing of the panoptic file stands in the instances file, with the same class, area and box."""
    thing_ids = {entry["id"] for entry in class_table() if entry["isthing"]}
    expected = Counter(
        (annotation["image_id"], segment["category_id"], segment["area"], tuple(segment["bbox"]))
        for annotation in panoptic["annotations"]
        for segment in annotation["segments_info"]
        if segment["category_id"] in thing_ids
    )
    found = Counter(
        (entry["image_id"], entry["category_id"], entry["area"], tuple(entry["bbox"]))
        for entry in instances["annotations"]
    )
    if found == expected:
        return []
    wrong = sorted({key[0] for key in (found - expected) + (expected - found)})
    return [f"{path}: instances differ from the panoptic file in images {wrong[:5]}; {_MEND}"]


def _check_image(folder: Path, split: str, image: dict[str, Any], annotation: dict[str, Any]) -> Iterator[str]:
    """Problems of one image: sizes, ids, areas, agreement of the label maps, unseen pixels."""
    maps: dict[str, npt.NDArray[Any]] = {}
    for name in IMAGE_FOLDERS:
        path = folder / name / split / image["file_name"]
        try:
            maps[name] = read_panoptic_ids(path) if name in _COLOURED else read_label_map(path)
        except UserError:
            yield f"{path}: missing or not an image; {_MEND}"
            return
        if maps[name].shape != (image["height"], image["width"]):
            yield f"{path}: is {maps[name].shape}, the annotations say {(image['height'], image['width'])}; {_MEND}"
            return
    where = f"{folder}/panoptic/{split}/{image['file_name']}"
    ids = maps["panoptic"]
    values, areas = np.unique(ids, return_counts=True)
    in_png = dict(zip(values.tolist(), areas.tolist(), strict=True))
    in_json = {segment["id"]: segment for segment in annotation["segments_info"]}
    if in_png.keys() != in_json.keys():
        yield f"{where}: ids {sorted(in_png.keys() ^ in_json.keys())} are only in the PNG or only in the JSON; {_MEND}"
        return
    yield from _check_maps(where, split, ids, maps, in_json)


def _check_maps(
    where: str,
    split: str,
    ids: npt.NDArray[np.uint32],
    maps: dict[str, npt.NDArray[Any]],
    segments: dict[int, dict[str, Any]],
) -> Iterator[str]:
    classes = shapes_split()
    semantic = np.full(ids.shape, 255, dtype=np.uint8)
    for segment_id, segment in segments.items():
        mask = ids == segment_id
        class_id = classes.contiguous_id.get(segment["category_id"])
        if class_id is None:
            yield f"{where}: segment {segment_id} has the unknown category {segment['category_id']}; {_MEND}"
            return
        semantic[mask] = class_id
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        if np.count_nonzero(mask) != segment["area"] or [x, y, width, height] != segment["bbox"]:
            yield f"{where}: area or box of segment {segment_id} differs from the JSON; {_MEND}"
        if split == "train" and class_id in classes.unseen_ids:
            yield f"{where}: shows the unseen class '{classes.names[class_id]}' in a training image; {_MEND}"
    is_thing = np.isin(semantic, sorted(classes.thing_ids))
    agreements = {
        "sem_seg": np.array_equal(maps["sem_seg"], semantic),
        "sem_seg_coarse": np.array_equal(maps["sem_seg_coarse"], np.array(coarse_ids(), np.uint8)[semantic]),
        "saliency": np.array_equal(maps["saliency"] >= 128, is_thing),
    }
    for name, agrees in agreements.items():
        if not agrees:
            yield f"{where}: does not agree with the map in {name}; {_MEND}"
