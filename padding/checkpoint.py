# SPDX-License-Identifier: Apache-2.0
"""From a pretrained segmentor to PADing: the rows of the class head are placed by class name, no-object last.

The segmentor's head is narrow (the training classes) or wide (all test classes); PADing keeps the narrow one for
matching and starts the wide classifier ``new_fc`` from its rows.

A model that was extended by new classes is saved with its label space, which widens the model that loads it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from padding.data.class_split import ClassSplit
from padding.errors import CheckpointError
from padding.meta_arch import PADing
from padding.modeling.weights.checkpoint import read_with_entries
from padding.modeling.weights.loading import load_into, load_state
from padding.modeling.weights.renaming import normalise_keys
from padding.modeling.weights.report import CheckpointReport

# Name of the label space inside a checkpoint whose model was extended.
LABEL_SPACE_ENTRY = "label_space"

HEAD = "sem_seg_head.predictor.class_embed"
CLASSIFIER = "new_fc"
_PARAMETERS = ("weight", "bias")


def widen_rows(rows: Tensor, class_ids: Sequence[int], initial: Tensor) -> Tensor:
    """Place the rows of a narrow head in a wide one.

    Args:
        rows: (C+1, ...) no-object last.
        class_ids: (C,) ids of the narrow head's classes in the wide label space.
        initial: (K+1, ...) rows of classes that the narrow head does not know.

    Returns:
        (K+1, ...), no-object last.

    Raises:
        ValueError: if the number of rows is not C+1.
    """
    if len(rows) != len(class_ids) + 1:
        raise ValueError(f"{len(rows)} rows for {len(class_ids)} classes and no-object; give one id per class")
    wide = initial.clone()
    wide[[*class_ids, len(initial) - 1]] = rows.to(wide)
    return wide


def pad_rows(rows: Tensor, class_ids: Sequence[int], num_classes: int) -> Tensor:
    """Widen a narrow head as the released converter does: no-object lands on the first unseen class, the rest is zero.

    Args:
        rows: (C+1, ...) no-object last.
        class_ids: (C,) ids of the narrow head's classes in the wide label space.
        num_classes: K > C.

    Returns:
        (K+1, ...), its last row zero.
    """
    first_unseen = min(set(range(num_classes)) - set(class_ids))
    wide = rows.new_zeros(num_classes + 1, *rows.shape[1:])
    wide[[*class_ids, first_unseen]] = rows
    return wide


def repair_class_head(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Undo the released converter's widening, which leaves the no-object row at the first unseen class.

    That converter appends zero rows behind a narrow head, so that the last rows, no-object's among them, are all zero.

    Args:
        weight: (R, D).
        bias: (R,).

    Returns:
        Weight and bias with the last row that is not zero moved to the end, and whether anything was moved.
    """
    # The last row that is not all zero is no-object's.
    used = (weight.flatten(1).any(dim=1) | bias.bool()).nonzero().squeeze(1)
    if len(used) == 0 or int(used[-1]) == len(bias) - 1:
        return weight, bias, False
    weight, bias, row = weight.clone(), bias.clone(), int(used[-1])
    for parameter in (weight, bias):
        parameter[-1] = parameter[row]
        parameter[row] = 0
    return weight, bias, True


