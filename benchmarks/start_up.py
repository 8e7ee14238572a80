# SPDX-License-Identifier: Apache-2.0
"""CPU time until a command has printed its help, against a bare import of torch and Detectron2.

User and system time of the process, medians of alternating runs. ``ratios`` holds the time of each script over that of
``python -c "import torch, detectron2"``; at most 1.3 is the aim for train_net.py and demo.py, 1.05 for the scripts that
prepare data.

    python -m benchmarks.start_up [--only WORD ...] [--repeats 5]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from padding.errors import run_command

ROOT = Path(__file__).parents[1]
REFERENCE = ("-c", "import torch, detectron2")


def scripts() -> list[str]:
    """Scripts of the repository that are measured, relative to its root."""
    prepare = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "datasets").glob("prepare_*.py"))
    return ["train_net.py", "demo.py", *prepare]


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system time of one run of Python.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(names: Sequence[str], repeats: int) -> tuple[float, dict[str, float]]:
    """Median CPU seconds of the reference, and of ``--help`` of each script over it."""
    words = {"": REFERENCE, **{name: (name, "--help") for name in names}}
    times: dict[str, list[float]] = {name: [] for name in words}
    for _ in range(repeats):
        for name, command in words.items():
            times[name].append(cpu_seconds(command))
    reference = statistics.median(times.pop(""))
    return reference, {name: statistics.median(found) / reference for name, found in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and print the result as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="scripts whose name holds such a word")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each script, of which the median counts")
    args = parser.parse_args(arguments)
    names = [name for name in scripts() if any(word in name for word in args.only)]
    reference, ratios = measure(names, args.repeats)
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"reference_seconds": round(reference, 3), "ratios": rounded}))


if __name__ == "__main__":
    sys.exit(run_command(main))
