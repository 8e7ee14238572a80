# SPDX-License-Identifier: Apache-2.0
"""Attacks on COCO's JSON, masks and panoptic PNGs; what is accepted must be what a plain reading of the file says."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask

from padding.data.augmentation import AugmentationPlan
from padding.data.class_split import ClassSplit
from padding.data.coco_json import ImageFile, InstanceFile, PanopticFile, findings_of
from padding.data.files import save_panoptic_png
from padding.data.loaders.instances_json import load_instances
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.loaders.sem_seg_list import load_sem_seg
from padding.data.mappers import InstanceMapper, PanopticMapper
from padding.data.masks import annotation_mask
from padding.data.own_annotations import own_split, read_categories
from padding.data.own_data import OwnData
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from tests.fuzz.harness import Target
from tests.fuzz.mutators import NAN, ODD_VALUES, mutate_bytes, mutate_image, mutate_json, mutate_json_text

SIZE = (12, 16)
SPLIT = ClassSplit(("car", "zebra", "sky"), (True, True, False), (3, 24, 40))
THINGS = SPLIT.restricted_to(("car", "zebra"))
PLAN = AugmentationPlan(geometric=())


def box(left: int, top: int, width: int, height: int) -> list[int]:
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def write_images(folder: Path) -> None:
    for index in (1, 2):
        Image.new("RGB", SIZE[::-1], (index, 2, 3)).save(folder / f"{index}.png")


@cache
def instance_text() -> bytes:
    """Two images with polygons, both run-length codes and a crowd."""
    mask = np.zeros(SIZE, np.uint8)
    mask[2:9, 3:8] = 1
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0))
    counts = np.diff([0, *edges.tolist(), mask.size]).tolist()
    segmentations = (
        [box(1, 1, 5, 6), box(8, 2, 3, 4)],
        {"size": list(SIZE), "counts": text},
        [[float(x) for x in box(2, 3, 9, 5)]],
        {"size": list(SIZE), "counts": counts},
        [box(9, 5, 6, 6)],
    )
    objects = [
        {"id": i, "image_id": 1 + i % 2, "category_id": (3, 24)[i % 2], "iscrowd": int(i == 3), "area": 35.0,
         "bbox": [1, 1, 5, 6], "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations)
    ]  # fmt: skip
    return json.dumps({**listed_images(), "annotations": objects, "categories": categories(THINGS)}).encode()


def listed_images() -> dict[str, Any]:
    sizes = {"height": SIZE[0], "width": SIZE[1], "unseen_pixels": 0}
    return {"info": {"year": 2017}, "images": [{"id": i, "file_name": f"{i}.png", **sizes} for i in (1, 2)]}


def categories(split: ClassSplit) -> list[dict[str, Any]]:
    return [{"id": i, "name": n} for i, n in zip(split.dataset_ids, split.names, strict=True)]


def plain(path: Path) -> Any:
    """What the file says to Python's own parser."""
    return json.loads(path.read_bytes().decode("utf-8-sig", "replace"))


def damage_json(folder: Path, rng: random.Random) -> str:
    path = folder / "x.json"
    if rng.random() < 0.25:
        content, kind = mutate_json_text(path.read_bytes(), rng)
        path.write_bytes(content)
        return kind
    changed, kind = mutate_json(plain(path), rng)
    path.write_text(json.dumps(changed))
    return kind


def write_instances(folder: Path) -> None:
    write_images(folder)
    (folder / "x.json").write_bytes(instance_text())


def read_instances(folder: Path) -> None:
    path = folder / "x.json"
    found = findings_of(path, InstanceFile, image_root=folder)
    entries = load_instances(json_file=path, image_root=folder, class_split=THINGS)
    assert not found.problems, f"found {found.problems[:1]}, and loaded nevertheless"
    expected = plain(path)
    objects = defaultdict(list)
    for entry in expected["annotations"]:
        if usable := _usable(entry.get("segmentation")):
            objects[entry["image_id"]].append({**entry, "segmentation": usable})
    assert [e["image_id"] for e in entries] == [i["id"] for i in expected["images"]], "images"
    for image, entry in zip(expected["images"], entries, strict=True):
        assert entry["file_name"] == str(folder / image["file_name"]), "file_name"
        assert entry["height"] == (image.get("height") or SIZE[0]), "height"
        truth = objects[image["id"]]
        assert [a["category_id"] for a in entry["annotations"]] == [
            THINGS.contiguous_id[o["category_id"]] for o in truth
        ], "classes"
        for annotation, one in zip(entry["annotations"], truth, strict=True):
            mask = annotation_mask(annotation, (entry["height"], entry["width"]))
            np.testing.assert_array_equal(mask, plain_mask(one["segmentation"], (entry["height"], entry["width"])))
    _train_on_instances(entries, objects)
    _score_instances(folder, entries)


def _usable(segmentation: Any) -> Any:
    """COCO 2014 has polygons of two points, which are no area."""
    return [p for p in segmentation if len(p) >= 6] if isinstance(segmentation, list) else segmentation


