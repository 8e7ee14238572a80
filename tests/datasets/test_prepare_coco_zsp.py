# SPDX-License-Identifier: Apache-2.0
"""The command line that prepares COCO for zero-shot training, on a tiny folder and on the two real images."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from padding.data.sets.coco_photographs import photograph_files, samples_dir
from tests.scripts import DATASETS, load_script
from tests.tiny_coco import HEIGHT, WIDTH, write_tiny_coco

SCRIPT = DATASETS / "prepare_coco_zsp.py"
main = load_script("prepare_coco_zsp").main
ONE = ["--num-workers", "1"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_tiny_coco(tmp_path / "coco")


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_prepare_then_check(coco, capsys):
    assert main(["--root", str(coco), *ONE]) == 0
    output = capsys.readouterr().out
    assert "3 of 6 images kept (policy drop_image)" in output
    assert "unseen classes: 0 segments, 0 pixels" in output
    assert (coco / "annotations" / "zsp" / "panoptic_train2017_seen.json").is_file()
    assert len(list((coco / "panoptic_semseg_zsp_train2017").iterdir())) == 3
    assert len(list((coco / "panoptic_semseg_zsp_val2017").iterdir())) == 6
    before = digest(coco)
    assert main(["--root", str(coco), "--check", *ONE]) == 0
    assert "checked: complete" in capsys.readouterr().out
    assert digest(coco) == before


def test_second_run_writes_nothing_new(coco, capsys):
    assert main(["--root", str(coco), *ONE]) == 0
    before = digest(coco)
    capsys.readouterr()
    assert main(["--root", str(coco), *ONE]) == 0
    assert "0 written, 3 valid already" in capsys.readouterr().out
    assert digest(coco) == before


def test_root_comes_from_the_environment(coco, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco.parent))
    assert main(ONE) == 0
    assert (coco / "panoptic_semseg_zsp_val2017").is_dir()


def test_ignore_pixels_needs_a_folder_of_its_own(coco, tmp_path, capsys):
    assert main(["--root", str(coco), "--policy", "ignore_pixels", *ONE]) == 2
    assert "would change the originals" in capsys.readouterr().err
    originals = digest(coco)
    output = tmp_path / "other" / "coco"
    arguments = ["--root", str(coco), "--policy", "ignore_pixels", "--output", str(output), *ONE]
    assert main(arguments) == 0
    assert "5 of 6 images kept" in capsys.readouterr().out
    assert main([*arguments, "--check"]) == 0
    assert digest(coco) == originals
    # Laid out like COCO, so that it can be registered.
    for name in ("train2017", "val2017", "panoptic_val2017", "annotations/panoptic_val2017.json"):
        assert (output / name).samefile(coco / name)
    assert not (output / "panoptic_train2017").is_symlink()


def test_check_fails_on_another_policy_and_on_nothing_prepared(coco, tmp_path, capsys):
    assert main(["--root", str(coco), "--check", *ONE]) == 1
    assert "not at all" in capsys.readouterr().out
    assert main(["--root", str(coco), *ONE]) == 0
    capsys.readouterr()
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("car\n")
    assert main(["--root", str(coco), "--check", "--unseen", str(unseen), *ONE]) == 1
    assert "other settings" in capsys.readouterr().out


def test_check_compares_the_json_with_its_source(coco, capsys):
    assert main(["--root", str(coco), *ONE]) == 0
    seen = coco / "annotations" / "zsp" / "panoptic_train2017_seen.json"
    seen.write_text(seen.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    assert main(["--root", str(coco), "--check", *ONE]) == 1
    assert "prepare again with --overwrite" in capsys.readouterr().out
    assert main(["--root", str(coco), "--overwrite", *ONE]) == 0
    assert main(["--root", str(coco), "--check", *ONE]) == 0


def test_leftover_png_of_a_dropped_image_is_a_leak(coco, capsys):
    folder = coco / "panoptic_semseg_zsp_train2017"
    folder.mkdir()
    Image.new("L", (WIDTH, HEIGHT), 19).save(folder / "000000000006.png")
    assert main(["--root", str(coco), *ONE]) == 1
    captured = capsys.readouterr()
    assert "LEAK" in captured.err
    assert "000000000006.png" in captured.out


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("annotations/panoptic_train2017.json", "No file"),
        ("panoptic_train2017", "No folder"),
        ("val2017", "No folder"),
    ],
)
def test_missing_input_is_one_line_with_the_cure(coco, capsys, missing, message):
    (coco / missing).rename(coco / "elsewhere")
    assert main(["--root", str(coco), *ONE]) == 2
    error = capsys.readouterr().err
    assert f"error: {message} {coco / missing}: unpack COCO as datasets/README.md shows" in error
    assert "Traceback" not in error


def test_cut_json_and_unknown_split_name(coco, tmp_path, capsys):
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("cwo\n")
    assert main(["--root", str(coco), "--unseen", str(unseen), *ONE]) == 2
    assert "cow" in capsys.readouterr().err
    source = coco / "annotations" / "panoptic_train2017.json"
    source.write_text(source.read_text()[:700])
    assert main(["--root", str(coco), *ONE]) == 2
    assert "fetch or unpack the file again" in capsys.readouterr().err


def test_direct_paths_go_together(coco, capsys):
    assert main(["--panoptic-json", str(coco / "annotations" / "panoptic_val2017.json")]) == 2
    assert "give all four" in capsys.readouterr().err


def test_a_file_in_the_way_of_a_link_is_not_touched(coco, tmp_path, capsys):
    output = tmp_path / "out"
    (output / "val2017").mkdir(parents=True)
    assert main(["--root", str(coco), "--output", str(output), *ONE]) == 2
    assert "in the way" in capsys.readouterr().err


def test_runs_as_a_script_from_anywhere(coco, tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(coco.parent)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--num-workers", "2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no unseen class in what will be trained on" in done.stdout
    assert "3/3" in done.stderr


def test_real_images(tmp_path, capsys):
    sample = photograph_files(samples_dir(), "train")
    direct = [
        *("--panoptic-json", str(sample["panoptic_json"])),
        *("--panoptic-dir", str(sample["panoptic_root"])),
        *("--image-dir", str(sample["image_root"])),
        *ONE,
    ]
    assert main([*direct, "--output", str(tmp_path / "strict")]) == 0
    assert "2 of 7 images kept" in capsys.readouterr().out
    loose = [*direct, "--output", str(tmp_path / "loose"), "--policy", "ignore_pixels"]
    assert main(loose) == 0
    assert "6 of 7 images kept" in capsys.readouterr().out
    assert main([*loose, "--check"]) == 0
