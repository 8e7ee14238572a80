# SPDX-License-Identifier: Apache-2.0
"""Lists of ids and the images they name: order, patterns, labels that need not exist, and every error."""

from pathlib import Path

import pytest

from padding.data.loaders.listed_images import load_listed_images, read_id_list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("c.jpg", "a.JPEG", "b.png", "._b.png", "notes.txt", "deep/d.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return tmp_path


def ids_file(folder: Path, text: str) -> Path:
    path = folder / "ids.txt"
    path.write_text(text)
    return path


def load(folder: Path, **options: object) -> list[tuple[str, str, str]]:
    entries = load_listed_images(image_root=folder / "images", label_root=folder / "labels", **options)
    return [
        tuple(str(Path(entry[key]).relative_to(folder)) if "file" in key else entry[key] for key in sorted(entry))
        for entry in entries
    ]


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    assert read_id_list(ids_file(tmp_path, "# drawn\n\n b \r\na\n")) == ("b", "a")


@pytest.mark.parametrize(
    ("text", "message"), [("a\nb\na\na\n", "image id a stands 3 times"), ("# none\n\n", "the list holds no image id")]
)
def test_wrong_lists(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_id_list(ids_file(tmp_path, text))


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.txt: no such list of image ids; datasets/README\.md"):
        read_id_list(tmp_path / "no.txt")


def test_every_image_of_a_folder_in_order_of_its_name(folder: Path) -> None:
    """Labels are named but not looked for: there is no such folder."""
    assert not (folder / "labels").exists()
    assert load(folder) == [
        ("images/a.JPEG", "a", "labels/a.png"),
        ("images/b.png", "b", "labels/b.png"),
        ("images/c.jpg", "c", "labels/c.png"),
    ]


def test_the_order_of_a_list_is_kept(folder: Path) -> None:
    assert [entry[0] for entry in load(folder, image_ids=ids_file(folder, "c\na\n"))] == [
        "images/c.jpg",
        "images/a.JPEG",
    ]


def test_excluded_ids_are_left_out(folder: Path) -> None:
    assert [entry[1] for entry in load(folder, excluded_ids=ids_file(folder, "b\n"))] == ["a", "c"]


def test_patterns_with_a_city(tmp_path: Path) -> None:
    (tmp_path / "images" / "ulm").mkdir(parents=True)
    (tmp_path / "images" / "ulm" / "ulm_1_2_left.png").touch()
    found = load(
        tmp_path,
        image_ids=ids_file(tmp_path, "ulm_1_2\n"),
        image_name="{city}/{id}_left.png",
        label_name="{city}/{id}_ids.png",
    )
    assert found == [("images/ulm/ulm_1_2_left.png", "ulm_1_2", "labels/ulm/ulm_1_2_ids.png")]


@pytest.mark.parametrize("image_name", ["", "{id}.jpg"])
def test_listed_image_that_does_not_exist(folder: Path, image_name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nor (are )?1 others of the 3"):
        load(folder, image_ids=ids_file(folder, "c\nx\ny\n"), image_name=image_name)


def test_missing_and_empty_folders_and_two_files_of_one_id(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"other: no such folder of images\. Unpack it\."):
        load_listed_images(image_root=folder / "other", label_root=folder, cure="Unpack it.")
    with pytest.raises(ValueError, match="holds no image"):
        load_listed_images(image_root=folder, label_root=folder)
    (folder / "images" / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.JPEG and a\.png have one id; give every image one file"):
        load(folder)


@pytest.mark.parametrize(
    ("label_name", "names"),
    [
        ("{id}_mask.png", ["a.jpg", "a_mask.png", "b.png", "b_mask.png"]),
        ("{id}.png", ["a.jpg", "a.png", "b.jpeg", "b.png"]),
        ("{id}.png", ["a.jpg", "a.png", "b.jpg"]),  # the second without a label
    ],
)
def test_labels_beside_the_images_are_no_images(label_name: str, names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    entries = load_listed_images(image_root=tmp_path, label_root=tmp_path / ".", label_name=label_name)
    assert [entry["image_id"] for entry in entries] == ["a", "b"]
    assert [Path(entry["file_name"]).name for entry in entries] == [names[0], names[2]]
    assert [Path(entry["sem_seg_file_name"]).name for entry in entries] == [
        label_name.format(id=name) for name in ("a", "b")
    ]
