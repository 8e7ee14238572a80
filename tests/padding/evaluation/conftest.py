# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk in COCO's forms, registered for one test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils import comm
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.files import save_panoptic_png

# Things 1..3, stuff 11 and 12, one of each unseen; contiguous ids are 0..4 in this order.
SPLIT = ClassSplit(
    names=("cat", "dog", "zebra", "road", "sea"),
    is_thing=(True, True, True, False, False),
    dataset_ids=(1, 2, 3, 11, 12),
    unseen_names=frozenset({"zebra", "sea"}),
)


@pytest.fixture
def split() -> ClassSplit:
    return SPLIT


@pytest.fixture
def random_scene() -> Callable[..., tuple[np.ndarray, list[dict[str, Any]]]]:
    """Random scenes (see ``_random_scene``)."""
    return _random_scene


def _random_scene(
    rng: np.random.Generator,
    *,
    num_classes: int = 5,
    size: tuple[int, int] = (24, 32),
    segments: int = 8,
    crowds: int = 2,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Nearest-centre regions, one of them void, some of them crowd; ids are arbitrary 24-bit numbers."""
    height, width = size
    centres = rng.uniform((0, 0), size, (segments + 1, 2))
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    nearest = ((grid[:, :, None] - centres) ** 2).sum(-1).argmin(-1)
    ids = np.concatenate(([0], rng.choice(2**24 - 1, segments, replace=False) + 1))
    id_map = ids[nearest].astype(np.int64)
    return id_map, [
        {
            "id": int(ids[i]),
            "category_id": int(rng.integers(num_classes)),
            "iscrowd": int(i <= crowds),
            "area": int((nearest == i).sum()),
        }
        for i in range(1, segments + 1)
        if (nearest == i).any()
    ]


@pytest.fixture
def as_prediction() -> Callable[..., tuple[np.ndarray, list[dict[str, int]]]]:
    """Turn a scene into a prediction (see ``_as_prediction``)."""
    return _as_prediction


def _as_prediction(
    id_map: np.ndarray, segments: list[dict[str, Any]], rng: np.random.Generator, num_classes: int = 5
) -> tuple[np.ndarray, list[dict[str, int]]]:
    """Ids 1..n without crowd flags, moved by up to two pixels, every fourth category at random."""
    renamed = np.zeros_like(id_map)
    for new, segment in enumerate(segments, start=1):
        renamed[id_map == segment["id"]] = new
    moved = np.roll(renamed, rng.integers(-2, 3, 2), (0, 1))
    return moved, [
        {"id": new, "category_id": int(rng.integers(num_classes)) if rng.random() < 0.25 else segment["category_id"]}
        for new, segment in enumerate(segments, start=1)
    ]


@pytest.fixture
def panoptic_dataset(tmp_path: Path, register: Callable[..., str]) -> Callable[..., tuple[str, list[dict[str, Any]]]]:
    """Write scenes as COCO panoptic and semantic ground truth; returns the data set's name and its dicts."""

    def write(
        scenes: list[tuple[np.ndarray, list[dict[str, Any]]]], **metadata: Any
    ) -> tuple[str, list[dict[str, Any]]]:
        (tmp_path / "panoptic").mkdir()
        (tmp_path / "sem_seg").mkdir()
        annotations, records = [], []
        for image_id, (id_map, segments) in enumerate(scenes, start=1):
            save_panoptic_png(id_map, tmp_path / "panoptic" / f"{image_id}.png")
            labels = np.full(id_map.shape, 255, dtype=np.uint8)
            for segment in segments:
                labels[id_map == segment["id"]] = segment["category_id"]
            Image.fromarray(labels).save(tmp_path / "sem_seg" / f"{image_id}.png")
            on_disk = [{**s, "category_id": SPLIT.dataset_ids[s["category_id"]]} for s in segments]
            annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": on_disk})
            height, width = id_map.shape
            records.append({"file_name": f"{image_id}.jpg", "image_id": image_id, "height": height, "width": width})
        path = tmp_path / "panoptic.json"
        images = [{"id": r["image_id"], **{k: r[k] for k in ("file_name", "height", "width")}} for r in records]
        categories = [{"id": i, "name": n} for i, n in zip(SPLIT.dataset_ids, SPLIT.names, strict=True)]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        defaults = {
            "class_split": SPLIT,
            "panoptic_json": str(path),
            "panoptic_root": str(tmp_path / "panoptic"),
            "sem_seg_root": str(tmp_path / "sem_seg"),
            "ignore_label": 255,
            "evaluator_type": "coco_panoptic_seg",
        }
        return register("tiny_panoptic", records, **{**defaults, **metadata}), records

    return write


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], None]:
    """Make ``comm.gather`` on the main rank see what a second rank would send."""

    def pretend(module: Any, *others: Any) -> None:
        queue = list(others)
        monkeypatch.setattr(comm, "gather", lambda data: [data, queue.pop(0)])

    return pretend


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be a rank that is not the main one."""
    monkeypatch.setattr(comm, "gather", lambda data: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
