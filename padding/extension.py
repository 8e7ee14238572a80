# SPDX-License-Identifier: Apache-2.0
"""New classes for a trained PADing: embeddings -> synthetic features -> rows of the classifier, without images.

The generator makes features of the new classes and of the unseen ones it was trained for; ``seen_statistics.py`` holds
real features of the seen classes and of no-object; ``new_class_rows.py`` fits the rows. Not in the paper.
"""

import colorsys
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from padding.bank.feature_bank import weights_digest
from padding.bank.seen_statistics import FILE_NAME, SeenStatistics, open_bank, statistics_of_bank
from padding.build import VECTORS_ENTRY, class_vectors, embedding_table
from padding.checkpoint import LABEL_SPACE_ENTRY, describe_label_space
from padding.data.class_embeddings import (
    EmbeddingTable,
    load_class_embeddings,
    nearest_known_classes,
    nearest_names,
    normalise_rows,
    select_rows,
    validate_table,
)
from padding.data.class_split import ClassSplit
from padding.engine.random_state import preserved_random_state
from padding.errors import CheckpointError, ConfigError, DataError
from padding.meta_arch import PADing
from padding.modeling.weights.checkpoint import read_with_entries
from padding.new_class_rows import (
    Balance,
    Rows,
    WeightedFeatures,
    balance,
    balancing_shift,
    fit_added_rows,
    largest_logit_change,
    refit_all_rows,
    score_group,
    with_added_rows,
)

# Name of the statistics inside a checkpoint that was extended.
STATISTICS_ENTRY = "seen_statistics"
# Stored features on which the change of the old logits is measured.
_MEASURED_ROWS = 1000
# The balance of false alarms and misses is measured on one new synthetic feature for so many in the fit.
_MEASURED_PART = 3
# Tables of more names are packed with the model's own classes alone.
_PACKED_NAMES = 20_000
# Synthetic features are made in parts, to bound the memory of the attention over the primitives.
_CHUNK = 512


@dataclass(frozen=True)
class ExtensionOptions:
    """How rows of new classes are fitted."""

    num_per_class: int  # synthetic features of each unseen class
    iterations: int  # of L-BFGS
    weight_decay: float  # of the classifier, as in training
    images_per_iteration: int  # images behind one iteration of the training, to weigh real against synthetic features
    refit: bool = False  # fit all rows, not only the new ones
    seed: int = 0  # of the synthetic features

    @classmethod
    def from_config(cls, cfg: CfgNode, *, refit: bool) -> "ExtensionOptions":
        """Options of a configuration."""
        node = cfg.MODEL.PADING
        bank_images = node.FEATURE_BANK.IMAGES_PER_BATCH if node.FEATURE_BANK.ENABLED else 0
        return cls(
            num_per_class=node.ADD_CLASSES.NUM_PER_CLASS,
            iterations=node.ADD_CLASSES.ITERATIONS,
            weight_decay=cfg.SOLVER.CLASSIFIER.WEIGHT_DECAY,
            images_per_iteration=bank_images or cfg.SOLVER.IMS_PER_BATCH,
            refit=refit,
            seed=max(cfg.SEED, 0),
        )


@dataclass(frozen=True)
class ExtensionReport:
    """What adding classes did; ``str()`` is a table."""

    names: tuple[str, ...]  # the new classes
    # New class -> known classes of most similar embedding, with the cosine.
    nearest: Mapping[str, list[tuple[str, float]]]
    seconds: float  # wall-clock time
    old_class_max_change: float  # largest change of an old logit, no-object included, on up to 1000 stored features
    before: Balance | None = None  # false alarms and misses of the old unseen classes; None where nothing was fitted
    after: Balance | None = None  # those of the new classes
    shift: float = 0.0  # added to the logits of all new classes to balance them; 0 with ``refit``

    def __str__(self) -> str:
        rows = [
            (name, ", ".join(f"{known} ({cosine:.2f})" for known, cosine in near))
            for name, near in self.nearest.items()
        ]
        lines = [tabulate(rows, headers=["new class", "nearest known classes (cosine)"], tablefmt="simple")]
        if self.before is not None and self.after is not None:
            groups = (("old unseen classes", self.before), ("new classes", self.after))
            shares = [(label, f"{100 * g.false_alarm:.3f} %", f"{100 * g.miss:.1f} %") for label, g in groups]
            headers = ["", "real features given to a class", "own synthetic features lost"]
            lines.append(tabulate(shares, headers=headers, tablefmt="simple"))
        lines.append(
            f"old logits changed by at most {self.old_class_max_change:.3g}; shift of the new ones {self.shift:+.2f}; "
            f"{self.seconds:.1f} s"
        )
        return "\n\n".join(lines)