def plain_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Mask (h, w); run-length code run by run."""
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)))
    counts = segmentation["counts"]
    runs = (
        plain_counts(counts if isinstance(counts, bytes) else counts.encode())
        if not isinstance(counts, list)
        else counts
    )
    flat = [value for index, run in enumerate(runs) for value in [index % 2] * run]
    return np.array(flat, np.uint8).reshape(size[::-1]).T


def plain_counts(text: bytes) -> list[int]:
    """Numbers of COCO's text, one after the other."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        number = shift = 0
        while True:
            digit = text[position] - 48
            number |= (digit & 31) << shift
            shift, position = shift + 5, position + 1
            if not digit & 32:
                break
        if digit & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
    return counts


def _train_on_instances(entries: list[Any], objects: Mapping[Any, list[Any]]) -> None:
    mapper = InstanceMapper(is_train=True, plan=PLAN)
    for entry in entries:
        sample = mapper(entry)
        size = (entry["height"], entry["width"])
        masks = [plain_mask(o["segmentation"], size) for o in objects[entry["image_id"]] if not o.get("iscrowd")]
        shown = [mask for mask in masks if mask.any()]
        found = sample["instances"].gt_masks.numpy()
        np.testing.assert_array_equal(found, np.array(shown, bool).reshape(-1, *size))


def _score_instances(folder: Path, entries: list[Any]) -> None:
    """The truth as prediction scores 100."""
    name = f"fuzz_instances_{folder}"
    MetadataCatalog.get(name).set(class_split=THINGS, json_file=str(folder / "x.json"), image_root=str(folder))
    evaluator = InstanceEvaluator(name)
    complete = True
    for entry in entries:
        size = (entry["height"], entry["width"])
        objects = [a for a in entry["annotations"] if not a["iscrowd"]]
        masks = [torch.from_numpy(annotation_mask(a, size)).bool() for a in objects]
        complete &= all(bool(mask.any()) for mask in masks)
        evaluator.process([entry], [{"instances": Instances(
            size,
            pred_masks=torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool),
            pred_classes=torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            scores=torch.ones(len(objects)),
        )}])  # fmt: skip
    score = evaluator.evaluate()["segm"]["AP"]
    assert not complete or np.isnan(score) or abs(score - 100) < 1e-6, f"AP {score} of perfect predictions"


def write_panoptic(folder: Path) -> None:
    write_images(folder)
    (folder / "panoptic").mkdir()
    annotations = []
    for index in (1, 2):
        ids = np.zeros(SIZE, np.int64)
        ids[:5], ids[5:9, :8], ids[5:9, 8:14] = 900, 70_000 + index, 3
        save_panoptic_png(ids, folder / "panoptic" / f"p{index}.png")
        segments = [
            {"id": i, "category_id": c, "iscrowd": int(i == 3 and index == 2), "area": int((ids == i).sum())}
            for i, c in ((900, 40), (70_000 + index, 3), (3, 24))
        ]
        annotations.append({"image_id": index, "file_name": f"p{index}.png", "segments_info": segments})
    (folder / "x.json").write_text(
        json.dumps({**listed_images(), "annotations": annotations, "categories": categories(SPLIT)})
    )


