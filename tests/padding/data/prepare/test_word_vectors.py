# SPDX-License-Identifier: Apache-2.0
"""Word vectors by gensim: formats, whole names and means of words, unknown words."""

import numpy as np
import pytest
from gensim.models import KeyedVectors

from padding.data.prepare.word_vectors import read_word_vectors, spellings, word_embeddings

WORDS = {
    "cow": [1.0, 0.0],
    "hot": [0.0, 1.0],
    "dog": [1.0, 1.0],
    "hot_dog": [5.0, 5.0],
    "teddy": [0.0, 3.0],
    "bear": [3.0, 0.0],
    "Frisbee": [2.0, 2.0],
    "sky": [4.0, 0.0],
    "brick": [0.0, 2.0],
    "wall": [2.0, 0.0],
}


@pytest.fixture(scope="module", params=["vectors.txt", "vectors.bin"])
def vectors_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / request.param
    vectors = KeyedVectors(vector_size=2)
    vectors.add_vectors(list(WORDS), np.array(list(WORDS.values()), dtype=np.float32))
    vectors.save_word2vec_format(str(path), binary=path.suffix == ".bin")
    return path


def test_whole_names_first_then_the_mean_of_the_words(vectors_file):
    names = ["cow", "hot dog", "teddy bear", "frisbee", "sky-other-merged", "wall-brick"]
    rows, notes = word_embeddings(names, read_word_vectors(vectors_file))
    np.testing.assert_array_equal(rows, [[1, 0], [5, 5], [1.5, 1.5], [2, 2], [4, 0], [1, 1]])
    assert rows.dtype == np.float32
    assert notes["hot dog"] == "hot_dog"
    assert notes["teddy bear"] == "mean of teddy bear"
    assert notes["frisbee"] == "Frisbee"


def test_every_unknown_class_is_listed(vectors_file):
    with pytest.raises(ValueError, match="do not know 2 of 3 classes") as caught:
        word_embeddings(["cow", "zebra", "teddy xylophone"], read_word_vectors(vectors_file))
    assert "'zebra' (no vector for 'zebra')" in str(caught.value)
    assert "'teddy xylophone' (no vector for 'xylophone')" in str(caught.value)


def test_limit_reads_the_first_words_only(vectors_file):
    vectors = read_word_vectors(vectors_file, limit=2)
    with pytest.raises(ValueError, match="--limit"):
        word_embeddings(["cow", "wall"], vectors)


def test_spellings():
    assert spellings("hot dog") == ["hot_dog", "Hot_Dog", "hotdog"]
    assert spellings("TV") == ["TV", "tv", "Tv"]


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing is downloaded"):
        read_word_vectors(tmp_path / "none.bin")
    for name in ("page.txt", "page.bin"):
        (tmp_path / name).write_text("<html>a saved page</html>\n")
        with pytest.raises(ValueError, match=rf"{name} is not in word2vec (text|binary) format"):
            read_word_vectors(tmp_path / name)
