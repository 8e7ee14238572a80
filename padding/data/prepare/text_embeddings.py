# SPDX-License-Identifier: Apache-2.0
"""CLIP text embeddings of class names: prompts, encoder with a cut context, cache (PADing, section 3).

Every prompt is filled with every synonym of a class; the embeddings are normalised, averaged, and normalised again.
Letters: K classes, N texts, E width of the embeddings, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from padding.data.class_embeddings import FloatArray, normalise_rows
from padding.data.files import replacing
from padding.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    # The selection that PADing's panoptic and semantic configurations use; the last one ends without a full stop.
    "imagenet_select": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "A photo of a {} in the scene",
    ),
    "single": ("a photo of a {}.",),
}
TEMPLATE_SET_NAMES = (*TEMPLATE_SETS, "imagenet")
SYNONYM_SEPARATOR = ", "

# What COCO appends to say "all kinds of" or "the stuff, not the thing".
_NAME_SUFFIX = re.compile(r"-(merged|other|stuff)$")


def templates_of(name: str) -> tuple[str, ...]:
    """Prompts of a set, each with one ``{}``; ``imagenet`` are the 80 that open_clip ships.

    Raises:
        ValueError: unknown set.
    """
    if name == "imagenet":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in TEMPLATE_SETS:
        raise ConfigError(f"unknown template set {name!r}; choose one of {TEMPLATE_SET_NAMES}")
    return TEMPLATE_SETS[name]


def clean_name(name: str) -> str:
    """A class name as a person would write it: ``sky-other-merged`` becomes ``sky``, ``wall-brick`` ``wall brick``."""
    synonyms = []
    for synonym in name.split(SYNONYM_SEPARATOR):
        while _NAME_SUFFIX.search(synonym):
            synonym = _NAME_SUFFIX.sub("", synonym)
        synonyms.append(re.sub(r"[-_\s]+", " ", synonym).strip())
    return SYNONYM_SEPARATOR.join(synonyms)


def clean_names(names: Sequence[str]) -> list[str]:
    """`clean_name` of all; two classes must not end up with the same text.

    Raises:
        DataError: naming the classes that would.
    """
    cleaned = [clean_name(name) for name in names]
    counts = Counter(cleaned)
    merged = [name for name, text in zip(names, cleaned, strict=True) if counts[text] > 1]
    if merged:
        raise DataError(f"cleaning gives these classes the same text: {', '.join(merged)}; clean the names by hand")
    return cleaned


def prompts_of(name: str, templates: Sequence[str]) -> list[str]:
    """Every template filled with every synonym of one class name."""
    return [template.format(synonym) for synonym in name.split(SYNONYM_SEPARATOR) for template in templates]


def encode_texts(model: nn.Module, tokens: Tensor, *, cut_context: bool = True) -> FloatArray:
    """Normalised text embeddings (N, E) float32 of an open_clip model with a text tower, in eval mode.

    The text transformer is causal and read out at the end-of-text token, so that what follows the last such token of
    the batch has no influence: it is cut off, which is several times faster and equal up to rounding. Of the tokens (N,
    L) int64 the end-of-text token is the largest of its row.
    """
    import torch
    from torch.func import functional_call

    device = next(model.parameters()).device
    tokens = tokens.to(device)
    shorter = _shorter_tensors(model, int(tokens.argmax(dim=1).max()) + 1) if cut_context else None
    with torch.no_grad():
        if shorter is None:
            features = model.encode_text(tokens)  # type: ignore[operator]
        else:
            length = next(iter(shorter.values())).shape[0]
            output = functional_call(model, shorter, args=(), kwargs={"text": tokens[:, :length]})
            features = output["text_features"] if isinstance(output, dict) else output[1]
    return normalise_rows(features.float().cpu().numpy())


def class_text_embeddings(
    names: Sequence[str],
    encode: Callable[[list[str]], FloatArray],
    templates: Sequence[str],
    *,
    cache: TextCache | None = None,
) -> FloatArray:
    """One embedding for each class text, (K, E) float32, rows of norm 1.

    Args:
        names: class texts, possibly with synonyms behind commas.
        encode: texts to (N, E) normalised embeddings.
        templates: prompts with one ``{}`` each.
        cache: where finished classes are kept; None: nowhere.
    """
    rows = []
    for name in names:
        row = cache.read(name) if cache is not None else None
        if row is None:
            row = normalise_rows(encode(prompts_of(name, templates)).mean(axis=0, keepdims=True))[0]
            if cache is not None:
                cache.write(name, row)
        rows.append(row)
    return np.stack(rows)


class TextCache:
    """Embeddings of class texts on disk, found by model, prompts and text; a damaged entry counts as missing."""

    def __init__(self, folder: Path, *, model: str, templates: Sequence[str]) -> None:
        self.folder = folder
        self._key = [model, *templates]

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(json.dumps([*self._key, name]).encode()).hexdigest()
        return self.folder / f"{digest}.npy"

    def read(self, name: str) -> FloatArray | None:
        """The (E,) embedding of a text, None where there is none."""
        with suppress(OSError, ValueError, EOFError):
            row = np.load(self._path(name), allow_pickle=False)
            if row.ndim == 1 and row.dtype == np.float32 and np.isfinite(row).all():
                return row
        return None

    def write(self, name: str, row: FloatArray) -> None:
        """Keep the (E,) embedding of a text."""
        with replacing(self._path(name), flush=False) as temporary, temporary.open("wb") as stream:
            np.save(stream, row)


def _shorter_tensors(model: nn.Module, length: int) -> dict[str, Tensor] | None:
    """Positional embedding and causal mask for ``length`` tokens, by name; None: the model cannot be cut."""
    from torch import Tensor, nn

    text = getattr(model, "text", None)
    tower, prefix = (text, "text.") if isinstance(text, nn.Module) else (model, "")
    position = getattr(tower, "positional_embedding", None)
    mask = getattr(tower, "attn_mask", None)
    pooling = getattr(tower, "pool_type", getattr(tower, "text_pool_type", ""))
    if not isinstance(position, Tensor) or not isinstance(mask, Tensor) or length >= position.shape[0]:
        return None
    # A class token at the end, or reading out at another place than end-of-text, needs the whole context.
    if pooling not in ("argmax", "eos") or getattr(tower, "cls_emb", None) is not None:
        return None
    return {f"{prefix}positional_embedding": position[:length], f"{prefix}attn_mask": mask[:length, :length]}
