# SPDX-License-Identifier: Apache-2.0
"""Lists of labeled and unlabeled images: hashes, checks that find what is wrong, drawing, writing."""

import shutil
from pathlib import Path

import pytest

import padding.data.prepare.split_lists
import padding.data.semi_splits
from padding.data.prepare.split_lists import (
    check_pools,
    check_shipped_split,
    check_split,
    draw_labeled,
    image_ids_in,
    labeled_by_files,
    published_lists,
    write_split,
)
from padding.data.roots import splits_dir
from padding.data.semi_splits import read_semi_split, shipped_splits


@pytest.mark.parametrize("name", shipped_splits())
def test_shipped_split_is_what_was_published(name: str) -> None:
    report = check_shipped_split(name)
    assert report.problems == ()
    assert report.digest == read_semi_split(name).digest


def test_whole_sets_are_what_was_published() -> None:
    assert check_pools() == []


def test_every_list_is_in_the_table_and_nothing_else() -> None:
    files = {str(path.relative_to(splits_dir())) for path in splits_dir().rglob("*labeled.txt")}
    listed = {name for name, row in published_lists().items() if row.pool != "-"}
    assert listed == files
    pools = {row.pool for row in published_lists().values() if not row.pool.isdigit()} - {"-"}
    assert pools < set(published_lists())


