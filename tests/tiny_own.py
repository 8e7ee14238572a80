# SPDX-License-Identifier: Apache-2.0
"""Writes ``my/``, a user's own data of every kind, as the example configurations ``configs/own_*.yaml`` name it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.class_embeddings import random_class_embeddings, save_class_embeddings
from padding.data.own_data import OWN_DENSE, OWN_NAMES, OWN_SALIENCY, OWN_UNSEEN
from padding.data.registration import _registered
from tests.tiny_data import CATEGORIES, write_tiny_panoptic

NAMES = tuple(str(category["name"]) for category in CATEGORIES)


def write_own_data(root: Path, *, num_images: int = 6) -> Path:
    """Images of six classes with panoptic PNGs and JSON, objects, dense labels, scribbles and saliency; ``root/my``."""
    folder = root / "my"
    write_tiny_panoptic(folder, num_images=num_images)
    shutil.copytree(folder / "sem_seg", folder / "labels")
    for kind in ("scribbles", "saliency", "lists"):
        (folder / kind).mkdir()
    for path in sorted((folder / "labels").iterdir()):
        labels = np.asarray(Image.open(path))
        scribbles = np.full_like(labels, 255)
        scribbles[4::12] = labels[4::12]
        Image.fromarray(scribbles).save(folder / "scribbles" / path.name)
        Image.fromarray(np.where(labels < 2, np.uint8(255), np.uint8(0))).save(folder / "saliency" / path.name)
    ids = [path.stem for path in sorted((folder / "images").iterdir())]
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (folder / "val.txt").write_text("".join(f"{one}\n" for one in ids[-2:]))
    (folder / "lists" / "labeled.txt").write_text("".join(f"{one}\n" for one in ids[:2]))
    (folder / "lists" / "unlabeled.txt").write_text("".join(f"{one}\n" for one in ids[2:-2]))
    save_class_embeddings(folder / "vectors.npz", NAMES, random_class_embeddings(NAMES, 16, seed=0))
    return folder


@contextmanager
def nothing_left() -> Iterator[None]:
    """Forget the sets of DATASETS.FOLDERS at the end."""
    try:
        yield
    finally:
        for name in (*OWN_NAMES, OWN_UNSEEN, OWN_DENSE, *OWN_SALIENCY):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.pop(name, None)
                _registered.discard(name)
