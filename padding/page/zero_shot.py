# SPDX-License-Identifier: Apache-2.0
"""Zero-shot on the page: segment an image with a bias of seen classes, add a class by its name."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from padding.build import embedding_table
from padding.data.class_embeddings import (
    EmbeddingTable,
    FloatArray,
    nearest_names,
    normalise_rows,
    read_class_embeddings,
    select_rows,
)
from padding.data.roots import splits_dir
from padding.engine.predictor import UNSEEN_MARK, Predictor
from padding.errors import ConfigError, DataError, MethodError
from padding.meta_arch import PADing
from padding.page.models import PageModel
from padding.page.pictures import Image, draw

MAX_ADDED = 20
"""Classes that can be added to a model of the page, before it is reset."""
MAX_NAME = 60
"""Letters of a class name."""
_EQUAL = 0.999  # least cosine of two vectors of one class that are of the same kind


class Segmented(NamedTuple):
    """An image segmented for the page."""

    picture: Image
    rows: list[list[str]]  # name, kind, score, share of the image; the largest segment first


def segment_image(model: PageModel, image: Image, seen_bias: float) -> Segmented:
    """Segment an image.

    Args:
        model: zero-shot.
        image: (h, w, 3) uint8, RGB.
        seen_bias: gamma, subtracted from the logits of seen classes; MODEL.PADING.TEST.SEEN_BIAS for this image.
    """
    with model.in_use() as predictor:
        network = _zero_shot(predictor)
        usual, network.seen_bias = network.seen_bias, seen_bias
        try:
            prediction = predictor(image)
            return Segmented(draw(predictor, image, prediction), _rows(predictor, prediction))
        finally:
            network.seen_bias = usual


def learn_class(model: PageModel, name: str, *, stuff: bool = False) -> str:
    """Add a class by its name alone.

    Args:
        model: zero-shot; it stays wider until it is reset.
        name: new; its vector comes from the model's own table, or a shipped one of the same kind.
        stuff: it is no countable thing.

    Returns:
        What was done, in one line.

    Raises:
        ConfigError: the name is empty, too long or known, or there are ``MAX_ADDED`` already.
        DataError: no table knows the name; the nearest spellings follow.
    """
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME:
        raise ConfigError(f"a class name has 1 to {MAX_NAME} letters, this one has {len(name)}")
    with model.in_use() as predictor:
        if len(model.added_names) >= MAX_ADDED:
            raise ConfigError(f"{MAX_ADDED} classes were added; reset the model before you add others")
        name, vector, where = find_vector(predictor, name)
        report = predictor.add_classes([name], vector[None], stuff=[name] if stuff else [])
        near = ", ".join(f"{known} ({cosine:.2f})" for known, cosine in report.nearest[name])
        return f"Added '{name}' in {report.seconds:.1f} s with its vector from {where}. Nearest known classes: {near}."


def addable_names(model: PageModel) -> tuple[str, ...]:
    """Names that can be added: tables of the model's kind have them, the model has not."""
    with model.in_use() as predictor:
        known = set(predictor.class_names)
        found = {name: None for table, _ in _tables(predictor) for name in table.names if name not in known}
        return tuple(found)


def find_vector(predictor: Predictor, name: str) -> tuple[str, FloatArray, str]:
    """A name as a table spells it, its vector (E,), and the table; capitals do not matter.

    Raises:
        DataError: no table of the model's kind knows the name.
    """
    tables = _tables(predictor)
    for table, where in tables:
        by_lower = {known.lower(): known for known in table.names}
        if name.lower() in by_lower:
            spelt = by_lower[name.lower()]
            return spelt, select_rows(table, [spelt], where)[0], where
    known = [known for table, _ in tables for known in table.names if known not in predictor.class_names]
    near = nearest_names(name, known) or known[:3]
    raise DataError(
        f"no table of this model's kind has a vector of '{name}'; "
        + (f"nearest: {', '.join(near)}" if near else "write one with datasets/prepare_class_embeddings.py")
    )


def _tables(predictor: Predictor) -> list[tuple[EmbeddingTable, str]]:
    """The model's own table, then shipped ones whose vectors of its classes are the same."""
    own, where = embedding_table(predictor.cfg)
    found = [(own, Path(where).name)]
    for path in sorted((splits_dir().parent / "embeddings").glob("*.npz")):
        table = read_class_embeddings(path)
        if table.names != own.names and _of_one_kind(own, table):
            found.append((table, path.name))
    return found


def _of_one_kind(own: EmbeddingTable, other: EmbeddingTable) -> bool:
    """Whether two tables give the classes that both have the same directions."""
    common = [name for name in own.names if name in set(other.names)]
    if not common or own.embeddings.shape[1] != other.embeddings.shape[1]:
        return False
    ours, theirs = (normalise_rows(select_rows(table, common, "")) for table in (own, other))
    return bool(((ours * theirs).sum(axis=1) > _EQUAL).all())


def _zero_shot(predictor: Predictor) -> PADing:
    if not isinstance(predictor.model, PADing):
        raise MethodError(f"{type(predictor.model).__name__} has no unseen classes; choose a model of PADing")
    return predictor.model


def _rows(predictor: Predictor, prediction: dict[str, Any]) -> list[list[str]]:
    split = predictor.label_space
    if "panoptic_seg" not in prediction:
        return []
    ids, segments = prediction["panoptic_seg"]
    areas = torch.bincount(ids.flatten()).tolist()
    rows = []
    for segment in sorted(segments, key=lambda one: -areas[one["id"]]):
        name = split.names[segment["category_id"]]
        marked = f"{name}{UNSEEN_MARK}" if name in split.unseen_names else name
        kind = "thing" if segment["isthing"] else "stuff"
        rows.append(
            [marked, kind, f"{100 * segment['score']:.0f} %", f"{100 * areas[segment['id']] / ids.numel():.1f} %"]
        )
    return rows
