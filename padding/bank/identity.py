# SPDX-License-Identifier: Apache-2.0
"""What the features in a bank depend on, as plain values: a bank of anything else is stale.

Only what changes features or their labels counts. Thresholds, test sizes and everything the second stage trains may
differ, so that one bank serves a table of many rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from padding.bank.feature_bank import flattened, weights_digest
from padding.data.class_split import ClassSplit

# Sub-trees of the configuration that a feature or the label of a query depends on ...
_NODES = (
    *("INPUT", "SOLVER.AMP", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.BACKBONE", "MODEL.RESNETS"),
    *("MODEL.SMALL_RESNET", "MODEL.TIMM", "MODEL.SEM_SEG_HEAD", "MODEL.MASK_FORMER", "MODEL.PADING.COMPAT"),
    "MODEL.PADING.POOLED_FEATURES",
)
# ... and what lies below them but acts in evaluation or on losses of the segmentor only.
_IRRELEVANT = (
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.MAX_UNPACKED_MB", "MODEL.MASK_FORMER.TEST"),
    *("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "MODEL.MASK_FORMER.DEEP_SUPERVISION", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION",
    *("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO"),
)

# Keys younger than banks that exist, with the value that these were written with.
_ADDED_SINCE = {"INPUT.KEEP_EMPTY_SEGMENTS": False}


def bank_origin(
    cfg: CfgNode,
    segmentor: Sequence[nn.Module],
    label_space: ClassSplit,
    class_ids: Sequence[int],
    entries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Identity of the features that a segmentor gives for a training set.

    Args:
        cfg: the full configuration.
        segmentor: modules that an image passes through, from the image to a query's embedding.
        label_space: of the labels in the bank.
        class_ids: per training class its id in ``label_space``.
        entries: the training set, in order.

    Returns:
        JSON values, part of the fingerprint of a bank.
    """
    return {
        "segmentor": weights_digest(segmentor),
        "train_sets": list(cfg.DATASETS.TRAIN),
        "annotations": annotations_digest(entries),
        "split": split_digest(label_space),
        "class_ids": list(class_ids),
        "configuration": relevant_configuration(cfg),
    }


def split_digest(split: ClassSplit) -> str:
    """SHA-256 over the class names in order and which of them are unseen."""
    return _digest([[name, name in split.unseen_names] for name in split.names])


def annotations_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over image ids, sizes and the classes of their segments; folders may move."""
    digest = hashlib.sha256()
    for entry in entries:
        content = [entry.get(key) for key in ("image_id", "height", "width")]
        items = [*entry.get("segments_info", ()), *entry.get("annotations", ())]
        content += [[item.get("id"), item["category_id"]] for item in items]
        digest.update(json.dumps(content, default=str).encode())
    return digest.hexdigest()


def relevant_configuration(cfg: CfgNode) -> dict[str, Any]:
    """Keys that features and their labels depend on, by full name, as JSON values."""
    leaves: dict[str, Any] = {}
    for path in _NODES:
        node: Any = cfg
        for word in path.split("."):
            node = node[word]
        leaves |= dict(sorted(flattened({path: node})))
    kept = {key: value for key, value in leaves.items() if not key.startswith(_IRRELEVANT)}
    kept = {key: value for key, value in kept.items() if key not in _ADDED_SINCE or value != _ADDED_SINCE[key]}
    return json.loads(json.dumps(kept))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
