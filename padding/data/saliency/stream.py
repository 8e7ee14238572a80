# SPDX-License-Identifier: Apache-2.0
"""From a configuration to the stream of SalSeg: images with class labels and images with saliency side by side.

The paper does not say how its two sources meet. Paired batches are the form of its predecessor (Zeng et al., ICCV
2019): every step sees images of both kinds, and no image needs both labels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from padding.data.mappers import SemanticMapper, build_mapper
from padding.data.saliency.mapper import JointSaliencyMapper, SaliencyMapper
from padding.data.saliency.maps import has_saliency
from padding.data.semi_splits import SemiSplit, read_semi_split, select_entries
from padding.data.streams import PairedStream, TrainStream, derived_seed, load_training_entries
from padding.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
Entries = list[dict[str, Any]]
SALIENCY_BATCHES = ("paired", "joint")
_SALIENCY = 3  # tells the seed of the second stream from the first one's, and from those of unlabeled images
_KEYS = ("saliency_file_name", "salient_classes", "sem_seg_label_map")


def load_segmentation_entries(cfg: CfgNode) -> Entries:
    """Entries of DATASETS.TRAIN; with DATASETS.SPLIT those of its ``labeled.txt``, in the order of the list.

    Raises:
        MissingFileError, DataError: a list, an image or an id is missing.
    """
    data = cfg.DATASETS
    pool = load_training_entries(data.TRAIN, filter_empty=False)
    if not data.SPLIT:
        return pool
    split = read_semi_split(data.SPLIT)
    return select_entries(pool, split.labeled, split=split.name, data=data.TRAIN)


def load_saliency_entries(cfg: CfgNode) -> Entries:
    """Entries of DATASETS.TRAIN_SALIENCY.

    With DATASETS.SPLIT, sets that know images of the split are reduced to those of its ``unlabeled.txt``; other sets
    stay complete.

    Raises:
        MissingFileError, DataError: a list, an image or an id is missing, or a set has no saliency.
    """
    names = tuple(cfg.DATASETS.TRAIN_SALIENCY)
    sets = {name: _with_saliency(name) for name in names}
    if not cfg.DATASETS.SPLIT or not sets:
        return [entry for entries in sets.values() for entry in entries]
    split = read_semi_split(cfg.DATASETS.SPLIT)
    logger.info("Split %s", split)
    # Of sets that share images with the split only its unlabeled images count: the split keeps the kinds apart.
    concerned = {name: entries for name, entries in sets.items() if _knows(entries, split)}
    others = [entry for name, entries in sets.items() if name not in concerned for entry in entries]
    if not concerned:
        logger.info("%s: %d images, none of them in the split, all are used", ", ".join(sets), len(others))
        return others
    pool = [entry for entries in concerned.values() for entry in entries]
    return [*select_entries(pool, split.unlabeled, split=split.name, data=tuple(concerned)), *others]


def load_joint_entries(cfg: CfgNode) -> Entries:
    """Entries of ``load_segmentation_entries`` that have saliency too: their own, or that of the same image file in
    DATASETS.TRAIN_SALIENCY.

    Raises:
        MissingFileError, ConfigError: a list, an image or an id is missing; no image has both; or saliency would be
            derived from other labels than those of the entry.
    """
    found = load_segmentation_entries(cfg)
    names = tuple(cfg.DATASETS.TRAIN_SALIENCY)
    # Saliency of an image file, whichever set lists it: ids differ between sets.
    by_file = {_file(entry): entry for name in names for entry in _with_saliency(name)}
    both = [_joined(entry, by_file.get(_file(entry))) for entry in found]
    kept = [entry for entry in both if entry is not None]
    if not kept:
        raise ConfigError(
            f"DATASETS.SALIENCY_BATCHES is 'joint', but none of the {len(found)} images of "
            f"{', '.join(cfg.DATASETS.TRAIN)} has saliency in DATASETS.TRAIN_SALIENCY ({', '.join(names) or 'empty'}); "
            "name a set of the same image files there, such as camvid_train_saliency, or choose 'paired'"
        )
    if len(kept) < len(found):
        logger.info("Joint batches: %d of %d images have saliency, the others are left out", len(kept), len(found))
    return kept


def build_saliency_stream(
    cfg: CfgNode,
    *,
    segmentation_per_batch: int,
    saliency_per_batch: int,
    seed: int,
    rank: int,
    world_size: int,
    num_workers: int,
) -> TrainStream | PairedStream:
    """Build one rank's endless stream; samples with class labels come first in a batch.

    Args:
        cfg: reads DATASETS and INPUT.
        segmentation_per_batch: images with class labels per process and forward; 0: saliency alone.
        saliency_per_batch: images with saliency; 0: class labels alone. In "joint" batches every image is both.
        seed: >= 0; that of the class labels' stream, whose batches are thus the same without saliency.
        rank: of this process.
        world_size: number of processes.
        num_workers: processes that map ahead, for each stream.

    Raises:
        ConfigError: images of a kind are asked for, but there are none; or the numbers do not suit "joint" batches.
    """
    mode = cfg.DATASETS.SALIENCY_BATCHES
    if mode not in SALIENCY_BATCHES:
        raise ConfigError(f"DATASETS.SALIENCY_BATCHES is '{mode}'; choose one of {', '.join(SALIENCY_BATCHES)}")
    build = partial(TrainStream, rank=rank, world_size=world_size, num_workers=num_workers)
    if saliency_per_batch == 0:
        entries = load_segmentation_entries(cfg)
        return build(entries, build_mapper(cfg, is_train=True), batch_size=segmentation_per_batch, seed=seed)
    if mode == "joint":
        if saliency_per_batch != segmentation_per_batch:
            raise ConfigError(
                f"DATASETS.SALIENCY_BATCHES is 'joint': every image has both labels, but {saliency_per_batch} images "
                f"with saliency and {segmentation_per_batch} with classes are asked for; set "
                "SOLVER.IMS_PER_BATCH_SALIENCY to IMS_PER_BATCH, or to 0 for class labels alone"
            )
        return build(load_joint_entries(cfg), _joint_mapper(cfg), batch_size=segmentation_per_batch, seed=seed)
    salient = load_saliency_entries(cfg)
    if not salient:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH_SALIENCY is {cfg.SOLVER.IMS_PER_BATCH_SALIENCY}, but no image has saliency: name "
            "sets in DATASETS.TRAIN_SALIENCY, or set the number to 0"
        )
    # Another seed: with the same one both streams would walk through their sets in step.
    second_seed = derived_seed(seed, _SALIENCY)
    second = build(salient, SaliencyMapper(cfg, is_train=True), batch_size=saliency_per_batch, seed=second_seed)
    if segmentation_per_batch == 0:
        return second
    labeled = load_segmentation_entries(cfg)
    _log_shared(labeled, salient)
    first = build(labeled, build_mapper(cfg, is_train=True), batch_size=segmentation_per_batch, seed=seed)
    return PairedStream({"segmentation": first, "saliency": second})


def _with_saliency(name: str) -> Entries:
    if name not in DatasetCatalog:
        raise ConfigError(f"DATASETS.TRAIN_SALIENCY names '{name}', which is not registered")
    entries: Entries = list(DatasetCatalog.get(name))
    without = [entry for entry in entries if not has_saliency(entry)]
    if without:
        raise ConfigError(
            f"DATASETS.TRAIN_SALIENCY names '{name}', but {len(without)} of its {len(entries)} images have none, "
            f"first {without[0]['file_name']}; datasets/README.md lists the saliency sets"
        )
    return entries


def _knows(entries: Sequence[Mapping[str, Any]], split: SemiSplit) -> bool:
    ids = {*split.labeled, *split.unlabeled}
    return any(str(e.get("image_id", "")) in ids or Path(e["file_name"]).stem in ids for e in entries)


def _file(entry: Mapping[str, Any]) -> str:
    return os.path.abspath(entry["file_name"])  # noqa: PTH100  (purely textual: no system call per image)


def _joined(entry: dict[str, Any], salient: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if has_saliency(entry):
        return entry
    if salient is None:
        return None
    if "saliency_file_name" not in salient and salient["sem_seg_file_name"] != entry.get("sem_seg_file_name"):
        raise DataError(
            f"{entry['file_name']}: saliency is derived from {salient['sem_seg_file_name']}, the class labels are "
            f"{entry.get('sem_seg_file_name')}; joint batches need one label file, use 'paired' ones"
        )
    return {**entry, **{key: salient[key] for key in _KEYS if key in salient}}


def _joint_mapper(cfg: CfgNode) -> JointSaliencyMapper:
    named = build_mapper(cfg, is_train=True)
    if not isinstance(named, SemanticMapper):
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is '{cfg.INPUT.DATASET_MAPPER_NAME}', but joint batches have semantic labels; "
            "choose 'semantic_scale_crop' or 'mask_former_semantic'"
        )
    return JointSaliencyMapper(cfg, is_train=True)


def _log_shared(labeled: Sequence[Mapping[str, Any]], salient: Sequence[Mapping[str, Any]]) -> None:
    shared = {_file(entry) for entry in labeled} & {_file(entry) for entry in salient}
    logger.info("%d images with class labels, %d with saliency", len(labeled), len(salient))
    if shared:
        logger.warning(
            "%d images are in both streams, first %s; their labels are learned in different batches",
            len(shared),
            min(shared),
        )
