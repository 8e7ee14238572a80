# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from padding.data.loaders.sem_seg_list import load_sem_seg


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Three images; the second shows five unseen pixels."""
    images = []
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index, unseen in enumerate((0, 5, 0), start=1):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{index}.jpg")
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "labels" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.jpg", "height": 4, "width": 6, "unseen_pixels": unseen})
    (tmp_path / "list.json").write_text(json.dumps({"images": images}))
    return {
        "image_list": tmp_path / "list.json",
        "image_root": tmp_path / "images",
        "sem_seg_root": tmp_path / "labels",
    }


def test_policies(files: dict[str, Any]) -> None:
    entries = load_sem_seg(**files)
    assert [entry["image_id"] for entry in entries] == [1, 2, 3]
    assert entries[0] == {
        "file_name": str(files["image_root"] / "1.jpg"),
        "image_id": 1,
        "height": 4,
        "width": 6,
        "sem_seg_file_name": str(files["sem_seg_root"] / "1.png"),
    }
    assert [entry["image_id"] for entry in load_sem_seg(**files, unseen_policy="drop_image")] == [1, 3]
    with pytest.raises(ValueError, match="unseen_policy is 'drop'"):
        load_sem_seg(**files, unseen_policy="drop")  # type: ignore[arg-type]


def test_dropping_needs_counts(files: dict[str, Any]) -> None:
    content = json.loads(files["image_list"].read_text())
    del content["images"][1]["unseen_pixels"]
    files["image_list"].write_text(json.dumps(content))
    assert len(load_sem_seg(**files)) == 3
    with pytest.raises(ValueError, match=r"list\.json: image 2\.jpg has no 'unseen_pixels'.*prepare it"):
        load_sem_seg(**files, unseen_policy="drop_image", cure="prepare it")


def test_missing_files_are_named(files: dict[str, Any]) -> None:
    (files["sem_seg_root"] / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/3\.png.*prepare it"):
        load_sem_seg(**files, cure="prepare it")
    with pytest.raises(FileNotFoundError, match=r"none\.json.*prepare it"):
        load_sem_seg(**{**files, "image_list": files["image_root"] / "none.json"}, cure="prepare it")
