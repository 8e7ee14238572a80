# SPDX-License-Identifier: Apache-2.0
"""From a configuration to the stream of a semi-supervised training: labeled and unlabeled images side by side."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from padding.data.mappers import UnlabeledMapper, build_mapper
from padding.data.semi_splits import read_semi_split, select_entries
from padding.data.streams import PairedStream, TrainStream, derived_seed, load_training_entries
from padding.errors import ConfigError

logger = logging.getLogger(__name__)
Entries = list[dict[str, Any]]
_UNLABELED, _PARTNER = 1, 2  # what tells the seeds of the further streams from the first one's


def load_semi_supervised_entries(cfg: CfgNode) -> tuple[Entries, Entries]:
    """Labeled and unlabeled entries as DATASETS.{TRAIN,TRAIN_UNLABELED,SPLIT} say.

    Raises:
        MissingFileError, DataError: a list, an image or an id is missing, or an image is in both lists.
    """
    data = cfg.DATASETS
    pool = load_training_entries(data.TRAIN, filter_empty=False)
    names = tuple(data.TRAIN_UNLABELED)
    others: Entries = [entry for name in names for entry in DatasetCatalog.get(name)]
    if not data.SPLIT:
        return pool, others
    split = read_semi_split(data.SPLIT)
    logger.info("Split %s", split)
    labeled = select_entries(pool, split.labeled, split=split.name, data=data.TRAIN)
    unlabeled = select_entries(others or pool, split.unlabeled, split=split.name, data=names or data.TRAIN)
    return labeled, unlabeled


def build_semi_supervised_stream(
    cfg: CfgNode,
    *,
    labeled_per_batch: int,
    unlabeled_per_batch: int,
    seed: int,
    rank: int,
    world_size: int,
    num_workers: int,
    partner: bool = False,
) -> TrainStream | PairedStream:
    """Build one rank's endless stream; labeled samples come first in a batch.

    Args:
        cfg: reads DATASETS and INPUT.
        labeled_per_batch: samples per process and forward.
        unlabeled_per_batch: likewise; 0: labeled images alone, from a plain stream.
        seed: >= 0; the unlabeled stream's seed is derived from it.
        rank: of this process.
        world_size: number of processes.
        num_workers: processes that map ahead, for each stream.
        partner: each unlabeled sample gets one of another image as ``partner``, if there are two.

    Raises:
        ConfigError: unlabeled images are asked for, but there are none.
    """
    labeled, unlabeled = load_semi_supervised_entries(cfg)
    common: dict[str, Any] = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
    mapper = build_mapper(_without_strong_view(cfg), is_train=True)
    first = TrainStream(labeled, mapper, batch_size=labeled_per_batch, seed=seed, **common)
    if unlabeled_per_batch == 0:
        return first
    if not unlabeled:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH_UNLABELED is {cfg.SOLVER.IMS_PER_BATCH_UNLABELED}, but no image is unlabeled: "
            "set DATASETS.SPLIT or DATASETS.TRAIN_UNLABELED, or the number to 0"
        )
    plain = UnlabeledMapper(cfg, is_train=True)
    build = partial(TrainStream, unlabeled, plain, batch_size=unlabeled_per_batch, **common)
    second = build(seed=derived_seed(seed, _UNLABELED))
    partners = {"unlabeled": build(seed=derived_seed(seed, _PARTNER), differs_from=second)} if partner else None
    return PairedStream({"labeled": first, "unlabeled": second}, partners=partners)


def _without_strong_view(cfg: CfgNode) -> CfgNode:
    """Labeled images are learned from their weak view: making another would be thrown away."""
    plain = cfg.clone()
    plain.defrost()
    plain.INPUT.STRONG_VIEW = False
    return plain
