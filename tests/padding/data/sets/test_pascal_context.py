# SPDX-License-Identifier: Apache-2.0
"""PASCAL-Context: two orders of its classes, numbers found through names, labels from .mat files, registered sets."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data import registration
from padding.data.class_split import class_split_of
from padding.data.roots import splits_dir
from padding.data.sets.pascal_context import (
    CONTEXT_FOLDER,
    CONTEXT_LABELS,
    context_classes,
    context_ids,
    context_label_map,
    context_lookup,
    context_split,
    context_tags,
    read_context_mat,
    read_label_names,
    register_pascal_context,
)
from padding.data.sets.voc import VOC_NAMES


@pytest.fixture(autouse=True)
def _restore_catalogs() -> Iterator[None]:
    yield
    for name in [name for name in DatasetCatalog.list() if name.startswith("pascal_context_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        registration._registered.discard(name)


def write_labels_txt(path: Path, *, shift: int = 0) -> Path:
    """A labels.txt of 459 names; with a shift the classes have other numbers than in our table."""
    names = {(c.raw_id + shift - 1) % 459 + 1: c.raw_name for c in context_classes()[1:]}
    path.write_text("".join(f"{i}: {names.get(i, f'other{i}')}\n" for i in range(1, 460)))
    return path


def test_order_starts_with_the_classes_of_voc() -> None:
    names = context_split(60).names
    assert len(names) == len(set(names)) == 60
    assert names[: len(VOC_NAMES)] == VOC_NAMES
    assert names[21:23] == ("bag", "bed")
    assert names[-1] == "wood"
    assert context_split(59).names == names[1:]
    assert context_split(59).thing_ids == frozenset(range(20))
    with pytest.raises(ValueError, match="60 classes, or 59 without background; got 58"):
        context_split(58)


def test_alphabetical_order_is_the_other_one() -> None:
    """Background first, then the names of labels.txt from a to z: what the Detail API and mmsegmentation number."""
    classes = context_classes()
    assert sorted(c.alphabetical_index for c in classes) == list(range(60))
    ordered = [c.raw_name for c in sorted(classes, key=lambda c: c.alphabetical_index)]
    assert ordered == ["background", *sorted(c.raw_name for c in classes[1:])]
    assert sum(c.alphabetical_index == i for i, c in enumerate(classes)) < 20, "the orders really differ"
    raw_ids = [c.raw_id for c in sorted(classes[1:], key=lambda c: c.alphabetical_index)]
    assert raw_ids == sorted(raw_ids), "the 459 classes stand in alphabetical order, too"


def test_tags_are_those_of_scribblesup() -> None:
    tags = context_tags()
    assert (tags["aeroplane"], tags["clothes"], tags["bedcloth"], tags["sky"]) == (
        "plane",
        "cloth",
        "bedclothes",
        "sky",
    )
    lines = (splits_dir() / "voc" / "scribble_tags.tsv").read_text().splitlines()[1:]
    voc = dict(line.split("\t") for line in lines)
    assert voc == {name: tags[name] for name in VOC_NAMES}


def test_id_lists_are_complete_and_disjoint() -> None:
    train, val = set(context_ids("train")), set(context_ids("val"))
    assert (len(train), len(val)) == (4998, 5105)
    assert not train & val


def test_shortened_id_list_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pascal_context").mkdir()
    (tmp_path / "pascal_context" / "val.txt").write_text("\n".join(context_ids("val")[:-1]))
    monkeypatch.setattr("padding.data.sets.pascal_context.splits_dir", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"val\.txt: 5104 images, the official val set has 5105"):
        context_ids("val")


def test_numbers_follow_names_not_our_table(tmp_path: Path) -> None:
    names = read_label_names(write_labels_txt(tmp_path / "labels.txt"))
    np.testing.assert_array_equal(context_lookup(names), context_lookup())
    moved = context_lookup(read_label_names(write_labels_txt(tmp_path / "labels.txt", shift=7)))
    for index, entry in enumerate(context_classes()[1:], start=1):
        assert context_lookup()[entry.raw_id] == index
        assert moved[(entry.raw_id + 7 - 1) % 459 + 1] == index
    assert (context_lookup() == 0).sum() == 460 - 59


def test_the_short_list_of_names_is_refused(tmp_path: Path) -> None:
    """59_labels.txt writes diningtable, bedcloth and clothes where labels.txt has table, bedclothes and cloth."""
    path = tmp_path / "59_labels.txt"
    path.write_text("".join(f"{i}: {c.name}\n" for i, c in enumerate(context_classes()[1:], start=1)))
    with pytest.raises(ValueError, match=r"no class 'table' among its 59 names; use the labels.txt of the 459-class"):
        context_lookup(read_label_names(path))
    path.write_text("1: aeroplane\nbicycle\n")
    with pytest.raises(ValueError, match=r"59_labels\.txt:2: expected a number, a colon and a name, got 'bicycle'"):
        read_label_names(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        read_label_names(tmp_path / "none.txt")


def test_mat_files(tmp_path: Path) -> None:
    by_name = {c.name: c.raw_id for c in context_classes()}
    raw = np.array([[by_name["sky"], by_name["person"], 1], [0, by_name["wood"], 459]], np.uint16)
    scipy.io.savemat(tmp_path / "a.mat", {"LabelMap": raw})
    labels = read_context_mat(tmp_path / "a.mat", context_lookup())
    names = np.array(context_split().names)
    assert names[labels].tolist() == [["sky", "person", "background"], ["background", "wood", "background"]]
    assert labels.dtype == np.uint8


def test_unusable_mat_files_are_named(tmp_path: Path) -> None:
    path, lookup = tmp_path / "a.mat", context_lookup()
    with pytest.raises(FileNotFoundError, match=r"a\.mat: no such file; unpack trainval"):
        read_context_mat(path, lookup)
    path.write_bytes(b"not a mat file")
    with pytest.raises(ValueError, match=r"a\.mat: no LabelMap can be read"):
        read_context_mat(path, lookup)
    scipy.io.savemat(path, {"Labels": np.zeros((2, 2), np.uint16)})
    with pytest.raises(ValueError, match=r"a\.mat: no LabelMap can be read"):
        read_context_mat(path, lookup)
    scipy.io.savemat(path, {"LabelMap": np.full((2, 2), 460, np.uint16)})
    with pytest.raises(ValueError, match=r"a\.mat: LabelMap has values from 460 to 460"):
        read_context_mat(path, lookup)


def test_registered_sets_share_the_pngs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CONTEXT_FOLDER
    for name, ending, array in (
        ("JPEGImages", "jpg", np.zeros((2, 3, 3), np.uint8)),
        (CONTEXT_LABELS, "png", np.array([[0, 1, 59], [255, 0, 2]], np.uint8)),
    ):
        (folder / name).mkdir(parents=True)
        for image_id in ("2008_000002", "2008_000003"):
            Image.fromarray(array).save(folder / name / f"{image_id}.{ending}")
    splits = tmp_path / "splits" / "pascal_context"
    splits.mkdir(parents=True)
    for part in ("train", "val"):
        (splits / f"{part}.txt").write_text("2008_000002\n2008_000003\n")
    monkeypatch.setattr("padding.data.sets.pascal_context.splits_dir", lambda: tmp_path / "splits")
    classes = context_split(60), context_split(59)
    register_pascal_context(tmp_path)
    for number, split in zip((60, 59), classes, strict=True):
        name = f"pascal_context_val_{number}"
        assert class_split_of(name).names == split.names
        assert [entry["image_id"] for entry in DatasetCatalog.get(name)] == ["2008_000002", "2008_000003"]
        label_map = MetadataCatalog.get(name).sem_seg_label_map
        assert label_map == context_label_map(number)
    assert [context_label_map(59)[value] for value in (0, 1, 59, 255)] == [255, 0, 58, 255]
    assert [context_label_map(60)[value] for value in (0, 1, 59, 255)] == [0, 1, 59, 255]
