# SPDX-License-Identifier: Apache-2.0
"""Class embeddings from word vectors (word2vec, GloVe, fastText in word2vec format), for names of several words too.

A class is looked up as a whole ("hot_dog" is one entry of the GoogleNews vectors), then as the mean of its words.
Only the plain text and binary formats are read: gensim's own format is a pickle, which can run code when opened.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from padding.data.class_embeddings import FloatArray
from padding.data.prepare.text_embeddings import clean_name
from padding.errors import DataError, MissingFileError

_BINARY_SUFFIXES = (".bin", ".bin.gz")
# VOC and COCO-Stuff write these as one word; few vectors hold them.
_COMPOUNDS = {
    "diningtable": ("dining", "table"),
    "playingfield": ("playing", "field"),
    "pottedplant": ("potted", "plant"),
    "tvmonitor": ("tv", "monitor"),
    "waterdrops": ("water", "drops"),
}


class WordVectors(Protocol):
    """What is used of gensim's KeyedVectors."""

    @property
    def key_to_index(self) -> Container[str]:
        """The known words."""

    def __getitem__(self, key: str) -> FloatArray: ...


def read_word_vectors(path: str | Path, *, limit: int | None = None) -> WordVectors:
    """Read word vectors with gensim; binary where the name ends in ``.bin`` or ``.bin.gz``, text otherwise.

    Args:
        path: local file in word2vec format.
        limit: read only the first (most frequent) words.

    Raises:
        MissingFileError: no such file, with the cure.
        DataError: not in word2vec format.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"No word vectors at {path}. Nothing is downloaded: fetch them by hand, for example "
            "GoogleNews-vectors-negative300.bin.gz, and give the path with --vectors."
        )
    from gensim.models import KeyedVectors

    binary = path.name.endswith(_BINARY_SUFFIXES)
    try:
        vectors: WordVectors = KeyedVectors.load_word2vec_format(str(path), binary=binary, limit=limit)
    except (ValueError, EOFError, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} is not in word2vec {'binary' if binary else 'text'} format ({error}). Text starts with a line "
            "`count width`; binary files end in .bin or .bin.gz."
        ) from error
    return vectors


def spellings(text: str) -> list[str]:
    """Keys under which word vectors may hold a text, best first: words joined by "_", then other capitals."""
    joined = re.sub(r"[\s_]+", "_", text.strip())
    variants = [joined, joined.lower(), joined.title(), joined.replace("_", "").lower()]
    return list(dict.fromkeys(variants))


def word_embedding(name: str, vectors: WordVectors) -> tuple[FloatArray | None, str]:
    """Embedding of one class name, and how it was found.

    Returns:
        The (E,) vector and a note; None and the missing words where a word is unknown.
    """
    text = clean_name(name)
    whole = _find(name, vectors) or _find(text, vectors)
    if whole is not None:
        return np.asarray(vectors[whole], dtype=np.float32), whole
    words = [part for word in re.findall(r"[^\s,]+", text) for part in _parts(word, vectors)]
    keys = [_find(word, vectors) for word in words]
    missing = [word for word, key in zip(words, keys, strict=True) if key is None]
    if missing or not words:
        return None, " ".join(missing) or name
    found = [key for key in keys if key is not None]
    mean = np.mean([np.asarray(vectors[key], dtype=np.float64) for key in found], axis=0)
    return mean.astype(np.float32), "mean of " + " ".join(found)


def word_embeddings(names: Sequence[str], vectors: WordVectors) -> tuple[FloatArray, dict[str, str]]:
    """Embeddings of class names, (K, E) float32, and for each name how it was found.

    Raises:
        DataError: listing every class of which a word is unknown.
    """
    rows, notes, unknown = [], {}, []
    for name in names:
        row, note = word_embedding(name, vectors)
        if row is None:
            unknown.append(f"{name!r} (no vector for {note!r})")
        else:
            rows.append(row)
            notes[name] = note
    if unknown:
        raise DataError(
            f"the word vectors do not know {len(unknown)} of {len(names)} classes: {', '.join(unknown)}. "
            "Rename the classes, read more words (--limit), or use other vectors."
        )
    return np.stack(rows), notes


def _parts(word: str, vectors: WordVectors) -> tuple[str, ...]:
    return (word,) if _find(word, vectors) is not None else _COMPOUNDS.get(word, (word,))


def _find(text: str, vectors: WordVectors) -> str | None:
    return next((key for key in spellings(text) if key in vectors.key_to_index), None)
