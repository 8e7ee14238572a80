# SPDX-License-Identifier: Apache-2.0
"""Loader of panoptic JSON: contiguous ids, policies for unseen classes, and one clear error per kind of broken data."""

import logging
from pathlib import Path
from typing import Any

import pytest

from padding.data.loaders.panoptic_json import load_panoptic
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPanoptic:
    return write_tiny_panoptic(tmp_path / "tiny")


def narrow(tiny: TinyPanoptic, **changes: Any) -> dict[str, Any]:
    return {**tiny.registration, "class_split": tiny.class_split.seen_only(), **changes}


def test_entries_follow_the_file(tiny: TinyPanoptic) -> None:
    entries = load_panoptic(**tiny.registration, sem_seg_root=tiny.sem_seg_root)
    assert [entry["image_id"] for entry in entries] == [1, 2, 3, 4]
    first, second = entries[:2]
    assert Path(first["file_name"]).is_file()
    assert Path(first["pan_seg_file_name"]).is_file()
    assert Path(first["sem_seg_file_name"]).is_file()
    assert (first["height"], first["width"]) == (64, 96)
    # sky, ground, box, tower: data-set ids 40, 43, 2, 5.
    assert [s["category_id"] for s in first["segments_info"]] == [3, 5, 0, 1]
    assert [s["isthing"] for s in first["segments_info"]] == [False, False, True, True]
    assert [s["iscrowd"] for s in second["segments_info"]] == [0, 0, 0, 1, 0]
    assert "void_segment_ids" not in second


def test_narrow_space_renumbers(tmp_path: Path) -> None:
    tiny = write_tiny_panoptic(tmp_path, with_unseen=False)
    entries = load_panoptic(**narrow(tiny))
    # Narrow: box 0, tower 1, sky 2, ground 3.
    assert [s["category_id"] for s in entries[0]["segments_info"]] == [2, 3, 0, 1]


def test_unseen_segment_in_narrow_space_is_an_error_naming_the_image(tiny: TinyPanoptic) -> None:
    with pytest.raises(ValueError, match=r"image 000000000002\.png holds 'lake' \(category 41\).*unseen_policy"):
        load_panoptic(**narrow(tiny))


def test_seen_only_guards_a_wide_space(tiny: TinyPanoptic) -> None:
    with pytest.raises(ValueError, match=r"000000000002\.png holds 'lake'.*4 classes"):
        load_panoptic(**tiny.registration, seen_only=True)
    kept = load_panoptic(**tiny.registration, seen_only=True, unseen_policy="drop_image")
    assert [entry["image_id"] for entry in kept] == [1, 3]
    assert [s["category_id"] for s in kept[0]["segments_info"]] == [3, 5, 0, 1]


def test_ignore_pixels_turns_unseen_segments_into_void(tiny: TinyPanoptic, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    entries = load_panoptic(**narrow(tiny, unseen_policy="ignore_pixels"))
    assert len(entries) == 4
    annotated = tiny.read_panoptic_json()["annotations"][1]["segments_info"]
    assert entries[1]["void_segment_ids"] == [s["id"] for s in annotated if s["category_id"] in (6, 41)]
    assert [s["category_id"] for s in entries[1]["segments_info"]] == [2, 0, 1]
    assert "4 segments of unseen classes count as void" in caplog.text


def test_drop_image_says_how_many_are_kept(tiny: TinyPanoptic, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    entries = load_panoptic(**narrow(tiny, unseen_policy="drop_image"))
    assert [entry["image_id"] for entry in entries] == [1, 3]
    assert "kept 2 of 4 images" in caplog.text


def test_unknown_policy(tiny: TinyPanoptic) -> None:
    with pytest.raises(ValueError, match="unseen_policy is 'skip'"):
        load_panoptic(**tiny.registration, unseen_policy="skip")  # type: ignore[arg-type]


def test_image_without_annotation_or_segments_stays(tiny: TinyPanoptic) -> None:
    content = tiny.read_panoptic_json()
    del content["annotations"][0]
    content["annotations"][0]["segments_info"] = []
    tiny.write_panoptic_json(content)
    entries = load_panoptic(**tiny.registration)
    assert [len(entry["segments_info"]) for entry in entries][:2] == [0, 0]
    assert Path(entries[0]["pan_seg_file_name"]).name == "000000000001.png"


def test_json_cut_in_the_middle(tiny: TinyPanoptic) -> None:
    path = tiny.registration["panoptic_json"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"panoptic\.json: not valid JSON.*cut.*Prepare it\."):
        load_panoptic(**tiny.registration, cure="Prepare it.")


def test_unknown_category(tiny: TinyPanoptic) -> None:
    content = tiny.read_panoptic_json()
    content["annotations"][2]["segments_info"][0]["category_id"] = 77
    tiny.write_panoptic_json(content)
    with pytest.raises(ValueError, match=r"image 000000000003\.png has the unknown category id 77"):
        load_panoptic(**tiny.registration)


def test_renamed_category(tiny: TinyPanoptic) -> None:
    content = tiny.read_panoptic_json()
    content["categories"][0]["name"] = "crate"
    tiny.write_panoptic_json(content)
    with pytest.raises(ValueError, match="category id 2 is 'crate' in the file and 'box'"):
        load_panoptic(**tiny.registration)


@pytest.mark.parametrize(("image_id", "message"), [(2, "image 2 is annotated twice"), (9, "image 9 is annotated but")])
def test_contradicting_annotations(tiny: TinyPanoptic, image_id: int, message: str) -> None:
    content = tiny.read_panoptic_json()
    content["annotations"][0]["image_id"] = image_id
    tiny.write_panoptic_json(content)
    with pytest.raises(ValueError, match=message):
        load_panoptic(**tiny.registration)


@pytest.mark.parametrize("folder", ["images", "panoptic"])
def test_missing_file_and_missing_folder(tiny: TinyPanoptic, folder: str) -> None:
    for name in ("000000000002.png", "000000000004.png"):
        (tiny.root / folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{folder}/000000000002\.png: .* 1 others of the 4 listed\. Cure\."):
        load_panoptic(**tiny.registration, cure="Cure.")
    (tiny.root / folder).rename(tiny.root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{folder}: no such folder\. Cure\."):
        load_panoptic(**tiny.registration, cure="Cure.")


def test_images_in_subfolders_are_found(tiny: TinyPanoptic) -> None:
    content = tiny.read_panoptic_json()
    (tiny.root / "images" / "part").mkdir()
    (tiny.root / "images" / "000000000001.png").rename(tiny.root / "images" / "part" / "a.png")
    content["images"][0]["file_name"] = "part/a.png"
    tiny.write_panoptic_json(content)
    assert load_panoptic(**tiny.registration)[0]["file_name"].endswith("images/part/a.png")
    (tiny.root / "images" / "part" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"part/a\.png"):
        load_panoptic(**tiny.registration)
