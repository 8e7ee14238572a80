# SPDX-License-Identifier: Apache-2.0
"""Attack the readers for a given time; what is read wrongly is kept in a folder.

    python -m tests.fuzz [--seconds 60] [--seed 0] [--target NAME ...] [--output output/fuzz]

Each reader runs in a process of its own, with a limit on memory, so that a crash or a hang is an outcome, too.

Exit status: 0 every input gave the right result or the project's error that names the file, 1 some did not.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from padding.data.files import write_json
from tests.fuzz.harness import GOOD, Outcome, attempt, make_input
from tests.fuzz.targets import TARGETS

HANG_SECONDS = 30
MEMORY_BYTES = 4 << 30  # beyond what the process has after its imports


def work(name: str, first_seed: int, seconds: float, results: Connection) -> None:
    """Send a seed before and the outcome after each attempt, None at the end."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for seed in itertools.count(first_seed):
            if time.monotonic() > end:
                break
            results.send(seed)
            results.send(attempt(TARGETS[name], seed, Path(folder) / "input"))
    results.send(None)


def outcomes_of(name: str, first_seed: int, seconds: float) -> Iterator[Outcome]:
    """Outcomes of one reader; a process that dies or hangs is started again behind the seed at fault."""
    end = time.monotonic() + seconds
    seed = first_seed
    while (left := end - time.monotonic()) > 0:
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(name, seed, left, theirs))
        process.start()
        theirs.close()
        fault = ""
        try:
            while True:
                if not ours.poll(HANG_SECONDS):
                    fault = "hang"
                    break
                message = ours.recv()
                if message is None:
                    return
                if isinstance(message, Outcome):
                    yield message
                else:
                    seed = message
        except EOFError:
            fault = "crash"
        finally:
            process.kill()
            process.join()
        with tempfile.TemporaryDirectory() as folder:
            mutation = make_input(TARGETS[name], seed, Path(folder) / "input")
        yield Outcome(name, seed, mutation, fault, f"exit status {process.exitcode}")
        seed += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all targets and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each reader")
    parser.add_argument("--target", nargs="*", default=list(TARGETS), choices=list(TARGETS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), metavar="DIR")
    args = parser.parse_args(arguments)
    failures, table = 0, {}
    for name in args.target:
        counts: Counter[tuple[str, str]] = Counter()
        for outcome in outcomes_of(name, args.seed, args.seconds / len(args.target)):
            counts[outcome.mutation, outcome.result] += 1
            if outcome.result not in GOOD:
                failures += 1
                folder = args.output / f"{name.replace(' ', '_')}_{outcome.result}_{outcome.seed}"
                make_input(TARGETS[name], outcome.seed, folder)
                print(f"{outcome}\n  kept in {folder}")  # noqa: T201
        table[name] = {
            kind: {result: n for (one, result), n in sorted(counts.items()) if one == kind}
            for kind in sorted({kind for kind, _ in counts})
        }
        results = Counter[str]()
        for (_, result), number in counts.items():
            results[result] += number
        print(f"{name}: {results.total()} inputs: {dict(results)}")  # noqa: T201
    write_json(args.output / "outcomes.json", table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
