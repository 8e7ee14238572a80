# SPDX-License-Identifier: Apache-2.0
"""How often each class occurs in the labels of a data set, and the class weights that follow.

Weights 1 / ln(1.02 + p) are those of ENet (Paszke et al., 2016), which SalSeg uses: between 1.42 for a class that is
everywhere and 50.5 for one that is absent. Counting reads every label file once; a JSON file keeps the counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tqdm import tqdm

from padding.data.class_split import class_split_of
from padding.data.files import write_json
from padding.data.readers import read_label_map
from padding.data.saliency.stream import load_segmentation_entries
from padding.data.sample import IGNORE_LABEL
from padding.data.targets import check_label_range, translate_labels
from padding.errors import ConfigError, DataError, MissingFileError

logger = logging.getLogger(__name__)
Entries = Sequence[Mapping[str, Any]]
Over = Literal["labeled", "all"]
OVER = ("labeled", "all")
_OFFSET = 1.02  # above 1: an absent class would have an infinite weight


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of a data set."""

    names: tuple[str, ...]  # of the K classes
    pixels: tuple[int, ...]  # of each class
    void: int  # pixels without a class
    images: int  # images counted

    def shares(self, over: Over = "labeled") -> npt.NDArray[np.float64]:
        """Share of each class (K,) among the labeled pixels, or among all pixels, void included.

        Raises:
            ValueError: ``over`` is neither "labeled" nor "all", or there is no such pixel.
        """
        if over not in OVER:
            raise ConfigError(f"class shares over '{over}'; choose one of {', '.join(OVER)}")
        total = sum(self.pixels) + (self.void if over == "all" else 0)
        if total == 0:
            raise DataError(f"none of {self.images} images has a labeled pixel; classes have no shares")
        return np.asarray(self.pixels, np.float64) / total


