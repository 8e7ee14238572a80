# SPDX-License-Identifier: Apache-2.0
"""From the keys ``MODEL.PADING`` to the parts that PADing is made of; the only file that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from padding.alignment import FeatureDecoder, FeatureEncoder, RelationNet
from padding.data.class_embeddings import (
    EmbeddingTable,
    FloatArray,
    random_class_embeddings,
    read_class_embeddings,
    rows_of_classes,
    validate_table,
)
from padding.data.class_split import ClassSplit
from padding.data.roots import data_root, splits_dir
from padding.errors import ConfigError, check_choice
from padding.generator import GENERATORS, Gmmn, PrimitivePaper, PrimitiveTransformer
from padding.losses import DivergenceOptions, MmdOptions
from padding.modeling.weights.packed import is_packed, read_packed
from padding.objective import DisentangleModules, LossWeights, StructureObjective

# Name of the table of class embeddings inside a packed model.
VECTORS_ENTRY = "class_vectors"
UNSEEN_INITS = ("pretrained", "random", "zeros")


@dataclass(frozen=True)
class ClassifierOptions:
    """How the new classifier is trained."""

    unseen_weight: float  # weight of unseen classes in the cross-entropy; seen classes have 1
    no_object_weight: float  # weight of unmatched queries
    classes_per_iter: int  # unseen classes drawn in each iteration; 0 for all
    num_per_class: int  # synthetic features of each
    pretrained_rows: bool  # the classifier starts from the class rows of the segmentor
    unseen_init: str = "pretrained"  # rows of unseen classes at that start: ``pretrained``, ``random`` or ``zeros``
    official_head_pad: bool = False  # narrow heads are widened as by the released converter, no-object misplaced


@dataclass(frozen=True)
class Generation:
    """The trainable parts of METHOD "generative" and their losses."""

    generator: nn.Module  # (n, D) conditions and (P, D) primitives -> (n, D); a ``Gmmn`` takes the (n, E) embeddings
    projection: nn.Linear | None  # class embeddings -> conditions, (n, E) -> (n, D); None for a ``Gmmn``
    primitives: nn.Embedding | None  # the P primitives; None for a ``Gmmn``
    disentangle: DisentangleModules | None  # encoders and decoder; None when switched off
    structure: StructureObjective  # losses of alignment and disentanglement
    mmd: MmdOptions  # how distributions are compared
    project_targets: bool  # the semantic side of the losses is ``projection(a)`` instead of a
    detach_targets: bool  # no gradient into that side
    use_real_seen: bool  # real features of seen classes join the synthetic ones in the structure losses
    consistency_among_all: bool  # the consistency loss scores against all classes and no-object, not the seen ones only


def build_classifier_options(node: CfgNode) -> ClassifierOptions:
    """Options of ``MODEL.PADING.CLASSIFIER``.

    Args:
        node: ``MODEL.PADING``.

    Raises:
        ConfigError: for an unknown INIT or UNSEEN_INIT.
    """
    options = node.CLASSIFIER
    check_choice("MODEL.PADING.CLASSIFIER.INIT", options.INIT, ("pretrained", "random"))
    check_choice("MODEL.PADING.CLASSIFIER.UNSEEN_INIT", options.UNSEEN_INIT, UNSEEN_INITS)
    given = _as_arguments(options)
    return ClassifierOptions(
        pretrained_rows=given.pop("init") == "pretrained", official_head_pad=node.COMPAT.OFFICIAL_HEAD_PAD, **given
    )


def find_embeddings(path: str) -> Path:
    """A relative path is looked up in the data root, in the repository's ``datasets``, and as it stands."""
    candidates = [data_root() / path, splits_dir().parent / path, Path(path)]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def embedding_table(cfg: CfgNode) -> tuple[EmbeddingTable, str]:
    """The table of a configuration, and where it lies: EMBEDDINGS.PATH, else the one inside a packed MODEL.WEIGHTS.

    Raises:
        ConfigError: there is neither.
        DataError: the table is no table.
    """
    node, weights = cfg.MODEL.PADING, cfg.MODEL.WEIGHTS
    if node.EMBEDDINGS.PATH:
        path = find_embeddings(node.EMBEDDINGS.PATH)
        return read_class_embeddings(path), str(path)
    entry = read_packed(weights).get(VECTORS_ENTRY) if is_packed(weights) else None
    if entry is None:
        raise ConfigError(
            f"MODEL.PADING.EMBEDDINGS.PATH is empty, but METHOD '{node.METHOD}' needs class embeddings; name an npz "
            "table written by datasets/prepare_class_embeddings.py."
        )
    names = tuple(entry["names"])
    return EmbeddingTable(names, validate_table(names, entry["embeddings"].numpy(), weights), entry["source"]), weights


def class_vectors(cfg: CfgNode, names: Sequence[str], **options: Any) -> FloatArray:
    """Rows (len(names), E) of the table of a configuration; ``options`` as of ``load_class_embeddings``.

    Raises:
        ConfigError, DataError: see ``embedding_table`` and ``rows_of_classes``.
    """
    table, where = embedding_table(cfg)
    return rows_of_classes(table, names, where, **options)


