# SPDX-License-Identifier: Apache-2.0
"""Time of the look over a data set of COCO's size: a sample of its files, as a training does it, against all of them.

Writes a folder of small images and label images under a temporary name (hard links, so that it takes no space).

Example:
  python -m benchmarks.start_check --images 118287
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.generated_coco import IMAGES, SIZE, entries_of, write_files
from padding.data import checks
from padding.engine.commands import command_parser, parse, positive
from padding.engine.start_check import HEADERS, LABELS
from padding.errors import run_command

_SIZE = SIZE
_CLASSES = 133


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
        write_files(Path(folder), count, num_classes=_CLASSES, size=_SIZE)
        entries = entries_of(Path(folder), count, size=_SIZE)
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
    parser.add_argument("--images", type=positive, default=IMAGES, metavar="N", help="default: COCO train2017")
    print(json.dumps(measure(parse(parser, arguments).images)))


if __name__ == "__main__":
    sys.exit(run_command(main))