def inverse_log_weights(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights 1 / ln(1.02 + p) of shares p in [0, 1].

    >>> inverse_log_weights(np.array([0.0, 1.0])).round(2).tolist()
    [50.5, 1.42]
    """
    return 1.0 / np.log(_OFFSET + shares)


def class_weights(source: str | CfgNode, *, cache: str | Path | None, over: Over = "labeled") -> torch.Tensor:
    """Class weights of a registered semantic set, or of the labeled images of a configuration.

    Args:
        source: name of the set; or a configuration: the images of DATASETS.TRAIN that DATASETS.SPLIT calls labeled, for
            the labels of the others are not known in training.
        cache: JSON that keeps the counts, see ``class_counts``; None: count every time.
        over: shares of "labeled" pixels, or of "all".

    Returns:
        (K,) float32.

    Raises:
        ValueError, FileNotFoundError: see ``class_counts``.
    """
    counts = class_counts(source, cache=cache)
    return torch.from_numpy(inverse_log_weights(counts.shares(over))).to(torch.float32)


def training_class_weights(cfg: CfgNode, *, cache: str | Path | None) -> torch.Tensor:
    """Class weights 1 / ln(1.02 + p) of a training, such that their mean over what is counted is 1. Collective.

    Counted are segments or objects, where the entries list them, else the pixels of the labeled images.

    Args:
        cfg: reads DATASETS.
        cache: see ``class_counts``; of use for pixels alone.

    Returns:
        (K,) float32.

    Raises:
        ValueError, FileNotFoundError: see ``class_counts``; or nothing is labeled.
    """
    entries = load_segmentation_entries(cfg)
    counts = count_objects(entries, class_split_of(cfg.DATASETS.TRAIN[0]).names)
    shares = (counts or class_counts(cfg, cache=cache)).shares()
    weights = inverse_log_weights(shares)
    return torch.from_numpy(weights / (shares * weights).sum()).to(torch.float32)


def count_objects(entries: Entries, names: Sequence[str]) -> ClassCounts | None:
    """Count segments or objects in place of pixels, crowds left out; None where no entry lists any.

    Args:
        entries: of a panoptic or instance set, or another.
        names: of the K classes.
    """
    listed = [entry.get("segments_info", entry.get("annotations")) for entry in entries]
    if all(one is None for one in listed):
        return None
    found = [item["category_id"] for one in listed for item in one or () if not item.get("iscrowd", 0)]
    counts = np.bincount(np.asarray(found, np.int64), minlength=len(names))
    return ClassCounts(tuple(names), tuple(counts.tolist()), 0, len(entries))


def class_counts(source: str | CfgNode, *, cache: str | Path | None) -> ClassCounts:
    """Pixels of each class, from the cache where it belongs to these label files, else counted.

    A cache is stale, and is replaced, if the set, its classes or any label file has changed (by name, size or time of
    change). It is written complete or not at all. With several processes one counts for all of them: call it in each.
    By convention the cache is ``class_frequency.json`` in OUTPUT_DIR; None: count every time. For the source see
    ``class_weights``.

    Raises:
        ValueError: unknown set, or labels that are no class.
        MissingFileError: a label file is missing.
    """
    # Counted on one process, which also writes the cache; the others wait for its numbers.
    counts = _counts_of_main(source, cache) if comm.is_main_process() else None
    result = comm.all_gather(counts)[0]
    assert result is not None
    return result


def _counts_of_main(source: str | CfgNode, cache: str | Path | None) -> ClassCounts:
    if isinstance(source, str):
        names: tuple[str, ...] = (source,)
        split, label_map = class_split_of(source), _label_map(source)
        entries: Entries = DatasetCatalog.get(source)
    else:
        names = tuple(source.DATASETS.TRAIN)
        split, label_map = class_split_of(names[0]), _label_map(names[0])
        entries = load_segmentation_entries(source)
    key = {"data": list(names), "classes": list(split.names), "labels": fingerprint(entries, label_map)}
    cached = None if cache is None else _read_cache(Path(cache), key)
    if cached is not None:
        return cached
    counts = count_classes(entries, split.names, label_map=label_map)
    if cache is not None:
        _write_cache(Path(cache), key, counts)
    return counts


def _label_map(name: str) -> Mapping[int, int] | None:
    return getattr(MetadataCatalog.get(name), "sem_seg_label_map", None)


def count_classes(entries: Entries, names: Sequence[str], *, label_map: Mapping[int, int] | None = None) -> ClassCounts:
    """Count the pixels of each class in the label files of some images.

    Args:
        entries: with ``sem_seg_file_name``.
        names: of the K classes.
        label_map: value in the file -> class or 255; None: the values are classes and 255.

    Raises:
        ValueError: an entry has no label file, or a file holds what is no class.
        MissingFileError: a label file is missing.
    """
    pixels, void = np.zeros(len(names), np.int64), 0
    for entry in tqdm(entries, desc="class frequencies", unit="img", disable=None):
        path = _label_file(entry)
        labels = read_label_map(path)
        if label_map is not None:
            labels = translate_labels(labels, label_map, path=path)
        check_label_range(labels, num_classes=len(names), ignore_label=IGNORE_LABEL, path=path)
        histogram = np.bincount(labels.ravel(), minlength=len(names))
        pixels += histogram[: len(names)]
        # All that is no class is void: ``check_label_range`` has refused everything else.
        void += labels.size - int(histogram[: len(names)].sum())
    return ClassCounts(tuple(names), tuple(pixels.tolist()), void, len(entries))


def fingerprint(entries: Entries, label_map: Mapping[int, int] | None) -> str:
    """First 32 digits of the SHA-256 of the label files' names, sizes and times of change, and of the label map."""
    digest = hashlib.sha256(json.dumps(sorted((label_map or {}).items())).encode())
    for entry in entries:
        # Names, sizes and times of change: a cache is checked in seconds, without opening the files.
        path = Path(_label_file(entry))
        try:
            status = path.stat()
        except FileNotFoundError:
            raise MissingFileError(f"{path}: no such label file, though the data set lists it") from None
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _label_file(entry: Mapping[str, Any]) -> str:
    if "sem_seg_file_name" not in entry:
        raise DataError(f"{entry['file_name']}: class frequencies need a 'sem_seg_file_name'; name a semantic set")
    return entry["sem_seg_file_name"]


def _read_cache(path: Path, key: Mapping[str, Any]) -> ClassCounts | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = {name: content[name] for name in key}
        pixels = tuple(int(content["pixels"][name]) for name in content["classes"])
        counts = ClassCounts(tuple(content["classes"]), pixels, int(content["void"]), int(content["images"]))
    except (ValueError, KeyError, TypeError, OSError) as error:
        logger.warning("%s: cannot be read (%s: %s); counting again", path, type(error).__name__, error)
        return None
    if stored != key:
        changed = ", ".join(name for name in key if stored[name] != key[name])
        logger.warning("%s: belongs to other %s; counting again", path, changed)
        return None
    logger.info("Class frequencies of %s (%d images)", path, counts.images)
    return counts


def _write_cache(path: Path, key: Mapping[str, Any], counts: ClassCounts) -> None:
    content = {
        **key,
        "images": counts.images,
        "void": counts.void,
        "pixels": dict(zip(counts.names, counts.pixels, strict=True)),
    }
    write_json(path, content)
    logger.info("Class frequencies of %d images written to %s", counts.images, path)
