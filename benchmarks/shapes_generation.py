# SPDX-License-Identifier: Apache-2.0
"""How fast the embedded data set is written, with one and with two processes.

    python -m benchmarks.shapes_generation [--num-images 800] [--folder FOLDER]

The last line is a JSON object: ``images_per_second`` (two processes, files included), ``images_per_second_one_worker``,
``speedup``, ``render_ms`` (one image without its files), ``cpu_ms`` (user and system time of one image with its files,
which other programs on the machine hardly change) and ``identical`` (both runs wrote the same bytes).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.render import render_image
from padding.data.shapes.write import write_shapes
from padding.errors import run_command

_RENDERED = 200


def measure(config: ShapesConfig, folder: Path, num_workers: int) -> dict[str, Any]:
    """Write the data set into an empty folder; returns wall and processor seconds and the digest."""
    before = _processor_seconds()
    start = time.perf_counter()
    manifest = write_shapes(folder, config, num_workers=num_workers, start_method="fork")
    wall = time.perf_counter() - start
    return {"wall": wall, "processor": _processor_seconds() - before, "sha256": manifest["sha256"]}


def _processor_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images per second of the shapes generator.")
    parser.add_argument("--num-images", type=int, default=800, help="images per run (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the temporary folders are made (default: the system's)")
    args = parser.parse_args(arguments)
    config = ShapesConfig(num_train=args.num_images, num_val=0)

    start = time.perf_counter()
    for index in range(_RENDERED):
        render_image(config, "train", index)
    render_ms = (time.perf_counter() - start) / _RENDERED * 1000

    runs = {}
    for num_workers in (1, 2):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            runs[num_workers] = measure(config, Path(folder), num_workers)
        rate = args.num_images / runs[num_workers]["wall"]
        print(f"{num_workers} worker(s): {rate:.0f} images/s, {runs[num_workers]['wall']:.2f} s")
    result = {
        "images_per_second": round(args.num_images / runs[2]["wall"], 1),
        "images_per_second_one_worker": round(args.num_images / runs[1]["wall"], 1),
        "speedup": round(runs[1]["wall"] / runs[2]["wall"], 2),
        "render_ms": round(render_ms, 2),
        "cpu_ms": round(runs[2]["processor"] / args.num_images * 1000, 2),
        "identical": runs[1]["sha256"] == runs[2]["sha256"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
