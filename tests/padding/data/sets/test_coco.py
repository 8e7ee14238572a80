# SPDX-License-Identifier: Apache-2.0
"""The published zero-shot splits of COCO: counts, order, ids."""

from pathlib import Path

import numpy as np
import pytest

from padding.data.class_split import read_name_list
from padding.data.roots import splits_dir
from padding.data.sets.coco import coco_zsi_split, coco_zsp_split, coco_zss_split, read_class_table

# Values below 182 that COCO-Stuff's PNGs never hold (its paper's labels.txt).
UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}


def test_coco_stuff_has_156_seen_classes_first_and_15_unseen() -> None:
    split = coco_zss_split()
    assert split.seen_ids == tuple(range(156))
    assert split.unseen_ids == tuple(range(156, 171))
    values = split.dataset_ids
    assert set(values) == set(range(182)) - UNUSED
    assert list(values[:156]) == sorted(values[:156])
    assert values[156:] == (20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171)
    assert split.names[156:] == read_name_list(splits_dir() / "coco_zss_156_15.txt")
    # Appendix of the released code's class table, some of each end: contiguous id, value, name.
    for index, value, name in ((0, 0, "person"), (19, 21, "elephant"), (72, 89, "toothbrush"), (155, 181, "wood")):
        assert (split.names[index], values[index]) == (name, value)


def test_things_of_coco_stuff_are_the_eighty_of_coco() -> None:
    split = coco_zss_split()
    things = {split.names[i]: split.dataset_ids[i] + 1 for i in split.thing_ids}
    panoptic = coco_zsp_split()
    assert things == {panoptic.names[i]: panoptic.dataset_ids[i] for i in panoptic.thing_ids}


def test_a_table_is_a_name_list_too() -> None:
    assert set(read_name_list(splits_dir() / "coco_stuff_171.tsv")) == set(coco_zss_split().names)


@pytest.mark.parametrize(("name", "seen", "unseen"), [("48_17", 48, 17), ("65_15", 65, 15)])
def test_instance_splits_follow_the_columns_of_their_word_vectors(name: str, seen: int, unseen: int) -> None:
    split = coco_zsi_split(name)
    assert split.seen_ids == tuple(range(seen))
    assert split.unseen_ids == tuple(range(seen, seen + unseen))
    assert all(split.is_thing)
    with np.load(splits_dir().parent / "embeddings" / f"word2vec_coco_{name}.npz", allow_pickle=False) as table:
        assert tuple(table["names"].tolist()) == split.names


def test_instance_ids_are_those_of_coco() -> None:
    first, second = coco_zsi_split("48_17"), coco_zsi_split("65_15")
    assert first.dataset_ids[48:] == (6, 18, 21, 22, 28, 32, 41, 47, 49, 61, 63, 76, 81, 87, 5, 17, 36)
    assert second.dataset_ids[65:] == (5, 7, 14, 17, 23, 33, 34, 36, 48, 54, 58, 70, 74, 80, 89)
    assert set(first.dataset_ids) < set(second.dataset_ids)
    with pytest.raises(ValueError, match=r"unknown split '50_30'.*48_17, 65_15"):
        coco_zsi_split("50_30")


def test_damaged_table_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("# head\n0\tthing\tdog\n1 stuff sea\n")
    with pytest.raises(ValueError, match=r"t\.tsv, line 3: expected 'id<tab>thing or stuff<tab>name', found '1 stuff"):
        read_class_table(tmp_path / "t.tsv")
