# SPDX-License-Identifier: Apache-2.0
"""Label spaces of the data sets a config names: what the network learns, and what it is asked for."""

from detectron2.config import CfgNode

from padding.data.class_split import ClassSplit, class_split_of
from padding.errors import ConfigError


def training_split(cfg: CfgNode) -> ClassSplit:
    """Label space of ``DATASETS.TRAIN``.

    Raises:
        ConfigError: if there is no training set, or the sets differ in their classes.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; name the data set whose classes the network learns")
    first, *others = cfg.DATASETS.TRAIN
    split = class_split_of(first)
    for other in others:
        if class_split_of(other).names != split.names:
            raise ConfigError(f"DATASETS.TRAIN mixes label spaces: '{other}' has other classes than '{first}'")
    return split


def num_learned_classes(cfg: CfgNode) -> int:
    """``MODEL.SEM_SEG_HEAD.NUM_CLASSES``, and where that is 0, the number of classes of ``DATASETS.TRAIN``.

    Raises:
        ConfigError: the number is not that of the data; see also ``training_split``.
    """
    stated, learned = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, training_split(cfg).num_classes
    if stated not in (0, learned):
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {stated}, but data set '{cfg.DATASETS.TRAIN[0]}' has {learned} "
            f"classes; set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {learned}, or to 0 for those of the data"
        )
    return learned


def evaluation_split(cfg: CfgNode) -> ClassSplit:
    """Label space of the first of ``DATASETS.TEST``, or of the training set where none is given."""
    return class_split_of(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else training_split(cfg)


def learned_split(cfg: CfgNode) -> ClassSplit:
    """Label space of a model that predicts the classes it learns: of the training sets, else of the test set."""
    return training_split(cfg) if cfg.DATASETS.TRAIN else evaluation_split(cfg)
