# SPDX-License-Identifier: Apache-2.0
"""The command line that prepares COCO 2014 instances, and the data sets that read what it writes."""

import hashlib
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from tests.scripts import load_script
from tests.tiny_stuff import write_tiny_instances

main = load_script("prepare_coco_zsi").main


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_tiny_instances(tmp_path / "coco")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_prepare_check_and_register(coco, tmp_path, capsys):
    assert main(["--root", str(coco)]) == 0
    assert "no unseen class in what will be trained on" in capsys.readouterr().out
    before = digests(coco / "annotations" / "zsi")
    assert len(before) == 12  # three files and their summaries for each split
    assert main(["--root", str(coco)]) == 0
    assert main(["--root", str(coco), "--check"]) == 0
    assert "checked: complete" in capsys.readouterr().out
    assert digests(coco / "annotations" / "zsi") == before
    register_all(tmp_path)
    for split, seen, total, sizes in (("48_17", 48, 65, (2, 3, 3)), ("65_15", 65, 80, (4, 2, 2))):
        names = [f"coco_2014_{part}_instances_zsi_{split}" for part in ("train", "val")]
        names.append(f"{names[1]}_unseen")
        assert tuple(len(DatasetCatalog.get(name)) for name in names) == sizes
        assert class_split_of(names[0]).names == class_split_of(names[1]).names[:seen]
        assert class_split_of(names[1]).num_classes == class_split_of(names[2]).num_classes == total
        objects = [a["category_id"] for entry in DatasetCatalog.get(names[2]) for a in entry["annotations"]]
        assert min(objects) >= seen
    register_all()


def test_one_split_into_another_folder(coco, tmp_path):
    assert main(["--root", str(coco), "--split", "65_15", "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*65_15.json"))) == 3
    assert not (coco / "annotations" / "zsi").exists()


def test_check_finds_changed_and_missing_files(coco, capsys):
    assert main(["--root", str(coco), "--check"]) == 1
    assert "not prepared" in capsys.readouterr().out
    assert main(["--root", str(coco)]) == 0
    path = coco / "annotations" / "zsi" / "instances_train2014_seen_48_17.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "height": 12, "width": 16})
    path.write_text(json.dumps(content))
    assert main(["--root", str(coco), "--check"]) == 1
    output = capsys.readouterr().out
    assert "differs from what" in output
    assert "show unseen classes" in output


def test_missing_source_is_an_error(tmp_path, capsys):
    assert main(["--root", str(tmp_path)]) == 2
    assert "unpack annotations_trainval2014.zip" in capsys.readouterr().err
