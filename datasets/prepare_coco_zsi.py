# SPDX-License-Identifier: Apache-2.0
"""Prepare COCO 2014 for zero-shot instance segmentation, splits 48/17 and 65/15 (PADing, Tab. 5).

    python datasets/prepare_coco_zsi.py                    # both splits, from <root>/annotations
    python datasets/prepare_coco_zsi.py --split 65_15
    python datasets/prepare_coco_zsi.py --check            # verify, write nothing

Reads annotations/instances_{train,val}2014.json, writes three files a split to annotations/zsi. A finished file is not
written again. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import filecmp
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.annotation_file import read_summary
from padding.data.prepare.coco_instances import (
    KINDS,
    PUBLISHED_TRAIN_IMAGES,
    InstanceSummary,
    Kind,
    audit_instances,
    filter_instances,
)
from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.data.sets.coco import INSTANCE_SPLITS, coco_zsi_split

_TARGETS = {
    "train": "instances_train2014_seen_{}.json",
    "gzsi": "instances_val2014_gzsi_{}.json",
    "unseen": "instances_val2014_unseen_{}.json",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; paths that are not given follow from --root."""
    parser = preparation_parser(__doc__, root="COCO folder", below="coco")
    parser.add_argument("--output", type=Path, help="folder to write to (default: <root>/annotations/zsi)")
    parser.add_argument("--split", choices=INSTANCE_SPLITS, action="append", help="default: both")
    parser.add_argument("--any-count", action="store_true", help="do not compare with the published number of images")
    help_texts = {"overwrite": "write again although a result exists", "check": "verify prepared files, write nothing"}
    add_options(parser, "--overwrite", "--check", **help_texts)
    return parser.parse_args(arguments)


def files(args: argparse.Namespace) -> Iterator[tuple[str, Kind, Path, Path]]:
    """(split, kind, source, target) of every file."""
    output = args.output or args.root / "annotations" / "zsi"
    for name in args.split or INSTANCE_SPLITS:
        for kind in KINDS:
            subset = "train" if kind == "train" else "val"
            source = args.root / "annotations" / f"instances_{subset}2014.json"
            yield name, kind, source, output / _TARGETS[kind].format(name)


def prepare(args: argparse.Namespace) -> int:
    """Filter and audit, or check; returns the exit status."""
    if args.check:
        return check(args)
    problems = []
    for name, kind, source, target in files(args):
        split = coco_zsi_split(name)
        expected = 0 if args.any_count else PUBLISHED_TRAIN_IMAGES.get(name, 0)
        summary = filter_instances(source, target, split, kind=kind, expected_images=expected, overwrite=args.overwrite)
        print("\n".join(summary.lines()))
        if kind == "train":
            problems += audit_instances(target, split)
    for problem in problems:
        print(f"LEAK: {problem}", file=sys.stderr)
    if not problems:
        print("no unseen class in what will be trained on")
    return 1 if problems else 0


def check(args: argparse.Namespace) -> int:
    """Filter once more and compare, look up the images in the source; returns the exit status."""
    problems = []
    for name, kind, source, target in files(args):
        split = coco_zsi_split(name)
        summary = read_summary(target, InstanceSummary)
        if summary is None:
            problems.append(f"{target}: not prepared; run without --check.")
            continue
        print("\n".join(summary.lines()))
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / target.name
            filter_instances(source, again, split, kind=kind)
            if not filecmp.cmp(again, target, shallow=False):
                problems.append(f"{target}: differs from what {source} gives; prepare again with --overwrite.")
        if kind == "train":
            problems += audit_instances(target, split, source=source)
    return report(problems, sound="checked: complete, as the source says, no unseen class")


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