def damage_panoptic(folder: Path, rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.6:
        return damage_json(folder, rng)
    path = folder / "panoptic" / f"p{rng.choice((1, 2))}.png"
    if choice < 0.8:
        return mutate_image(path, rng)
    content, kind = mutate_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"png {kind}"


def read_panoptic(folder: Path) -> None:
    path = folder / "x.json"
    found = findings_of(path, PanopticFile, image_root=folder)
    entries = load_panoptic(panoptic_json=path, image_root=folder, panoptic_root=folder / "panoptic", class_split=SPLIT)
    assert not found.problems, f"found {found.problems[:1]}, and loaded nevertheless"
    expected = plain(path)
    annotated = {a["image_id"]: a for a in expected["annotations"]}
    assert [e["image_id"] for e in entries] == [i["id"] for i in expected["images"]], "images"
    mapper = PanopticMapper(is_train=True, plan=PLAN)
    name = f"fuzz_panoptic_{folder}"
    MetadataCatalog.get(name).set(class_split=SPLIT, panoptic_json=str(path), panoptic_root=str(folder / "panoptic"))
    evaluator = PanopticEvaluator(name)
    for entry in entries:
        sample = mapper(entry)
        segments = annotated[entry["image_id"]]["segments_info"] if entry["image_id"] in annotated else []
        with Image.open(entry["pan_seg_file_name"]) as image:
            pixels = np.array(image.convert("RGB")).astype(np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        assert {*np.unique(ids).tolist()} - {0} == {s["id"] for s in segments}, "ids of PNG and JSON"
        masks = [ids == s["id"] for s in segments if not s.get("iscrowd")]
        np.testing.assert_array_equal(sample["instances"].gt_masks.numpy(), np.array(masks).reshape(-1, *ids.shape))
        classes = [SPLIT.contiguous_id[s["category_id"]] for s in segments if not s.get("iscrowd")]
        assert sample["instances"].gt_classes.tolist() == classes, "classes"
        if entry["image_id"] in annotated:
            prediction = [{"id": s["id"], "category_id": SPLIT.contiguous_id[s["category_id"]]} for s in segments]
            evaluator.process([entry], [{"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), prediction)}])
    if any(not s.get("iscrowd") for a in expected["annotations"] for s in a["segments_info"]):
        score = evaluator.evaluate()["panoptic_seg"]["PQ"]
        assert abs(score - 100) < 1e-9, f"PQ {score} of perfect predictions"


def write_list(folder: Path) -> None:
    write_images(folder)
    (folder / "labels").mkdir()
    for index in (1, 2):
        Image.new("L", SIZE[::-1], index).save(folder / "labels" / f"{index}.png")
    (folder / "x.json").write_text(json.dumps(listed_images()))


def read_list(folder: Path) -> None:
    path = folder / "x.json"
    files = {"image_list": path, "image_root": folder, "sem_seg_root": folder / "labels"}
    found = findings_of(path, ImageFile, image_root=folder)
    entries = load_sem_seg(**files)
    assert not found.problems, f"found {found.problems[:1]}, and loaded nevertheless"
    expected = plain(path)["images"]
    assert [e["image_id"] for e in entries] == [i["id"] for i in expected], "ids"
    assert [e["file_name"] for e in entries] == [str(folder / i["file_name"]) for i in expected], "files"
    clean = load_sem_seg(**files, unseen_policy="drop_image")
    assert [e["image_id"] for e in clean] == [i["id"] for i in expected if i["unseen_pixels"] == 0], "clean images"


def write_mask(folder: Path) -> None:
    (folder / "mask.json").write_text(json.dumps([box(1, 1, 5, 6)]))


def damage_mask(folder: Path, rng: random.Random) -> str:
    """One mask, changed where it hurts: numbers, characters and lengths."""
    one = rng.choice(json.loads(instance_text())["annotations"])["segmentation"]
    if isinstance(one, list):
        one, kind = _damaged_polygon(one, rng)
    elif isinstance(one["counts"], str):
        text, kind = mutate_bytes(one["counts"].encode(), rng)
        one["counts"], kind = text.decode("latin-1"), f"code {kind}"
    else:
        kind = _damage_counts(one, rng)
    (folder / "mask.json").write_text(json.dumps(one))
    return kind


def _damaged_polygon(one: Any, rng: random.Random) -> tuple[Any, str]:
    polygon = rng.choice(one)
    kind = rng.choice(("value", "value", "drop", "add", "far", "text", "flat", "many"))
    if kind == "flat":
        one = polygon
    elif kind == "many":
        polygon[:] = [rng.uniform(-20, 40) for _ in range(2 * rng.choice((3, 50, 2000)))]
    elif kind == "drop":
        del polygon[rng.randrange(len(polygon)) :]
    elif kind == "add":
        polygon.append(rng.choice((1, 1.5, NAN, 3e9)))
    else:
        values = {"value": ODD_VALUES, "far": (1e3, -33, 33, 3e9, -1e18), "text": ("1", "a", None)}[kind]
        polygon[rng.randrange(len(polygon))] = rng.choice(values)
    return one, f"polygon {kind}"


def _damage_counts(one: dict[str, Any], rng: random.Random) -> str:
    counts = one["counts"]
    kind = rng.choice(("value", "drop", "add", "size", "move"))
    place = rng.randrange(len(counts))
    if kind == "value":
        counts[place] = rng.choice(ODD_VALUES)
    elif kind == "drop":
        del counts[place:]
    elif kind == "add":
        counts.insert(place, rng.choice((0, 0, 1, -1, 1 << 40)))
    elif kind == "move":
        amount = rng.choice((1, 5, 100))
        counts[place] += amount
        counts[rng.randrange(len(counts))] -= amount
    else:
        one["size"] = rng.choice(([16, 12], [12], None, [12, 16, 1], "12", [12.0, 16.0], [0, 0], [1 << 20, 1 << 20]))
    return f"counts {kind}"


def read_mask(folder: Path) -> None:
    segmentation = plain(folder / "mask.json")
    first, second = (annotation_mask({"id": 1, "segmentation": segmentation}, SIZE, path="mask.json") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, plain_mask(segmentation, SIZE))


def read_own(folder: Path) -> None:
    """Classes as the file lists them, whatever else is in it."""
    path = folder / "x.json"
    categories = read_categories(str(path))
    expected = [(c["id"], c["name"]) for c in plain(path)["categories"]]
    assert [(c.id, c.name) for c in categories] == expected, "categories"
    assert own_split(OwnData(annotations=str(path)), categories, categories).names == tuple(n for _, n in expected)


TARGETS = (
    Target("own annotations", write_instances, damage_json, read_own),
    Target("instances", write_instances, damage_json, read_instances),
    Target("panoptic", write_panoptic, damage_panoptic, read_panoptic),
    Target("image list", write_list, damage_json, read_list),
    Target("mask", write_mask, damage_mask, read_mask),
)
