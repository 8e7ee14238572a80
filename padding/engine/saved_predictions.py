# SPDX-License-Identifier: Apache-2.0
"""Predictions as files that other programs read: COCO's panoptic JSON with PNGs, COCO results, index and saliency PNGs.

    <folder>/panoptic.json, panoptic/<name>.png    COCO panoptic annotations: panopticapi, Detectron2, annotation tools
    <folder>/instances.json                        COCO results, masks as run-length code: pycocotools' ``loadRes``
    <folder>/sem_seg/<name>.png, classes.txt       index images, a byte a pixel, 255 where nothing was predicted
    <folder>/saliency/<name>.png                   grey, 0 to 255
    <folder>/parts/                                what is done, image by image: a run that stopped goes on from there

Frames of a video have a folder with its name, below those of each kind: ``<video>/000000`` is the first.

Category ids are those of the data set's files. Several processes write into one folder; whoever finishes last joins the
parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from padding.data.class_split import ClassSplit, class_split_of
from padding.data.files import replacing, save_panoptic_png, save_png, write_json, write_text
from padding.data.readers import read_json
from padding.data.saliency.maps import saliency_to_bytes
from padding.engine.label_map import UNLABELED, label_map_of, write_label_map
from padding.engine.video import frame_name
from padding.errors import ConfigError, ExistingFileError
from padding.evaluation.instance import mask_entries

KINDS = ("panoptic", "instances", "sem_seg", "saliency")
PARTS = "parts"
_CHUNK = 64  # images in a part; so many are computed again after a run was killed
_OF_MODEL = {"panoptic_seg": "panoptic", "instances": "instances", "sem_seg": "sem_seg", "saliency": "saliency"}


class PredictionWriter:
    """Writes predictions of images into one folder.

    Attributes:
        folder: the folder.
        done: names of the images that are complete.
        left_out: names of those that could not be read.
    """

    def __init__(self, folder: str | Path, split: ClassSplit, *, kinds: Iterable[str] = KINDS, rank: int = 0) -> None:
        """Take up what earlier runs left.

        Args:
            folder: made when missing.
            split: label space of the predictions.
            kinds: of ``KINDS``; what the model does not predict is left out.
            rank: of this process, of those that write into this folder.
        """
        self.folder = Path(folder)
        self.split = split
        self.done: set[str] = set()
        self.left_out: set[str] = set()
        self._kinds = frozenset(kinds)
        self._rank = rank
        self._records: list[dict[str, Any]] = []
        self._number = 0
        self.look_again()

    def look_again(self) -> None:
        """Read which images are complete, those of other processes too."""
        for path in sorted((self.folder / PARTS).glob("*.json")):
            self._note(read_json(path, required=("images",))["images"])
            if path.name.startswith(f"{self._rank:05d}-"):
                self._number = max(self._number, int(path.stem.split("-")[1]) + 1)

    def write(self, name: str, image_id: int | str, size: tuple[int, int], prediction: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            name: of its files, without ending, below the folders of each kind; may have folders of its own.
            image_id: in the JSON files.
            size: (h, w).
            prediction: see ``padding.data.sample.Prediction``, on the CPU.

        Raises:
            ConfigError: the model predicts nothing of what is to be saved, or has too many classes for a byte.
            WriteError: the disk is full or fails.
        """
        kinds = [_OF_MODEL[key] for key in prediction if _OF_MODEL.get(key) in self._kinds]
        if not kinds:
            raise ConfigError(f"nothing to save: the model predicts {sorted(prediction)}, not {sorted(self._kinds)}")
        record: dict[str, Any] = {"name": name, "id": image_id, "height": size[0], "width": size[1], "kinds": kinds}
        if "panoptic" in kinds:
            record["segments_info"] = self._write_panoptic(name, *prediction["panoptic_seg"])
        if "instances" in kinds:
            record["objects"] = self._objects(prediction["instances"], size)
        if "sem_seg" in kinds:
            path = self.folder / "sem_seg" / f"{name}.png"
            write_label_map(path, label_map_of(prediction), list(self.split.colors))
        if "saliency" in kinds:
            values = saliency_to_bytes(prediction["saliency"].squeeze().float().clamp(0, 1).numpy())
            save_png(values, self.folder / "saliency" / f"{name}.png")
        self._records.append(record)
        if len(self._records) >= _CHUNK:
            self.flush()

    def leave_out(self, name: str) -> None:
        """Note that an image cannot be read; the others are joined without it, and a later run tries again."""
        self._records.append({"name": name, "kinds": []})

    def end_video(self, name: str, frames: str, num_frames: int) -> None:
        """Note that a video is complete.

        Args:
            name: of the video, no image's; ``join`` takes it for the frames.
            frames: folder of the frames, which are written by the names of ``frame_name``.
            num_frames: how many there are.
        """
        self._records.append({"name": name, "kinds": [], "frames": frames, "num_frames": num_frames})

    def _note(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            (self.done if record["kinds"] or "num_frames" in record else self.left_out).add(record["name"])

    def flush(self) -> None:
        """Note that all images so far are complete."""
        if self._records:
            path = self.folder / PARTS / f"{self._rank:05d}-{self._number:07d}.json"
            write_json(path, {"images": self._records}, indent=None)
            self._note(self._records)
            self._number += 1
            self._records = []

    def _write_panoptic(self, name: str, segments: Tensor, info: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        ids = segments.numpy()
        save_panoptic_png(ids, self.folder / "panoptic" / f"{name}.png")
        described = []
        for segment in info:
            ys, xs = np.nonzero(ids == segment["id"])
            left, top = int(xs.min()), int(ys.min())
            described.append(
                {
                    "id": int(segment["id"]),
                    "category_id": self.split.dataset_ids[int(segment["category_id"])],
                    "area": len(ys),
                    "bbox": [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1],
                    "iscrowd": 0,
                }
            )
        return described

    def _objects(self, instances: Instances, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Entries of COCO's results but for the image; classes that are no things are left out, as in evaluations."""
        things = self.split.thing_ids
        keep = torch.tensor([int(label) in things for label in instances.pred_classes], dtype=torch.bool)
        if not keep.any():
            return []
        instances = instances[keep]
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        return [
            {"category_id": self.split.dataset_ids[label], "score": score, **shape}
            for label, score, shape in zip(classes, scores, mask_entries(instances.pred_masks, size), strict=True)
        ]

    def join(self, names: Iterable[str]) -> bool:
        """Write the JSON files once every image is complete; of several processes the last one does it.

        Args:
            names: of all images and videos.

        Returns:
            Whether they were complete.
        """
        self.flush()
        wanted = dict.fromkeys(names)
        if not wanted.keys() <= self.done | self.left_out:
            self.look_again()
        if not wanted.keys() <= self.done | self.left_out:
            return False
        records: dict[str, Mapping[str, Any]] = {}
        for path in sorted((self.folder / PARTS).glob("*.json")):
            records.update({record["name"]: record for record in read_json(path)["images"]})
        ordered = [records[one] for name in wanted for one in _images_of(records[name]) if records[one]["kinds"]]
        found = {kind for record in ordered for kind in record["kinds"]}
        if "panoptic" in found:
            self._join_panoptic(ordered)
        if "instances" in found:
            entries = ({"image_id": r["id"], **one} for r in ordered for one in r["objects"])
            _write_list(self.folder / "instances.json", entries)
        if "sem_seg" in found:
            lines = [f"{index} {name}\n" for index, name in enumerate(self.split.names)]
            write_text(self.folder / "classes.txt", "".join([*lines, f"{UNLABELED} unlabeled\n"]))
        return True

    def _join_panoptic(self, records: Sequence[Mapping[str, Any]]) -> None:
        split = self.split
        content = {
            "images": [
                {"id": r["id"], "file_name": f"{r['name']}.png", "height": r["height"], "width": r["width"]}
                for r in records
            ],
            "annotations": [
                {"image_id": r["id"], "file_name": f"{r['name']}.png", "segments_info": r["segments_info"]}
                for r in records
            ],
            "categories": [
                {"id": key, "name": name, "isthing": int(thing), "color": list(color), "supercategory": ""}
                for key, name, thing, color in zip(
                    split.dataset_ids, split.names, split.is_thing, split.colors, strict=True
                )
            ],
        }
        write_json(self.folder / "panoptic.json", content, indent=None)


def _images_of(record: Mapping[str, Any]) -> Iterator[str]:
    if "num_frames" not in record:
        yield record["name"]
    yield from (frame_name(record["frames"], i) for i in range(record.get("num_frames", 0)))


def _write_list(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list entry by entry: that of a million images would not fit into memory as one text."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, entry in enumerate(entries):
            file.write(("," if number else "") + "\n" + json.dumps(entry))
        file.write("\n]\n")


def refuse_existing(folder: str | Path, *, resume: bool) -> None:
    """Refuse a folder that holds predictions, unless they are to be completed.

    Raises:
        ExistingFileError: names the folder and the remedy.
    """
    if not resume and any((Path(folder) / PARTS).glob("*.json")):
        raise ExistingFileError(
            f"{folder} holds predictions already; --resume adds those that are missing, or choose another folder"
        )


class PredictionSaver(DatasetEvaluator):
    """Saves what a model predicts on a data set (TEST.SAVE_PREDICTIONS); gives no scores."""

    def __init__(self, dataset_name: str, folder: str | Path) -> None:
        """Prepare to write.

        Args:
            dataset_name: registered data set.
            folder: what an earlier evaluation left there is removed.
        """
        from detectron2.data import DatasetCatalog, MetadataCatalog

        # Of a set with saliency alone the classes of the other predictions are not known.
        only_saliency = MetadataCatalog.get(dataset_name).get("evaluator_type") == "saliency"
        self._kinds = ("saliency",) if only_saliency else KINDS
        self._entries = list(DatasetCatalog.get(dataset_name))
        self._names = dict(zip([e["file_name"] for e in self._entries], file_names(self._entries), strict=True))
        self._folder = Path(folder)
        self._split = class_split_of(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        comm.synchronize()
        if comm.is_main_process():
            for path in (self._folder / PARTS).glob("*.json"):
                path.unlink()
        comm.synchronize()
        self._writer = PredictionWriter(self._folder, self._split, kinds=self._kinds, rank=comm.get_rank())
        self._seen: list[str] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Save a batch; see ``DatasetEvaluator.process``."""
        for record, output in zip(inputs, outputs, strict=True):
            name = self._names[record["file_name"]]
            self._seen.append(name)
            self._writer.write(name, record["image_id"], (record["height"], record["width"]), _on_cpu(output))

    def evaluate(self) -> None:
        """Join what all processes saved."""
        self._writer.flush()
        seen = {name for part in comm.all_gather(self._seen) for name in part}
        if comm.is_main_process():
            self._writer.join(name for name in self._names.values() if name in seen)
        comm.synchronize()


def file_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for the files of each image: that of the image, and where these repeat, its id."""
    stems = [Path(entry["file_name"]).stem for entry in entries]
    return stems if len(set(stems)) == len(stems) else [str(entry["image_id"]) for entry in entries]


def _on_cpu(output: Mapping[str, Any]) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        return (value[0].cpu(), value[1]) if isinstance(value, tuple) else value.to("cpu")

    return {key: moved(value) for key, value in output.items() if key in _OF_MODEL}
