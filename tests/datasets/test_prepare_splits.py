# SPDX-License-Identifier: Apache-2.0
"""The command line that checks and draws lists of labeled and unlabeled images."""

from pathlib import Path

import pytest

from padding.data.semi_splits import read_semi_split
from tests.scripts import load_script

main = load_script("prepare_splits").main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index:02d}.jpg").touch()
    return folder


def test_all_shipped_lists_are_right(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 38
    assert all(line.endswith("ok") for line in lines[2:])
    assert any(line.split()[:3] == ["voc/cps_blender/1_16", "662", "9920"] for line in lines)


def test_some_of_them(capsys):
    assert main(["cityscapes/stpp", "camvid/1_8"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names == ["camvid/1_8", "cityscapes/stpp/1_30"]
    assert main(["city"]) == 2
    assert "no shipped split is 'city' or begins with it; there are camvid/12, camvid/1_2" in capsys.readouterr().err


def test_draw_then_check(images, tmp_path, capsys):
    lists = tmp_path / "lists"
    words = ["--folder", str(lists), "--images", str(images)]
    assert main([*words, "--draw", "5", "--seed", "3"]) == 0
    split = read_semi_split(str(lists))
    assert (len(split.labeled), len(split.unlabeled)) == (5, 15)
    assert main(words) == 0
    assert split.digest in capsys.readouterr().out
    assert main([*words, "--draw", "5"]) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
    assert read_semi_split(str(lists)) == split


def test_check_reports_problems(images, tmp_path, capsys):
    words = ["--folder", str(tmp_path / "lists"), "--images", str(images)]
    assert main([*words, "--draw", "5"]) == 0
    next(iter(images.iterdir())).unlink()
    (images / "new.png").touch()
    assert main(words) == 1
    output = capsys.readouterr().out
    assert "PROBLEM" in output
    assert "1 ids are listed, but there is no such image" in output
    assert "1 ids are in neither list, first new" in output
    assert main(words[:2]) == 0, "without --images the lists alone are checked"


def test_images_with_a_label_file_are_labeled_and_excluded_ones_in_neither_list(images, tmp_path, capsys):
    (tmp_path / "labels").mkdir()
    for index in (3, 7, 11, 12):
        (tmp_path / "labels" / f"{index:02d}.png").touch()
    (tmp_path / "val.txt").write_text("12\n13\n")
    words = ["--folder", str(tmp_path / "lists"), "--images", str(images), "--exclude", str(tmp_path / "val.txt")]
    assert main([*words, "--labels", str(tmp_path / "labels")]) == 0
    split = read_semi_split(str(tmp_path / "lists"))
    assert split.labeled == ("03", "07", "11")
    assert len(split.unlabeled) == 15
    assert not {"12", "13"} & {*split.labeled, *split.unlabeled}
    assert main(words) == 0
    assert main(words[:4]) == 1, "without --exclude the two are missing"
    assert "2 ids are in neither list, first 12, 13" in capsys.readouterr().out
    (tmp_path / "val.txt").write_text("12\n99\n")
    assert main(words) == 2
    assert "1 ids are no image of" in capsys.readouterr().err


def test_ids_have_the_folders_that_the_loader_gives_them(tmp_path):
    """Lists held the names alone, which DATASETS.FOLDERS.SUBFOLDERS does not find."""
    for name in ("lion/1.jpg", "wolf/1.jpg", "wolf/2.jpg", "wolf/2_mask.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    words = ["--images", str(tmp_path / "images"), "--subfolders"]
    assert main(["--folder", str(tmp_path / "drawn"), *words, "--draw", "1"]) == 0
    drawn = read_semi_split(str(tmp_path / "drawn"))
    assert sorted((*drawn.labeled, *drawn.unlabeled)) == ["lion/1", "wolf/1", "wolf/2", "wolf/2_mask"]
    suffix = ["--suffix", "_mask.png"]
    assert main(["--folder", str(tmp_path / "images_alone"), *words, *suffix, "--draw", "1"]) == 0
    drawn = read_semi_split(str(tmp_path / "images_alone"))
    assert sorted((*drawn.labeled, *drawn.unlabeled)) == ["lion/1", "wolf/1", "wolf/2"]
    labels = ["--labels", str(tmp_path / "images"), *suffix]
    assert main(["--folder", str(tmp_path / "beside"), *words, *labels]) == 0
    beside = read_semi_split(str(tmp_path / "beside"))
    assert (beside.labeled, beside.unlabeled) == (("wolf/2",), ("lion/1", "wolf/1"))


def test_input_that_cannot_be_used(images, tmp_path, capsys):
    words = ["--folder", str(tmp_path / "lists"), "--images", str(images)]
    assert main([*words, "--draw", "20"]) == 2
    assert "cannot label 20 of 20 images" in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()
    assert main(["--folder", str(tmp_path), "--images", str(tmp_path / "none")]) == 2
    assert main(["--folder", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize(
    "words", [["--draw", "3"], ["--images", "x"], ["--folder", "x", "--labels", "y"], ["a", "--folder", "x"]]
)
def test_options_that_belong_together(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "--folder" in capsys.readouterr().err