@pytest.mark.data
def test_hashes_are_those_of_the_origin(real_data: Path) -> None:
    rows = [line.split("|") for line in (real_data / "splits" / "ORIGIN.md").read_text().splitlines()]
    origin = {row[1].strip(): (row[2].strip(), row[6].strip()) for row in rows if len(row) > 7 and ".txt" in row[1]}
    assert len(origin) == 57
    ours = {name: (str(row.num_ids), row.sha256) for name, row in published_lists().items()}
    assert {name: ours[name] for name in origin} == origin
    assert all(name.startswith(("camvid/", "ccp/", "shapes/", "pascal_context/")) for name in set(ours) - set(origin))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one split and the table, in the place of the shipped lists."""
    for name in ("lists.tsv", "camvid"):
        source = splits_dir() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for module in (padding.data.prepare.split_lists, padding.data.semi_splits):
        monkeypatch.setattr(module, "splits_dir", lambda: tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_list_is_found(copied: Path) -> None:
    assert check_shipped_split("camvid/1_8").problems == ()
    edit(copied / "camvid/1_8/labeled.txt", "0001TP_006840\n", "0001TP_006841\n")
    problems = check_shipped_split("camvid/1_8").problems
    assert len(problems) == 1
    assert "labeled.txt has the hash" in problems[0]
    assert "published is 12fb892f46c5ed34" in problems[0]


def test_a_lost_line_is_found(copied: Path) -> None:
    edit(copied / "camvid/1_8/unlabeled.txt", "0001TP_006690\n", "")
    text = "; ".join(check_shipped_split("camvid/1_8").problems)
    assert "unlabeled.txt holds 320 ids, published are 321" in text
    assert "the lists hold 366 images, the protocol has 367" in text


def test_a_missing_list_and_a_split_without_row_are_found(copied: Path) -> None:
    (copied / "camvid/1_4/unlabeled.txt").unlink()
    assert "unlabeled.txt: no such list" in check_shipped_split("camvid/1_4").problems[0]
    shutil.copytree(copied / "camvid/1_2", copied / "camvid/new")
    assert "camvid/new/labeled.txt is not in lists.tsv" in check_shipped_split("camvid/new").problems[0]
    assert "voc/train.txt is missing" in check_pools()


def test_a_damaged_table_is_an_error(copied: Path) -> None:
    edit(copied / "lists.tsv", "\tdrawn\t-", "")
    with pytest.raises(ValueError, match=r"lists\.tsv: the row 'camvid.*has 4 columns instead of 6"):
        published_lists()


# Own lists ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("b.jpg", "a.PNG", "more/c.jpeg", ".hidden.jpg", "notes.txt", "d.webp", "e.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_of_a_folder(images: Path) -> None:
    assert image_ids_in(images) == ("a", "b", "d", "e")
    assert image_ids_in(images, subfolders=True) == ("a", "b", "d", "e", "more/c")
    (images / "a.jpg").touch()
    with pytest.raises(ValueError, match="have one id"):
        image_ids_in(images)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        image_ids_in(images / "nothing")
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no image .*--subfolders"):
        image_ids_in(images / "empty")


def test_labels_beside_the_images_are_none(images: Path) -> None:
    (images / "a_mask.png").touch()
    assert image_ids_in(images, label_suffix="_mask.png") == ("a", "b", "d", "e")
    assert "a_mask" in image_ids_in(images)


def test_own_lists_are_compared_with_the_images(images: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "good", ("a",), ("b", "d", "e", "more/c"))
    ids = image_ids_in(images, subfolders=True)
    report = check_split(tmp_path / "good", image_ids=ids)
    assert (report.labeled, report.unlabeled, report.problems) == (1, 4, ())
    write_split(tmp_path / "bad", ("a", "x"), ("b", "y", "d"))
    report = check_split(tmp_path / "bad", image_ids=ids)
    assert report.problems == (
        "2 ids are listed, but there is no such image, first x, y",
        "2 ids are in neither list, first e, more/c",
    )
    assert check_split(tmp_path / "bad").problems == ()


def test_a_common_id_is_a_problem(tmp_path: Path) -> None:
    write_split(tmp_path, ("a", "b"), ("b", "c"))
    assert "1 images are in both lists, first b" in check_split(tmp_path).problems[0]


def test_own_folder_is_meant_even_if_a_shipped_split_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_split("shapes/24", ("a",), ("b",))
    assert check_split("shapes/24").labeled == 1
    assert check_split("shapes/24").name == "shapes/24"


def test_drawing_is_reproducible_nested_and_complete() -> None:
    pool = [f"{i:03d}" for i in range(50)]
    small, rest = draw_labeled(reversed(pool), 10, seed=4)
    assert (small, rest) == draw_labeled(pool, 10, seed=4)
    assert sorted((*small, *rest)) == pool
    assert len(small) == 10
    assert list(small) == sorted(small)
    assert set(small) < set(draw_labeled(pool, 20, seed=4)[0])
    assert small != draw_labeled(pool, 10, seed=5)[0]


@pytest.mark.parametrize(
    ("name", "count"),
    [("camvid/1_8", 46), ("camvid/1_4", 92), ("camvid/1_2", 184), ("shapes/24", 24), ("shapes/96", 96)],
)
def test_shipped_lists_of_ours_are_drawn_by_this_rule(name: str, count: int) -> None:
    split = read_semi_split(name)
    assert draw_labeled((*split.labeled, *split.unlabeled), count, seed=0) == (split.labeled, split.unlabeled)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_drawing_all_or_none_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot label {count} of 3 images; choose a number from 1 to 2"):
        draw_labeled(("a", "b", "c"), count, seed=0)


def test_images_with_label_files(tmp_path: Path) -> None:
    for name in ("b.png", "c.jpg", "x.png", ".a.png"):
        (tmp_path / name).touch()
    assert labeled_by_files(("c", "b", "a"), tmp_path) == (("b",), ("a", "c"))
    with pytest.raises(ValueError, match=r"holds labels \(ID\.png\) of 0 of the 2 images"):
        labeled_by_files(("c", "a"), tmp_path)
    assert labeled_by_files(("c", "b"), tmp_path, suffix=".jpg") == (("c",), ("b",))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b_mask.png").touch()
    assert labeled_by_files(("more/b", "b"), tmp_path, suffix="_mask.png") == (("more/b",), ("b",))
    with pytest.raises(ValueError, match="of 2 of the 2 images"):
        labeled_by_files(("b", "x"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of labels"):
        labeled_by_files(("a",), tmp_path / "none")


def test_written_lists_are_read_again_and_never_overwritten(tmp_path: Path) -> None:
    write_split(tmp_path / "deep" / "lists", ("b", "ü"), ("c",))
    split = read_semi_split(str(tmp_path / "deep" / "lists"))
    assert (split.labeled, split.unlabeled) == (("b", "ü"), ("c",))
    with pytest.raises(FileExistsError, match=r"labeled\.txt exists; choose another folder"):
        write_split(tmp_path / "deep" / "lists", ("a",), ("b",))
    assert sorted(path.name for path in (tmp_path / "deep" / "lists").iterdir()) == ["labeled.txt", "unlabeled.txt"]
