# SPDX-License-Identifier: Apache-2.0
"""ClassSplit: numbering, narrowing, name look-up, and the published 119/14 split of COCO panoptic."""

from pathlib import Path

import pytest

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.roots import splits_dir
from padding.errors import DataError

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 7, "name": "cow", "isthing": 1, "color": [4, 5, 6]},
    {"id": 9, "name": "sky", "isthing": 0, "color": [7, 8, 9]},
    {"id": 12, "name": "road", "isthing": 0, "color": [9, 9, 9]},
]


def make_split(unseen: tuple[str, ...] = ("cow", "road")) -> ClassSplit:
    return ClassSplit.from_categories(CATEGORIES, unseen)


def test_ids_are_derived_from_names() -> None:
    split = make_split()
    assert split.num_classes == 4
    assert split.seen_ids == (0, 2)
    assert split.unseen_ids == (1, 3)
    assert split.thing_ids == {0, 1}
    assert split.contiguous_id == {3: 0, 7: 1, 9: 2, 12: 3}
    assert split.ids_of(["sky", "cat"]) == (2, 0)


def test_seen_only_renumbers_and_keeps_dataset_ids_and_colours() -> None:
    narrow = make_split().seen_only()
    assert narrow.names == ("cat", "sky")
    assert narrow.contiguous_id == {3: 0, 9: 1}
    assert narrow.is_thing == (True, False)
    assert narrow.colors == ((1, 2, 3), (7, 8, 9))
    assert narrow.unseen_ids == ()
    assert narrow.seen_ids == (0, 1)
    assert narrow.seen_only() == narrow


def test_restricted_to_keeps_order_given_and_unseen_status() -> None:
    part = make_split().restricted_to(["road", "cat"])
    assert part.names == ("road", "cat")
    assert part.unseen_ids == (0,)


def test_equal_splits_are_equal_and_hashable() -> None:
    assert make_split() == make_split()
    assert len({make_split(), make_split(), make_split(())}) == 2


def test_unknown_name_error_gives_nearest_spelling() -> None:
    with pytest.raises(ValueError, match=r"'rood' .nearest: 'road'"):
        make_split().ids_of(["rood"])
    with pytest.raises(ValueError, match=r"'cows' .nearest: 'cow'"):
        make_split(("cows",))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "cat"}, "class names appear more than once"), ({"id": 3}, "data-set ids appear more than once")],
)
def test_repeated_name_or_id_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassSplit.from_categories([*CATEGORIES[:3], {**CATEGORIES[3], **change}], ())


def test_category_without_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the fields"):
        ClassSplit.from_categories([{"id": 1}], ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "its 'id' is no integer"),
        ({"id": "3"}, "its 'id' is no integer"),
        ({"id": True}, "its 'id' is no integer"),
        ({"name": 5}, "its 'name' is no text"),
        ({"color": "red"}, "'red' is no colour; write three integers"),
        ({"color": "#12345"}, "'#12345' is no colour"),
        ({"color": [1, 2]}, r"\[1, 2\] is no colour"),
        ({"color": [1, 2, 256]}, r"256\] is no colour"),
        ({"color": [0.1, 0.2, 0.3]}, r"is no colour"),
        ({"color": 7}, "7 is no colour"),
    ],
)
def test_category_of_another_shape_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassSplit.from_categories([{"id": 1, "name": "a", **change}])


@pytest.mark.parametrize("categories", [None, {"id": 1, "name": "a"}, 5])
def test_categories_are_a_list(categories: object) -> None:
    with pytest.raises(DataError, match="in place of a list of categories"):
        ClassSplit.from_categories(categories)


def test_colours_as_annotation_tools_write_them() -> None:
    colors = ("#1f77B4", "1F77b4", [31, 119, 180], None)
    split = ClassSplit.from_categories([{"id": i, "name": str(i), "color": c} for i, c in enumerate(colors)])
    assert split.colors == ((31, 119, 180),) * 3 + ((128, 128, 128),)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="is_thing has 1 entries for 2"):
        ClassSplit(names=("a", "b"), is_thing=(True,), dataset_ids=(1, 2))


def test_read_name_list_skips_comments(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# heading\n\n cow \ntraffic light\n")
    assert read_name_list(path) == ("cow", "traffic light")


@pytest.mark.parametrize(("text", "message"), [("cow\ncow\n", "more than once"), ("# nothing\n", "holds no name")])
def test_read_name_list_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"names.txt.*{message}"):
        read_name_list(path)


def test_read_name_list_reads_the_table_of_an_annotation_tool(tmp_path: Path) -> None:
    """Its header was a class, so that every label had the name of the one before."""
    path = tmp_path / "_classes.csv"
    path.write_text("Pixel Value, Class\n0, background\n1, swimming pool\n2, car")
    assert read_name_list(path) == ("background", "swimming pool", "car")
    path.write_text("__ignore__\n_background_\ncar\n")
    assert read_name_list(path) == ("_background_", "car"), "labelme's: void had the label of the background"
    path.write_text("Pixel Value, Class\n0, background\n255, car\n")
    with pytest.raises(DataError, match=r"_classes\.csv: the pixel values are not 0 to 1 .*LABEL_VALUES"):
        read_name_list(path)


def test_read_name_list_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        read_name_list("absent.txt")


def test_coco_119_14_has_the_published_ids() -> None:
    """Contiguous and COCO ids of the 14 unseen classes as published with the split (index in the 133-class table)."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    split = ClassSplit.from_categories(COCO_CATEGORIES, read_name_list(splits_dir() / "coco_zsp_119_14.txt"))
    assert split.num_classes == 133
    assert split.unseen_ids == (19, 23, 28, 29, 36, 51, 76, 83, 97, 99, 100, 116, 119, 125)
    dataset_ids = tuple(split.dataset_ids[i] for i in split.unseen_ids)
    assert dataset_ids == (21, 25, 33, 34, 41, 57, 87, 100, 145, 148, 149, 184, 187, 193)
    assert len(split.seen_ids) == 119
    assert sum(split.is_thing[i] for i in split.unseen_ids) == 7
    assert split.thing_ids == frozenset(range(80))