def extended_split(split: ClassSplit, names: Sequence[str], stuff: Sequence[str] = ()) -> ClassSplit:
    """The label space with unseen classes behind the present ones; colours follow from the names.

    Args:
        split: present label space.
        names: new classes.
        stuff: those of ``names`` that are stuff.

    Raises:
        ConfigError: for an empty, repeated or known name, or stuff that is not among ``names``.
    """
    if not names or not all(name.strip() for name in names):
        raise ConfigError(f"new class names {list(names)}: give at least one, none of them empty")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    known = [name for name in names if name in split.names]
    if repeated or known:
        what = f"given twice: {repeated}" if repeated else f"known already: {known}"
        raise ConfigError(f"new classes must be new, but some are {what}")
    foreign = [name for name in stuff if name not in names]
    if foreign:
        hints = [f"'{name}' (nearest: {', '.join(nearest_names(name, names)) or 'none'})" for name in foreign]
        raise ConfigError(f"--stuff names classes that are not added: {'; '.join(hints)}")
    first = max(split.dataset_ids, default=0) + 1
    return ClassSplit(
        names=(*split.names, *names),
        is_thing=(*split.is_thing, *(name not in stuff for name in names)),
        dataset_ids=(*split.dataset_ids, *range(first, first + len(names))),
        unseen_names=split.unseen_names | frozenset(names),
        colors=(*split.colors, *map(_color_of, names)),
    )


def _color_of(name: str) -> tuple[int, int, int]:
    hue = zlib.crc32(name.encode()) / 2**32
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.7, 0.95))
    return red, green, blue


def new_class_embeddings(
    cfg: CfgNode, names: Sequence[str], given: str | Path | npt.ArrayLike | None, *, width: int
) -> Tensor:
    """Embeddings (A, E) of new classes, normalised as the others are.

    Args:
        cfg: for MODEL.PADING.EMBEDDINGS; its table may hold more classes than were trained.
        names: new classes.
        given: an npz table, an (A, E) array, or None for the table of the configuration.
        width: E of the model.

    Raises:
        MissingFileError, DataError: naming the table, and how to write one.
    """
    normalize = cfg.MODEL.PADING.EMBEDDINGS.L2_NORMALIZE
    if given is not None and not isinstance(given, str | Path):
        table = validate_table(names, np.asarray(given), "embeddings of the new classes")
        if table.shape[1] != width:
            raise DataError(f"embeddings of the new classes are {table.shape[1]} wide, expected {width}")
        return torch.from_numpy(normalise_rows(table) if normalize else table)
    allowed = cfg.MODEL.PADING.EMBEDDINGS.ALLOW_IDENTICAL
    options: dict[str, Any] = {"l2_normalize": normalize, "width": width, "allow_identical": allowed}
    try:
        if given is None:
            rows = class_vectors(cfg, names, **options)
        else:
            rows = load_class_embeddings(Path(given), names, **options)
    except ValueError as error:
        raise DataError(
            f"{error} New classes need embeddings from the same text model as the old ones: write a table of them "
            "with datasets/prepare_class_embeddings.py --names FILE and name it with --embeddings."
        ) from error
    return torch.from_numpy(rows)


