# SPDX-License-Identifier: Apache-2.0
"""A trained PSI beside its training images: scribbles, the labels it grows from them and, if known, the dense truth.

The truth comes from the dense set of the same images, which the metadata of a scribble set names (``dense_set``).
Training never opens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from padding.data.class_split import ClassSplit, class_split_of
from padding.data.mappers import SemanticMapper, build_mapper
from padding.data.sample import DatasetDict
from padding.data.sets.scribbles import label_key
from padding.data.streams import load_training_entries
from padding.engine import inspection
from padding.errors import ConfigError, DataError
from padding.modeling.label_space import training_split
from psi.label_quality import LabelQuality
from psi.labeling import GrownLabels, SupervisionReader, grow_labels, quality_of
from psi.meta_arch import PSI


@dataclass(frozen=True)
class Inspected:
    """One training image.

    Attributes:
        key: its id, or the stem of its file.
        sample: of the test mapper, as the network sees it.
        scribbles: (h, w) int64, void where nothing is drawn.
        truth: (h, w) int64; None where there are no dense labels.
        labels: y_0 to y_T and what made them.
    """

    key: str
    sample: Mapping[str, Any]
    scribbles: Tensor
    truth: Tensor | None
    labels: GrownLabels

    @property
    def quality(self) -> list[LabelQuality]:
        """Of y_0 to y_T."""
        return quality_of(self.labels, self.truth)


class DenseReader:
    """Dense labels of scribble training images: sample with ``height`` and ``width`` -> (h, w) int64, or None."""

    def __init__(self, cfg: CfgNode) -> None:
        """Look up the dense sets of DATASETS.TRAIN; those without one give None."""
        self._files: dict[str, tuple[SemanticMapper, dict[str, Any]]] = {}
        self.missing: list[str] = []
        for name in cfg.DATASETS.TRAIN:
            dense = MetadataCatalog.get(name).get("dense_set")
            if dense is None:
                self.missing.append(name)
                continue
            mapper = _label_mapper(cfg, dense)
            # Both sets list the same images, so that the file tells them apart even where ids repeat.
            self._files |= {entry["file_name"]: (mapper, entry) for entry in DatasetCatalog.get(dense)}

    def __call__(self, sample: Mapping[str, Any]) -> Tensor | None:
        """Read one image's labels."""
        if sample["file_name"] not in self._files:
            return None
        mapper, entry = self._files[sample["file_name"]]
        labels, _ = mapper.read_labels(entry, (sample["height"], sample["width"]))
        assert labels is not None
        return torch.from_numpy(labels.astype(np.int64))


class LabelInspection(inspection.Inspection[Inspected]):
    """Training images of a configuration and what a trained network makes of their scribbles; iterate over it."""

    architecture = "PSI"
    what = "training image"

    def prepare(self, cfg: CfgNode, model: PSI) -> tuple[ClassSplit, list[dict[str, Any]]]:
        """Readers of scribbles and of dense labels; the training set.

        Raises:
            ConfigError: labels of the model do not grow.
        """
        if model.threshold_net is None:
            raise ConfigError(
                "MODEL.PSI.SLD.STEPS is 0: labels do not grow, there is nothing to look at; take a configuration and "
                "weights with SLD.STEPS of at least 1"
            )
        self._read, self._dense, self._model = SupervisionReader(cfg), DenseReader(cfg), model
        return training_split(cfg), load_training_entries(cfg.DATASETS.TRAIN, filter_empty=False)

    def require_truth(self) -> None:
        """Refuse data without dense labels.

        Raises:
            DataError: they are not known of a set.
        """
        if self._dense.missing:
            raise DataError(
                f"DATASETS.TRAIN: no dense labels are known for {', '.join(self._dense.missing)}; accuracy can be "
                "measured on the scribble sets of datasets/README.md, or on one of your own that "
                "padding.data.sets.scribbles.register_scribbles registers"
            )

    def inspect(self, entry: dict[str, Any]) -> Inspected:
        """Grow the labels of one image."""
        sample, scribbles = self._read(entry)
        grown = grow_labels(self._model, sample, scribbles)
        return Inspected(label_key(cast(DatasetDict, entry)), sample, scribbles, self._dense(sample), grown)


def _label_mapper(cfg: CfgNode, dataset_name: str) -> SemanticMapper:
    """The training's mapper, reading the labels of another set."""
    class_split_of(dataset_name)
    other = cfg.clone()
    other.defrost()
    other.DATASETS.TRAIN = (dataset_name,)
    mapper = build_mapper(other, is_train=True)
    assert isinstance(mapper, SemanticMapper)  # SupervisionReader has checked it
    return mapper
