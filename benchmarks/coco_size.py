# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and peak memory of what reads annotations of COCO's size, each in a process of its own.

118,287 images, 133 categories, a panoptic JSON of 480 MB, 860,000 objects in 550 MB, all generated.

Example:
  python -m benchmarks.coco_size --images 118287 [--stages registration training]
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.generated_coco import IMAGES, OBJECTS, SEGMENTS, write_files, write_instances_json, write_panoptic_json
from padding.bank.identity import annotations_digest
from padding.data import checks
from padding.data.loaders.instances_json import load_instances
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.prepare.coco_panoptic import filter_panoptic_json
from padding.data.sample import DatasetDict
from padding.data.sets.coco import coco_zsp_split
from padding.data.streams import TrainStream
from padding.engine.commands import command_parser, parse, positive
from padding.engine.start_check import HEADERS
from padding.errors import run_command
from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic import PanopticGroundTruth


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; the last line printed is the result as JSON."""
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = coco_zsp_split()
        write_files(folder, args.images, num_classes=split.num_classes)
        write_panoptic_json(folder / "panoptic.json", args.images, split, segments=args.segments)
        write_instances_json(folder / "instances.json", args.images, split, objects=args.objects)
        result: dict[str, Any] = {"images": args.images}
        for stage in args.stages:
            result |= {f"{stage}_{key}": value for key, value in alone(stage, folder).items()}
            print(json.dumps(result), flush=True)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=positive, default=IMAGES, metavar="N", help="default: COCO train2017")
    parser.add_argument("--segments", type=positive, default=SEGMENTS, metavar="N", help="mean number in an image")
    parser.add_argument("--objects", type=positive, default=OBJECTS, metavar="N", help="in all images")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    return parse(parser, arguments)


def alone(stage: str, folder: Path) -> dict[str, float]:
    """CPU seconds, peak memory beyond what importing takes, and that as a part of the file, in a new process."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_measure, args=(stage, folder, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"stage {stage} ended with {process.exitcode}")
    return results.get()


def _measure(stage: str, folder: Path, results: Any) -> None:
    logging.disable(logging.CRITICAL)
    file, work = STAGES[stage]
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = time.process_time()
    kept = work(folder)
    seconds = time.process_time() - seconds
    peak = _memory("VmHWM") - before
    del kept
    size = (folder / file).stat().st_size
    results.put({"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6), "peak_to_file": round(peak / size, 2)})


def _memory(name: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _entries(folder: Path) -> list[DatasetDict]:
    return load_panoptic(
        panoptic_json=folder / "panoptic.json",
        image_root=folder / "images",
        panoptic_root=folder / "labels",
        class_split=coco_zsp_split(),
    )


def _preparation(folder: Path) -> Any:
    return filter_panoptic_json(folder / "panoptic.json", folder / "seen.json", coco_zsp_split())


def _training(folder: Path) -> Any:
    """All that a training holds of its entries."""
    stream = TrainStream(_entries(folder), dict, batch_size=1, seed=0)
    return stream, stream.fingerprint()


def _start_check(folder: Path) -> Any:
    entries, names = _entries(folder), coco_zsp_split().names
    found = [
        *checks.check_files("set", entries, ("file_name", "pan_seg_file_name")),
        *checks.check_ids("set", entries),
        *checks.check_sizes("set", entries, limit=HEADERS),
        *checks.check_objects("set", entries, names),
    ]
    if wrong := [finding for finding in found if finding.level == "error"]:
        raise RuntimeError(f"the generated data have faults: {wrong}")
    return entries


def _bank_manifest(folder: Path) -> Any:
    return annotations_digest(_entries(folder))


def _evaluation(folder: Path) -> Any:
    """Ground truth of an evaluation, as its evaluator holds it."""
    groups = ClassGroups.from_metadata({"class_split": coco_zsp_split()})
    return PanopticGroundTruth(folder / "panoptic.json", folder / "labels", groups)


def _instances(folder: Path) -> Any:
    return load_instances(
        json_file=folder / "instances.json", image_root=folder / "images", class_split=coco_zsp_split()
    )


STAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "preparation": ("panoptic.json", _preparation),
    "registration": ("panoptic.json", _entries),
    "training": ("panoptic.json", _training),
    "start_check": ("panoptic.json", _start_check),
    "bank_manifest": ("panoptic.json", _bank_manifest),
    "evaluation": ("panoptic.json", _evaluation),
    "instances": ("instances.json", _instances),
}
"""File that is read, and what reads it, from registration to the form in which it is kept."""


if __name__ == "__main__":
    sys.exit(run_command(main))
