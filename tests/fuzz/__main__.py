# SPDX-License-Identifier: Apache-2.0
"""Attack the readers for a given time; what is read wrongly is kept in a folder.

    python -m tests.fuzz [--seconds 60] [--seed 0] [--target NAME ...] [--output output/fuzz]

Exit status: 0 every input gave the right result or the project's error that names the file, 1 some did not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from padding.data.files import write_json
from tests.fuzz.harness import GOOD, make_input
from tests.fuzz.runner import outcomes_of
from tests.fuzz.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets one after the other and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each reader")
    parser.add_argument("--target", nargs="*", default=list(TARGETS), choices=list(TARGETS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), metavar="DIR")
    args = parser.parse_args(arguments)
    failures, table = 0, {}
    for name in args.target:
        counts: Counter[tuple[str, str]] = Counter()
        for outcome in outcomes_of(TARGETS[name], args.seed, args.seconds / len(args.target)):
            counts[outcome.mutation, outcome.result] += 1
            if outcome.result not in GOOD:
                failures += 1
                folder = args.output / f"{name.replace(' ', '_')}_{outcome.result}_{outcome.seed}"
                make_input(TARGETS[name], outcome.seed, folder)
                print(f"{outcome}\n  kept in {folder}")  # noqa: T201
        by_kind: dict[str, dict[str, int]] = {}
        for (kind, result), number in sorted(counts.items()):
            by_kind.setdefault(kind, {})[result] = number
        table[name] = by_kind
        results = {result: sum(n for (_, one), n in counts.items() if one == result) for _, result in sorted(counts)}
        print(f"{name}: {counts.total()} inputs: {results}", flush=True)  # noqa: T201
    write_json(args.output / "outcomes.json", table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
