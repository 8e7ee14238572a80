# SPDX-License-Identifier: Apache-2.0
"""Write the embedded data set ``shapes`` in the true COCO formats: resumable, atomic, by several processes.

Layout below the data root (``%012d`` is the image id, from 1 in each split)::

    shapes/images/{train,val}/%012d.png              RGB
    shapes/images_camouflaged/{train,val}/%012d.png  the same scenes, things mixed with the background's mean colour
    shapes/panoptic/{train,val}/%012d.png            COCO id PNG: id = R + 256 G + 65536 B
    shapes/sem_seg/{train,val}/%012d.png             contiguous class ids 0..41 (all classes); 255 is void, unused
    shapes/sem_seg_coarse/{train,val}/%012d.png      5 looks and 12 stuff classes, 0..16; 255 is void, unused
    shapes/saliency/{train,val}/%012d.png            0..255, how far a thing covers the pixel, for both image folders
    shapes/annotations/panoptic_{train,val}.json     COCO panoptic
    shapes/annotations/instances_{train,val}.json    COCO instances, compressed run lengths
    shapes/class_embeddings.npz                      names and (42, 64) float32
    shapes/split.txt                                 names of the unseen classes
    shapes/sha256sums.txt                            one line per file above, for ``sha256sum -c``
    shapes/manifest.json                             version, parameters, counts, digest of sha256sums.txt
    shapes/.records/                                 what the annotation files are put together from; continues a run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.class_embeddings import save_class_embeddings
from padding.data.files import TEMPORARY, write_bytes
from padding.data.readers import read_json
from padding.data.shapes.classes import COARSE_NAMES, SPLITS, ShapesConfig, class_table, embed_classes, shapes_split
from padding.data.shapes.render import RenderedImage, render_image
from padding.data.worker_pool import worker_pool
from padding.errors import DataError

# Raise it whenever an image or a label of the same parameters changes.
GENERATOR_VERSION = 1
FOLDER = "shapes"
IMAGE_FOLDERS = ("images", "images_camouflaged", "panoptic", "sem_seg", "sem_seg_coarse", "saliency")
_RECORDS = ".records"
_CHUNK = 50  # images per job: small enough for a smooth progress bar, large enough to hide the cost of a job
Record = dict[str, Any]


def write_shapes(
    root: str | Path,
    config: ShapesConfig,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
    start_method: str = "forkserver",
) -> dict[str, Any]:
    """Write the data set to ``<root>/shapes``, or complete what is there.

    Images whose files are undamaged and were made with the same parameters are kept, so that an interrupted run
    continues, a damaged folder is repaired and a changed number of images costs only the difference. Every file is
    written under another name first, and ``"complete": true`` enters the manifest last.

    Args:
        root: data root; ``shapes`` is made below it.
        config: parameters.
        num_workers: processes; 0 and 1 stay in this one. The bytes do not depend on it.
        overwrite: replace a data set made with other parameters.
        on_progress: called with the number of images just finished.
        start_method: of the processes, see ``padding.data.worker_pool.worker_pool``.

    Returns:
        The manifest, with ``rendered`` added: how many images were not there before.

    Raises:
        ValueError: the folder holds a data set with other parameters and ``overwrite`` is False.
    """
    folder = Path(root) / FOLDER
    _refuse_other_parameters(folder, config, overwrite)
    for split in SPLITS:
        for name in IMAGE_FOLDERS:
            (folder / name / split).mkdir(parents=True, exist_ok=True)
    for name in (_RECORDS, "annotations"):
        (folder / name).mkdir(exist_ok=True)
    _remove_leftovers(folder, config)
    manifest = _manifest(config)
    # Incomplete until the last file stands: a killed run is continued, not taken for a data set.
    write_bytes(folder / "manifest.json", _json_bytes({**manifest, "complete": False}, indent=2))

    rendered = 0
    for count, new in _run_jobs(folder, config, num_workers, start_method):
        rendered += new
        if on_progress is not None:
            on_progress(count)

    digests = _write_annotations(folder, config)
    # One digest of the digests, ordered by name: equal data sets have equal manifests on every machine.
    sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()
    write_bytes(folder / "sha256sums.txt", sums)
    manifest |= {"sha256": hashlib.sha256(sums).hexdigest(), "complete": True}
    write_bytes(folder / "manifest.json", _json_bytes(manifest, indent=2))
    return {**manifest, "rendered": rendered}


def write_missing_shapes(root: str | Path, config: ShapesConfig) -> None:
    """``write_shapes`` with a progress bar, unless a complete data set is there, of whatever number of images."""
    manifest = Path(root) / FOLDER / "manifest.json"
    if not (manifest.is_file() and read_json(manifest).get("complete")):
        write_shown(root, config)


def write_shown(root: str | Path, config: ShapesConfig) -> None:
    """``write_shapes`` in this process, with a progress bar."""
    with tqdm(total=sum(map(config.count, SPLITS)), desc="embedded data", unit="image", mininterval=2.0) as bar:
        write_shapes(root, config, on_progress=bar.update)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _manifest(config: ShapesConfig) -> dict[str, Any]:
    return {
        "generator": "padding.data.shapes",
        "version": GENERATOR_VERSION,
        "numpy": np.__version__,
        "parameters": config.image_parameters(),
        "counts": {split: config.count(split) for split in SPLITS},
    }


def _refuse_other_parameters(folder: Path, config: ShapesConfig, overwrite: bool) -> None:
    path = folder / "manifest.json"
    if overwrite or not path.is_file():
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return  # a broken manifest: the records decide what can be kept
    wanted = config.image_parameters()
    there = found.get("parameters", {})
    changed = [f"{key} {there.get(key)} -> {wanted.get(key)}" for key in wanted if there.get(key) != wanted[key]]
    if found.get("version") != GENERATOR_VERSION:
        changed.insert(0, f"generator version {found.get('version')} -> {GENERATOR_VERSION}")
    if changed:
        raise DataError(
            f"{folder} holds a data set made with other parameters ({'; '.join(changed)}). "
            "Choose another root, or pass overwrite=True (prepare_shapes.py: --overwrite) to replace it."
        )


def _remove_leftovers(folder: Path, config: ShapesConfig) -> None:
    """Delete what an interrupted run left unfinished, and images beyond the wanted number."""
    for partial in folder.rglob(TEMPORARY):
        partial.unlink(missing_ok=True)
    for split in SPLITS:
        for name in IMAGE_FOLDERS:
            for path in (folder / name / split).glob("[0-9]*.png"):
                if path.stem.isdigit() and int(path.stem) > config.count(split):
                    path.unlink(missing_ok=True)
    for path in (folder / _RECORDS).glob("*.json"):
        split, _, start = path.stem.partition("_")
        if split in SPLITS and start.isdigit() and int(start) >= config.count(split):
            path.unlink(missing_ok=True)


# ---- images: one job is one chunk of consecutive images ------------------------------------------------------------


def _jobs(config: ShapesConfig) -> Iterator[tuple[str, int, int]]:
    for split in SPLITS:
        for start in range(0, config.count(split), _CHUNK):
            yield split, start, min(start + _CHUNK, config.count(split))


def _run_jobs(folder: Path, config: ShapesConfig, num_workers: int, start_method: str) -> Iterator[tuple[int, int]]:
    """Numbers of images finished and of images rendered, per job in the order of completion."""
    if num_workers <= 1:
        for job in _jobs(config):
            yield _write_chunk(folder, config, *job)
        return
    with worker_pool(num_workers, start_method) as pool:
        futures = [pool.submit(_write_chunk, folder, config, *job) for job in _jobs(config)]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _records_path(folder: Path, split: str, start: int) -> Path:
    return folder / _RECORDS / f"{split}_{start:06d}.json"


def _write_chunk(folder: Path, config: ShapesConfig, split: str, start: int, stop: int) -> tuple[int, int]:
    """Make the images [start, stop) that are missing or damaged; returns how many there are and how many were made."""
    path = _records_path(folder, split, start)
    header = {"version": GENERATOR_VERSION, "parameters": config.image_parameters()}
    old = _read_records(path, header)
    records: dict[str, Record] = {}
    rendered = 0
    for index in range(start, stop):
        # A record stands for files whose bytes it knows: what differs is rendered again.
        record = old.get(str(index))
        if record is None or not _files_intact(folder, record):
            record = _write_image(folder, split, index, render_image(config, split, index))
            rendered += 1
        records[str(index)] = record
    if records != old:
        write_bytes(path, _json_bytes({**header, "records": records}))
    return stop - start, rendered


def _read_records(path: Path, header: dict[str, Any]) -> dict[str, Record]:
    """Records of a chunk, empty when there are none or they were made with other parameters."""
    try:
        content = json.loads(path.read_bytes())
        return content["records"] if all(content[key] == value for key, value in header.items()) else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _files_intact(folder: Path, record: Record) -> bool:
    try:
        return all(file_digest(folder / name) == digest for name, digest in record["sha256"].items())
    except FileNotFoundError:
        return False


def _write_image(folder: Path, split: str, index: int, rendered: RenderedImage) -> Record:
    """Write the PNGs of one image; returns what the annotation files say about it."""
    image_id = index + 1
    file_name = f"{image_id:012d}.png"
    ids = rendered.panoptic_ids
    contents = {
        "images": _png(rendered.image, noisy=True),
        "images_camouflaged": _png(rendered.camouflaged, noisy=True),
        # The three low bytes of a little-endian integer are R, G and B.
        "panoptic": _png(ids.astype("<i4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]),
        "sem_seg": _png(rendered.semantic),
        "sem_seg_coarse": _png(rendered.coarse),
        "saliency": _png(rendered.saliency),
    }
    digests = {}
    for name, content in contents.items():
        relative = f"{name}/{split}/{file_name}"
        write_bytes(folder / relative, content, flush=False)
        digests[relative] = hashlib.sha256(content).hexdigest()
    height, width = ids.shape
    return {
        "image": {"id": image_id, "file_name": file_name, "width": width, "height": height},
        "segments_info": [
            {"id": s.id, "category_id": s.category_id, "area": s.area, "bbox": list(s.bbox), "iscrowd": 0}
            for s in rendered.segments
        ],
        "masks": _run_lengths(rendered),
        "sha256": digests,
    }


def _run_lengths(rendered: RenderedImage) -> list[str]:
    """Compressed COCO run lengths of the things, in the order of the segments."""
    from pycocotools import mask as mask_util

    thing_ids = [segment.id for segment in rendered.segments if segment.isthing]
    masks = np.asfortranarray(rendered.panoptic_ids[..., None] == thing_ids, dtype=np.uint8)
    return [entry["counts"].decode("ascii") for entry in mask_util.encode(masks)]


def _png(array: npt.NDArray[np.uint8], *, noisy: bool = False) -> bytes:
    """PNG of RGB (h, w, 3) or of indices (h, w)."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if noisy:
        # Noise holds no repetitions to search for: Huffman codes alone are faster, and nearly as small.
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    if array.ndim == 3:
        array = np.asarray(cv2.cvtColor(array, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    ok, content = cv2.imencode(".png", array, options)
    if not ok:
        raise RuntimeError(f"OpenCV could not encode an array of shape {array.shape} as PNG")
    return content.tobytes()


def _json_bytes(value: Any, indent: int | None = None) -> bytes:
    separators = None if indent else (",", ":")
    return (json.dumps(value, indent=indent, separators=separators) + "\n").encode()


# ---- annotation files --------------------------------------------------------------------------------------------


def _write_annotations(folder: Path, config: ShapesConfig) -> dict[str, str]:
    """Write everything that is not an image; returns the digest of each file of the data set by relative name."""
    digests: dict[str, str] = {}
    header = {"version": GENERATOR_VERSION, "parameters": config.image_parameters()}
    for split in SPLITS:
        records: list[Record] = []
        for job_split, start, _ in _jobs(config):
            if job_split == split:
                records += _read_records(_records_path(folder, split, start), header).values()
        for record in records:
            digests |= record["sha256"]
        for kind, content in (("panoptic", _panoptic_json(records)), ("instances", _instances_json(records))):
            write_bytes(folder / f"annotations/{kind}_{split}.json", _json_bytes({**_info(config), **content}))
    unseen = sorted(shapes_split().unseen_names, key=shapes_split().names.index)
    write_bytes(folder / "split.txt", "\n".join(["# unseen classes of this data set", *unseen, ""]).encode())
    save_class_embeddings(
        folder / "class_embeddings.npz",
        shapes_split().names,
        embed_classes(config),
        f"attributes of the shapes classes, seed {config.seed}, noise {config.embedding_noise}",
    )
    others = ["split.txt", "class_embeddings.npz"]
    others += [f"annotations/{kind}_{split}.json" for kind in ("panoptic", "instances") for split in SPLITS]
    return digests | {name: file_digest(folder / name) for name in others}


def _info(config: ShapesConfig) -> dict[str, Any]:
    info = {
        "description": "shapes: generated zero-shot panoptic data",
        "version": str(GENERATOR_VERSION),
        "seed": config.seed,
        "coarse_names": list(COARSE_NAMES),
    }
    return {"info": info, "licenses": []}


def _panoptic_json(records: list[Record]) -> dict[str, Any]:
    annotations = [
        {
            "image_id": record["image"]["id"],
            "file_name": record["image"]["file_name"],
            "segments_info": record["segments_info"],
        }
        for record in records
    ]
    return {"images": [r["image"] for r in records], "annotations": annotations, "categories": class_table()}


def _instances_json(records: list[Record]) -> dict[str, Any]:
    things = [entry for entry in class_table() if entry["isthing"]]
    thing_ids = {entry["id"] for entry in things}
    annotations: list[dict[str, Any]] = []
    for record in records:
        image = record["image"]
        visible = [segment for segment in record["segments_info"] if segment["category_id"] in thing_ids]
        for segment, counts in zip(visible, record["masks"], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": segment["category_id"],
                    "segmentation": {"size": [image["height"], image["width"]], "counts": counts},
                    "area": segment["area"],
                    "bbox": segment["bbox"],
                    "iscrowd": 0,
                }
            )
    return {"images": [record["image"] for record in records], "annotations": annotations, "categories": things}