def fit_class_head(rows: Tensor, class_ids: Sequence[int], num_classes: int, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Rows for PADing's two class heads from those of a checkpoint, whichever label space it has.

    Args:
        rows: (C+1, ...) or (K+1, ...), no-object last.
        class_ids: (C,) ids of the training classes in the test label space.
        num_classes: K.
        initial: (K+1, ...) rows of classes that the checkpoint does not know.

    Returns:
        Narrow (C+1, ...) and wide (K+1, ...) rows.

    Raises:
        CheckpointError: for any other number of rows.
    """
    # The classes of the file decide: C + 1 rows are a segmentor's, K + 1 a PADing's or a widened one.
    if len(rows) == len(class_ids) + 1:
        return rows, widen_rows(rows, class_ids, initial)
    if len(rows) == num_classes + 1:
        return rows[[*class_ids, num_classes]], rows.to(initial).clone()
    raise CheckpointError(
        f"the class head of the checkpoint has {len(rows)} rows; expected {len(class_ids) + 1} (training classes and "
        f"no-object) or {num_classes + 1} (all classes and no-object). It was trained on other classes: choose "
        "DATASETS.TRAIN and DATASETS.TEST accordingly."
    )


def load_padding_weights(model: PADing, path: str, *, complete: bool) -> CheckpointReport:
    """Load a PADing checkpoint, or start one from a pretrained segmentor; the file's content decides.

    Args:
        model: changed in place.
        path: local weight file.
        complete: True to evaluate: every parameter must be in the file.

    Returns:
        What was matched, renamed, skipped and why.
    """
    state, entries = read_with_entries(path)
    described = entries.get(LABEL_SPACE_ENTRY)
    if complete:
        if described is not None:
            _adopt_label_space(model, described, path)
        return load_state(model, state, path, complete=True)
    state, _ = normalise_keys(state)
    if described is not None:
        # Added classes belong to no data set: the heads must fit the configured one.
        _drop_added_rows(state, model, described, path)
    report = start_from(model, state, path)
    logging.getLogger(__name__).info("Weights from %s:\n%s", path, report)
    return report


def start_from(model: PADing, state: Mapping[str, Tensor], path: str) -> CheckpointReport:
    """Start a PADing from a pretrained segmentor, or go on from a PADing; the content decides.

    Args:
        model: changed in place.
        state: names of this project -> tensors.
        path: where they come from, for messages.
    """
    state = dict(state)
    names = [f"{HEAD}.{parameter}" for parameter in _PARAMETERS]
    if all(name in state for name in names):
        weight, bias, repaired = repair_class_head(*(state[name] for name in names))
        if repaired:
            logging.getLogger(__name__).warning(
                "%s: the no-object row of its class head was misplaced; moved to the end", path
            )
        state |= dict(zip(names, (weight, bias), strict=True))
        starts_classifier = (
            model.options.pretrained_rows and model.method == "generative" and f"{CLASSIFIER}.weight" not in state
        )
        for parameter in _PARAMETERS:
            _fit_parameter(state, model, parameter, starts_classifier=starts_classifier, repaired=repaired)
    return load_into(model, state)


def describe_label_space(model: PADing) -> dict[str, Any]:
    """Classes and embeddings of a model as tensors and plain values, for ``LABEL_SPACE_ENTRY``."""
    split = model.label_space
    return {
        "names": list(split.names),
        "is_thing": list(split.is_thing),
        "dataset_ids": list(split.dataset_ids),
        "unseen_names": sorted(split.unseen_names),
        "colors": [list(color) for color in split.colors],
        "class_embeddings": model.class_embeddings.cpu(),
    }


def _read_label_space(described: Mapping[str, Any], path: str) -> tuple[ClassSplit, Tensor]:
    try:
        split = ClassSplit(
            names=tuple(described["names"]),
            is_thing=tuple(described["is_thing"]),
            dataset_ids=tuple(described["dataset_ids"]),
            unseen_names=frozenset(described["unseen_names"]),
            colors=tuple((red, green, blue) for red, green, blue in described["colors"]),
        )
        return split, described["class_embeddings"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its entry '{LABEL_SPACE_ENTRY}' is damaged ({error})") from error


def _adopt_label_space(model: PADing, described: Mapping[str, Any], path: str) -> None:
    """Widen a model by the classes that the checkpoint has in addition."""
    split, embeddings = _read_label_space(described, path)
    names = model.label_space.names
    # A prefix, in its order: ids of known classes stay what they are.
    if split.names[: len(names)] != names:
        other = next((a, b) for a, b in zip((*split.names, None), names, strict=False) if a != b)
        raise CheckpointError(
            f"{path} has class {other[0]!r} where the label space of DATASETS.TEST has {other[1]!r}; it was extended "
            "from a model of another data set"
        )
    if split.num_classes > len(names):
        model.widen(split, torch.cat([model.class_embeddings, embeddings[len(names) :].to(model.class_embeddings)]))
        logging.getLogger(__name__).info("%s adds the classes %s", path, ", ".join(split.names[len(names) :]))


def _drop_added_rows(state: dict[str, Tensor], model: PADing, described: Mapping[str, Any], path: str) -> None:
    """Keep the classifier's rows of the model's own classes: a training does not start with added ones."""
    split, _ = _read_label_space(described, path)
    kept = [*split.ids_of(model.label_space.names), split.num_classes]
    for name in (f"{CLASSIFIER}.{parameter}" for parameter in _PARAMETERS):
        if name in state:
            state[name] = state[name][kept]


def _fit_parameter(
    state: dict[str, Tensor], model: PADing, parameter: str, *, starts_classifier: bool, repaired: bool
) -> None:
    """Put the narrow rows of one parameter into ``state`` and, if asked, the wide ones.

    Args:
        state: of the checkpoint; changed in place.
        model: its label space, and its initial rows of unseen classes.
        parameter: ``weight`` or ``bias``.
        starts_classifier: whether the wide rows are wanted.
        repaired: the checkpoint's head was widened by the released converter.
    """
    rows = state[f"{HEAD}.{parameter}"]
    model_state, num_classes, options = model.state_dict(), model.num_test_classes, model.options
    initial = model_state.get(f"{CLASSIFIER}.{parameter}", torch.zeros(num_classes + 1, *rows.shape[1:]))
    if options.unseen_init == "zeros":
        initial = torch.zeros_like(initial)
    # (rows, D): the segmentor's head does not look at features pooled beside its queries; zeros until it is trained.
    padded = F.pad(rows, (0, initial.shape[-1] - rows.shape[-1])) if rows.dim() == 2 else rows
    narrow, wide = fit_class_head(padded, model.class_ids, num_classes, initial)
    state[f"{HEAD}.{parameter}"] = narrow[:, : rows.shape[-1]] if rows.dim() == 2 else narrow
    if not starts_classifier:
        return
    if options.unseen_init != "pretrained":
        wide[model.unseen_ids] = initial[model.unseen_ids].to(wide)
    if options.official_head_pad and (repaired or len(rows) == len(narrow)):
        wide = pad_rows(narrow, model.class_ids, num_classes)
    state[f"{CLASSIFIER}.{parameter}"] = wide