def load_embeddings(cfg: CfgNode, split: ClassSplit) -> Tensor:
    """Class embeddings (K, E) in the order of a label space; with RANDOM_SEED those of the control.

    Args:
        cfg: for ``MODEL.PADING``, and MODEL.WEIGHTS, which may bring a table.
        split: the label space.
    """
    options = _as_arguments(cfg.MODEL.PADING.EMBEDDINGS)
    seed = options.pop("random_seed")
    del options["path"]
    table = class_vectors(cfg, split.names, **options)
    if seed >= 0:
        table = random_class_embeddings(split.names, table.shape[1], seed)
    return torch.from_numpy(table)


def _build_generator(
    node: CfgNode, channels: int, width: int
) -> tuple[nn.Module, nn.Linear | None, nn.Embedding | None]:
    """Generator, projection of embeddings and primitives, as MODEL.PADING.GENERATOR says."""
    options = node.GENERATOR
    check_choice("MODEL.PADING.GENERATOR.NAME", options.NAME, GENERATORS)
    if options.NAME == "gmmn":
        return Gmmn(width, channels, dropout=options.DROPOUT, noise_std=options.NOISE_STD), None, None
    shared = {
        "num_layers": options.NUM_LAYERS,
        "num_heads": options.NUM_HEADS,
        "dropout": options.DROPOUT,
        "noise_std": options.NOISE_STD,
        "primitive_self_attention": options.PRIMITIVE_SELF_ATTENTION,
    }
    generator: nn.Module
    if options.NAME == "primitive_paper":
        generator = PrimitivePaper(channels, **shared)
    else:
        generator = PrimitiveTransformer(
            channels, ffn_channels=options.FFN_DIM, equal_layers=options.EQUAL_LAYERS, **shared
        )
    return generator, nn.Linear(width, channels), nn.Embedding(options.NUM_PRIMITIVES, channels)


def _build_disentangle(node: CfgNode, channels: int, width: int) -> DisentangleModules | None:
    """Encoders, decoder and scorer; ``width`` is that of the semantic side."""
    options = node.DISENTANGLE
    if not options.ENABLED:
        return None
    check_choice("MODEL.PADING.DISENTANGLE.RELATION", options.RELATION, ("dot", "relation_net"))
    shared = {"arch": options.ARCH, "dropout": options.DROPOUT}
    # The variational encoder gives means and log-variances side by side, 2 D.
    unrelated_channels = 2 * channels if options.UNRELATED == "vae" else channels
    return DisentangleModules(
        related=FeatureEncoder(channels, width, **shared),
        unrelated=FeatureEncoder(channels, unrelated_channels, **shared),
        decoder=FeatureDecoder(width, channels, channels, **shared),
        relation=RelationNet(width, channels) if options.RELATION == "relation_net" else None,
    )


def build_generation(node: CfgNode, channels: int, width: int) -> Generation:
    """Parts of METHOD "generative".

    Args:
        node: ``MODEL.PADING``.
        channels: D, width of the features.
        width: E, width of the class embeddings.

    Raises:
        ConfigError: for an unknown choice, or choices that exclude each other; names the keys.
    """
    align = node.ALIGN
    check_choice("MODEL.PADING.ALIGN.TARGET", align.TARGET, ("raw", "projected"))
    generator, projection, primitives = _build_generator(node, channels, width)
    project_targets = align.TARGET == "projected"
    if project_targets and projection is None:
        raise ConfigError(
            "MODEL.PADING.ALIGN.TARGET is 'projected', but GENERATOR.NAME 'gmmn' projects nothing; use 'raw'."
        )
    structure = StructureObjective(
        weights=LossWeights(**_as_arguments(node.LOSS_WEIGHT)),
        align=align.ENABLED,
        align_space=align.SPACE,
        divergence=DivergenceOptions(align.TEMPERATURE, align.DIRECTION, align.REDUCTION),
        disentangle=node.DISENTANGLE.ENABLED,
        unrelated_prior=node.DISENTANGLE.UNRELATED,
        relation_among_all=node.DISENTANGLE.RELATION_AMONG_ALL,
        seen_relation_among_all=node.DISENTANGLE.RELATION_SEEN_AMONG_ALL,
        relation_reduction=node.DISENTANGLE.RELATION_REDUCTION,
        unrelated_reduction=node.DISENTANGLE.UNRELATED_REDUCTION,
        reconstruction_reduction=node.DISENTANGLE.RECONSTRUCTION,
    )
    return Generation(
        generator=generator,
        projection=projection,
        primitives=primitives,
        # E_R maps to the semantic side, where related parts meet the embeddings: E wide, or D if projected.
        disentangle=_build_disentangle(node, channels, channels if project_targets else width),
        structure=structure,
        mmd=_build_mmd_options(node),
        project_targets=project_targets,
        detach_targets=align.DETACH,
        use_real_seen=align.USE_REAL_SEEN,
        consistency_among_all=node.CONSISTENCY_AMONG_ALL,
    )


def _build_mmd_options(node: CfgNode) -> MmdOptions:
    """Options of MODEL.PADING.MMD; a batch from the bank is large enough to compare class by class."""
    options = _as_arguments(node.MMD)
    options.pop("rows_per_class")  # what is compared is the trainer's business
    if options["grouping"] == "auto":
        options["grouping"] = "per_class" if node.FEATURE_BANK.ENABLED else "batch"
    return MmdOptions(**{**options, "sigmas": tuple(node.MMD.SIGMAS)})


def _as_arguments(node: CfgNode) -> dict[str, Any]:
    """Keys of a node as names of arguments: where both have the same names."""
    return {key.lower(): getattr(node, key) for key in node}
