# SPDX-License-Identifier: Apache-2.0
"""Prepare COCO-Stuff 164k for zero-shot semantic segmentation, 156 seen and 15 unseen classes (PADing, Tab. 4).

    python datasets/prepare_coco_zss.py               # the COCO folder below $DETECTRON2_DATASETS or datasets
    python datasets/prepare_coco_zss.py --check       # verify, write nothing
    python datasets/prepare_coco_zss.py --subset      # accept fewer images than the official download has

Reads stuffthingmaps/{train,val}2017 and the images, writes stuff_zss/{train,val}2017 and annotations/zss. Interrupted
runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.errors import PreparationError

if TYPE_CHECKING:
    from padding.data.class_split import ClassSplit
    from padding.data.prepare.coco_stuff import StuffTask


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; paths that are not given follow from --root."""
    parser = preparation_parser(__doc__, root="COCO folder", below="coco")
    parser.add_argument("--stuff-dir", type=Path, help="official label PNGs (default: <root>/stuffthingmaps)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: --root itself)")
    add_options(parser, "--num-workers", "--subset", "--check", check="verify a prepared folder and write nothing")
    return parser.parse_args(arguments)


def plan(args: argparse.Namespace, split: ClassSplit) -> dict[str, tuple[list[StuffTask], Path]]:
    """Tasks and image list of the two subsets.

    Raises:
        PreparationError: folders are missing, or hold another number of labels than the official download.
    """
    from padding.data.prepare.coco_stuff import FULL_IMAGES, stuff_tasks

    output, stuff = args.output or args.root, args.stuff_dir or args.root / "stuffthingmaps"
    plans = {}
    for subset, expected in FULL_IMAGES.items():
        tasks = stuff_tasks(
            source_dir=stuff / f"{subset}2017",
            target_dir=output / "stuff_zss" / f"{subset}2017",
            image_dir=args.root / f"{subset}2017",
            split=split,
            hide_unseen=subset == "train",
        )
        if len(tasks) != expected and not args.subset:
            raise PreparationError(
                f"{stuff / f'{subset}2017'}: {len(tasks)} PNGs, the official download has {expected}. Unpack it again, "
                "or pass --subset if you mean a part of it."
            )
        plans[subset] = (tasks, output / "annotations" / "zss" / f"stuff_{subset}2017.json")
    return plans


def write(plans: dict[str, tuple[list[StuffTask], Path]], split: ClassSplit, num_workers: int) -> int:
    """Write and audit; returns the exit status."""
    from padding.data.prepare.coco_stuff import write_stuff

    failed = False
    for subset, (tasks, image_list) in plans.items():
        audit = write_stuff(tasks, image_list, split, num_workers=num_workers, title=subset)
        title = "training set, leak audit:" if subset == "train" else "validation set (all classes):"
        print("\n".join([title, *audit.lines()]))
        failed |= bool(audit.leaked_pixels or audit.strays)
    if failed:
        print("LEAK: there are labels or files that must not be there, see above", file=sys.stderr)
        return 1
    print("no unseen class in what will be trained on")
    return 0


def check(plans: dict[str, tuple[list[StuffTask], Path]], num_workers: int) -> int:
    """Verify; returns the exit status."""
    from padding.data.prepare.coco_stuff import check_stuff

    problems = []
    for subset, (tasks, image_list) in plans.items():
        audit, found = check_stuff(tasks, image_list, num_workers=num_workers, title=f"check {subset}")
        print("\n".join([f"{subset}:", *audit.lines()]))
        problems += found
    return report(problems, sound="checked: complete, labels agree with the source, no unseen class")


def prepare(args: argparse.Namespace) -> int:
    """Write or check; returns the exit status."""
    from padding.data.sets.coco import coco_zss_split

    split = coco_zss_split()
    plans = plan(args, split)
    return check(plans, args.num_workers) if args.check else write(plans, split, args.num_workers)


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
