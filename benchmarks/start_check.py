# SPDX-License-Identifier: Apache-2.0
"""Time of the look over a data set of COCO's size: a sample of its files, as a training does it, against all of them.

Writes a folder of small images and label images under a temporary name (hard links, so that it takes no space).

Example:
  python -m benchmarks.start_check --images 118287
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padding.data import checks
from padding.engine.commands import command_parser, parse, positive
from padding.engine.start_check import HEADERS, LABELS
from padding.errors import run_command

_SIZE = (480, 640)
_CLASSES = 133


def write_set(folder: Path, count: int) -> list[dict[str, Any]]:
    """Entries of ``count`` images of 480 x 640 with semantic labels."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    Image.fromarray(rng.integers(0, 255, (*_SIZE, 3), dtype=np.uint8)).save(folder / "image.jpg")
    cells = rng.integers(0, _CLASSES, (_SIZE[0] // 32, _SIZE[1] // 32), dtype=np.uint8)
    labels = cells.repeat(32, 0).repeat(32, 1)
    Image.fromarray(labels).save(folder / "label.png")
    entries = []
    for index in range(count):
        image, label = folder / "images" / f"{index:012d}.jpg", folder / "labels" / f"{index:012d}.png"
        # A file system allows some ten thousand links to one file.
        if index % 30_000 == 0:
            sources = [folder / f"image_{index}.jpg", folder / f"label_{index}.png"]
            for source, original in zip(sources, ("image.jpg", "label.png"), strict=True):
                source.write_bytes((folder / original).read_bytes())
        os.link(sources[0], image)
        os.link(sources[1], label)
        entries.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": str(label),
                "image_id": index,
                "height": _SIZE[0],
                "width": _SIZE[1],
            }
        )
    return entries


def seconds(look: Callable[[], Iterable[checks.Finding]]) -> float:
    """CPU seconds of a check; its findings must be notes."""
    start = time.process_time()
    found = list(look())
    spent = time.process_time() - start
    if wrong := [str(finding) for finding in found if finding.level != "note"]:
        raise RuntimeError(f"the generated data have faults: {wrong}")
    return spent


def measure(count: int) -> dict[str, float]:
    """CPU seconds by check, of a sample and of all files."""
    names = [str(index) for index in range(_CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        entries = write_set(Path(folder), count)
        keys = ("file_name", "sem_seg_file_name")
        result = {
            "files": seconds(lambda: checks.check_files("set", entries, keys)),
            "ids": seconds(lambda: checks.check_ids("set", entries)),
            "headers_of_a_sample": seconds(lambda: checks.check_sizes("set", entries, limit=HEADERS)),
            "labels_of_a_sample": seconds(lambda: checks.check_labels("set", entries, names, limit=LABELS)),
            "headers_of_all": seconds(lambda: checks.check_sizes("set", entries)),
        }
    at_start = sum(result[name] for name in ("files", "ids", "headers_of_a_sample", "labels_of_a_sample"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = {"at_start": at_start, "ratio": at_start / (at_start + result["headers_of_all"]), "peak_mb": peak}
    return {"images": count, **result, **total}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=positive, default=118_287, metavar="N", help="default: COCO train2017")
    print(json.dumps(measure(parse(parser, arguments).images)))


if __name__ == "__main__":
    sys.exit(run_command(main))
