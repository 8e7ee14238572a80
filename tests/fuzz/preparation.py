# SPDX-License-Identifier: Apache-2.0
"""Attacks on the commands that prepare COCO's files; what they write must hold what a plain reading says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from padding.data.loaders.instances_json import load_instances
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.prepare.coco_instances import audit_instances, filter_instances
from padding.data.prepare.coco_panoptic import PanopticFiles, filter_panoptic_json, label_tasks
from padding.data.prepare.panoptic_png import label_problems, write_labels
from padding.data.readers import read_label_map
from tests.fuzz.annotations import (
    SPLIT,
    THINGS,
    damage_json,
    damage_panoptic,
    plain,
    write_instances,
    write_panoptic,
)
from tests.fuzz.harness import Target

# Nothing of the sound files is of an unseen class; mutated ones may be.
PANOPTIC = dataclasses.replace(SPLIT, unseen_names=frozenset({"zebra"}))
INSTANCES = dataclasses.replace(THINGS, unseen_names=frozenset({"zebra"}))


def prepare_panoptic(folder: Path) -> None:
    source, target = folder / "x.json", folder / "x_seen.json"
    filter_panoptic_json(source, target, PANOPTIC, policy="ignore_pixels")
    files = PanopticFiles(target, folder / "panoptic", folder)
    expected = {a["image_id"]: a for a in plain(source).get("annotations", [])}
    for task in label_tasks(files, PANOPTIC, folder / "labels", folder / "masked"):
        write_labels(task)
        with Image.open(task.panoptic_file) as image:
            pixels = np.array(image.convert("RGB")).astype(np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        annotation = next(a for a in expected.values() if Path(a["file_name"]).stem == task.semantic_file.stem)
        labels = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            if segment["category_id"] in (3, 40):
                labels[ids == segment["id"]] = SPLIT.contiguous_id[segment["category_id"]]
        np.testing.assert_array_equal(read_label_map(task.semantic_file), labels)
        assert all("pixels, " in problem for problem in label_problems(task)), "an area may differ, no more"
    load_panoptic(
        panoptic_json=target, image_root=folder, panoptic_root=folder / "masked", class_split=PANOPTIC.seen_only()
    )


def prepare_instances(folder: Path) -> None:
    source = folder / "x.json"
    for kind, split in (("train", INSTANCES.seen_only()), ("gzsi", INSTANCES)):
        target = folder / f"x_{kind}.json"
        filter_instances(source, target, INSTANCES, kind=kind)
        content, written = plain(source), plain(target)
        objects = content.get("annotations", [])
        unseen = {a["image_id"] for a in objects if a["category_id"] == 24}
        chosen = unseen if kind == "gzsi" else {a["image_id"] for a in objects if a["category_id"] == 3} - unseen
        assert [i["id"] for i in written["images"]] == [
            i["id"] for i in content.get("images", []) if i["id"] in chosen
        ], kind
        assert kind != "train" or audit_instances(target, INSTANCES, source=source) == [], "audit"
        entries = load_instances(json_file=target, image_root=folder, class_split=split)
        assert {e["image_id"] for e in entries} == chosen, "images"


TARGETS = (
    Target("panoptic preparation", write_panoptic, damage_panoptic, prepare_panoptic),
    Target("instance preparation", write_instances, damage_json, prepare_instances),
)