def find_statistics(cfg: CfgNode, model: PADing, given: str | Path | None = None) -> SeenStatistics:
    """Seen statistics of a model: the given ones, those in its checkpoint, beside it, or from a feature bank.

    Args:
        cfg: names MODEL.WEIGHTS and the bank.
        model: with those weights.
        given: a file written in training, or the folder of a feature bank.

    Raises:
        DataError: if there are none, or they belong to another segmentor.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    bank = Path(cfg.MODEL.PADING.FEATURE_BANK.PATH or Path(cfg.OUTPUT_DIR) / "feature_bank")
    has_entry = given is None and weights.is_file()
    entry = read_with_entries(weights)[1].get(STATISTICS_ENTRY) if has_entry else None
    if entry is not None:
        statistics, where = SeenStatistics.from_state_dict(entry, str(weights)), str(weights)
    else:
        candidates = [Path(given)] if given is not None else [weights.parent / FILE_NAME, bank]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            raise DataError(
                f"no seen statistics at {' or '.join(map(str, candidates))}. Training writes {FILE_NAME} beside its "
                "checkpoints; name that file, or the folder of the feature bank, with --statistics."
            )
        statistics, where = _read_statistics(cfg, model, path), str(path)
    digest = weights_digest([model.backbone, model.sem_seg_head])
    if statistics.origin and statistics.origin != digest:
        raise DataError(
            f"{where} holds features of another segmentor than that of {weights}; use the statistics of its own "
            "training"
        )
    return statistics


def packed_entries_of(cfg: CfgNode, model: PADing) -> dict[str, Any]:
    """What a packed model needs so that classes can be added to it: its own classes, statistics, table of embeddings.

    A model without statistics is packed without them, and a warning says so.

    Args:
        cfg: its configuration, with MODEL.WEIGHTS.
        model: with those weights.
    """
    entries: dict[str, Any] = {LABEL_SPACE_ENTRY: describe_label_space(model)}
    if model.method == "supervised":
        return entries
    table, _ = embedding_table(cfg)
    if len(table.names) > _PACKED_NAMES:  # all words of a language are no part of a model
        known = [name for name in model.label_space.names if name in set(table.names)]
        table = EmbeddingTable(tuple(known), select_rows(table, known, ""), table.source)
    vectors = torch.from_numpy(table.embeddings)
    entries[VECTORS_ENTRY] = {"names": list(table.names), "embeddings": vectors, "source": table.source}
    try:
        entries[STATISTICS_ENTRY] = find_statistics(cfg, model).state_dict()
    except DataError as error:
        logging.getLogger(__name__).warning("Packed without seen statistics, so that no class can be added: %s", error)
    return entries


def _read_statistics(cfg: CfgNode, model: PADing, path: Path) -> SeenStatistics:
    if path.is_file():
        return SeenStatistics.load(path)
    bank, options = open_bank(path), cfg.MODEL.PADING.STATISTICS
    empty = SeenStatistics(
        # Classes that were added later stand behind those of the bank.
        model.label_space.names[: bank.spec.num_classes],
        per_class=options.PER_CLASS,
        no_object=options.NO_OBJECT,
        origin=str(bank.spec.origin.get("segmentor", "")),
    )
    return statistics_of_bank(bank, empty)


def extend_model(
    model: PADing, split: ClassSplit, embeddings: Tensor, statistics: SeenStatistics, options: ExtensionOptions
) -> ExtensionReport:
    """Widen a trained model by the classes that ``split`` has behind the present ones, in place.

    Args:
        model: trained.
        split: see ``extended_split``.
        embeddings: (A, E) of the new classes.
        statistics: of the training of ``model``.
        options: how to fit.
    """
    start = time.perf_counter()
    old_split = model.label_space
    names = split.names[old_split.num_classes :]
    # Both sides in the order of the wide label space: old classes, added ones, no-object.
    real = statistics.for_label_space(split.names)
    if model.generation is not None and not old_split.unseen_ids:
        raise CheckpointError("the model has no unseen class yet, against which new ones could be balanced")
    table = torch.cat([model.class_embeddings, embeddings.to(model.class_embeddings)])
    nearest = nearest_known_classes(table.cpu().numpy(), split.names, old_split.names)
    model.widen(split, table)
    change, before, after, shift = 0.0, None, None, 0.0
    if model.generation is not None:
        data = WeightedFeatures(*real.to(model.device))
        change, before, after, shift = _fit(model, old_split, data, options)
    return ExtensionReport(names, nearest, time.perf_counter() - start, change, before, after, shift)


def _fit(
    model: PADing, old_split: ClassSplit, real: WeightedFeatures, options: ExtensionOptions
) -> tuple[float, Balance, Balance, float]:
    """Fit and set the rows of a widened model; change of old logits, both balances, shift."""
    num_old, num_all = old_split.num_classes, model.num_test_classes
    # Old rows [0, K) and no-object, the last: those whose logits must not move.
    kept = [*range(num_old), num_all]
    rows = Rows(model.new_fc.weight.detach(), model.new_fc.bias.detach())
    old = Rows(rows.weight[kept], rows.bias[kept])
    old_ids = torch.tensor(old_split.unseen_ids, device=model.device)
    new_ids = torch.arange(num_old, num_all, device=model.device)
    real = real._replace(weights=real.weights * model.class_weight[real.labels])
    weight = _weight_of_unseen_class(model, old_split, options)
    fitting = _synthesise(model, options.num_per_class, weight, options.seed)
    # The balance is measured on features that the fit has not seen.
    measuring = _synthesise(model, -(-options.num_per_class // _MEASURED_PART), weight, options.seed + 1)
    # Real features of all old classes and no-object, synthetic ones of unseen classes, old and new.
    data = WeightedFeatures(*(torch.cat(pair) for pair in zip(real, fitting, strict=True)))
    added = fit_added_rows(
        old, data, num_all - num_old, weight_decay=options.weight_decay, iterations=options.iterations
    )

    of_new = measuring.labels >= num_old
    own_old, own_new = (WeightedFeatures(*(part[mask] for part in measuring)) for mask in (~of_new, of_new))
    rivals = torch.tensor([*old_split.seen_ids, num_all], device=model.device)
    # False alarms and misses of the old unseen classes are the measure; the shift gives new ones the same ratio.
    before = balance(score_group(old, old_ids, rivals.clamp(max=num_old), real, own_old))
    scores = score_group(with_added_rows(old, added), new_ids, rivals, real, own_new)
    shift = 0.0 if options.refit else balancing_shift(scores, before.log_ratio)
    # A bias common to all new rows moves that ratio and leaves their order.
    final = with_added_rows(old, Rows(added.weight, added.bias + shift))
    if options.refit:
        final = refit_all_rows(final, data, weight_decay=options.weight_decay, iterations=options.iterations)
    with torch.no_grad():
        model.new_fc.weight.copy_(final.weight)
        model.new_fc.bias.copy_(final.bias)
    picked = torch.linspace(0, len(real.features) - 1, min(_MEASURED_ROWS, len(real.features))).long()
    after_rows = Rows(model.new_fc.weight.detach()[kept], model.new_fc.bias.detach()[kept])
    change = largest_logit_change(old, after_rows, real.features[picked.to(model.device)])
    return change, before, balance(score_group(final, new_ids, rivals, real, own_new)), shift


def _weight_of_unseen_class(model: PADing, old_split: ClassSplit, options: ExtensionOptions) -> float:
    """Weight of all synthetic features of one unseen class, for each image of the training."""
    num_unseen = len(old_split.unseen_ids)
    drawn = min(model.options.classes_per_iter or num_unseen, num_unseen)
    # As in a training iteration: NUM_PER_CLASS rows of each class drawn, which is drawn in some iterations only.
    features_per_image = model.options.num_per_class * drawn / num_unseen / options.images_per_iteration
    return model.options.unseen_weight * features_per_image


@torch.no_grad()
def _synthesise(model: PADing, num_per_class: int, weight: float, seed: int) -> WeightedFeatures:
    """Features of every unseen class, old and new, drawn with noise and dropout as in training."""
    labels = model.unseen_ids.repeat_interleave(num_per_class)
    was_training = model.training
    with preserved_random_state():
        torch.manual_seed(seed)
        # The generator's dropout belongs to the distribution that the classifier was trained on.
        model.train()
        features = torch.cat([model.synthesise(part).float() for part in labels.split(_CHUNK)])
        model.train(was_training)
    return WeightedFeatures(features, labels, torch.full_like(features[:, 0], weight / num_per_class))


def add_classes_to(
    model: PADing,
    cfg: CfgNode,
    names: Sequence[str],
    *,
    embeddings: str | Path | npt.ArrayLike | None = None,
    stuff: Sequence[str] = (),
    statistics: SeenStatistics | str | Path | None = None,
    refit: bool = False,
) -> ExtensionReport:
    """Add classes to a trained model, in place.

    Args:
        model: built from ``cfg``, with MODEL.WEIGHTS loaded.
        cfg: its configuration.
        names: new class names.
        embeddings: see ``new_class_embeddings``.
        stuff: those of ``names`` that are stuff; the others are things.
        statistics: see ``find_statistics``.
        refit: fit all rows of the classifier; by default the old ones stay.

    Raises:
        MissingFileError, ConfigError: saying what is missing.
    """
    split = extended_split(model.label_space, names, stuff)
    if model.method == "supervised":
        raise ConfigError("MODEL.PADING.METHOD 'supervised' knows no class embeddings; it cannot learn new classes")
    rows = new_class_embeddings(cfg, names, embeddings, width=model.class_embeddings.shape[1])
    if not isinstance(statistics, SeenStatistics):
        statistics = find_statistics(cfg, model, statistics)
    return extend_model(model, split, rows, statistics, ExtensionOptions.from_config(cfg, refit=refit))
