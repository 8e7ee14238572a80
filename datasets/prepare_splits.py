# SPDX-License-Identifier: Apache-2.0
"""Check and draw lists of labeled and unlabeled images, as DATASETS.SPLIT names them.

    python datasets/prepare_splits.py                                   # check all shipped lists
    python datasets/prepare_splits.py voc/cps_blender camvid            # some of them
    python datasets/prepare_splits.py --folder my/lists --images my/images
    python datasets/prepare_splits.py --folder my/lists --images my/images --draw 50 --seed 0
    python datasets/prepare_splits.py --folder my/lists --images my/images --labels my/labels --exclude my/val.txt

A shipped list must have the count and hash of its protocol and no id twice; the two of a split have none in common and
add up to the stated pool. Your own lists are compared with the images of a folder. --draw writes new lists, drawn with
numpy.random.RandomState(seed).choice from the sorted ids; with one seed a small set is part of every larger one.
--labels writes lists in which the images with a label file are labeled. --exclude leaves out the images kept for
evaluation. --subfolders and --suffix mean what DATASETS.FOLDERS.SUBFOLDERS and LABEL_SUFFIX mean. Lists are never
overwritten. Exit status: 0 all is well, 1 problems found, 2 input that cannot be used.
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

from padding.data.prepare.command import preparation_parser, run_preparation
from padding.errors import DataError

if TYPE_CHECKING:
    from padding.data.prepare.split_lists import SplitReport


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__)
    parser.add_argument("names", nargs="*", help="shipped splits, or what their names begin with (default: all)")
    parser.add_argument("--folder", type=Path, help="folder of your own labeled.txt and unlabeled.txt")
    parser.add_argument("--images", type=Path, help="folder of all their images")
    parser.add_argument("--subfolders", action="store_true", help="images and labels lie in the folders below as well")
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="ids of images that belong into neither list")
    writes = parser.add_mutually_exclusive_group()
    writes.add_argument("--draw", type=int, metavar="N", help="write lists with N labeled images into --folder")
    writes.add_argument("--labels", type=Path, metavar="DIR", help="write lists: those with a file in DIR are labeled")
    parser.add_argument("--suffix", default="", help="of the label files, behind the id (default: .png)")
    parser.add_argument("--seed", type=int, default=0, help="of --draw (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.names and args.folder:
        parser.error("name shipped splits or give --folder, not both")
    if (args.draw is not None or args.labels or args.exclude) and not (args.folder and args.images):
        parser.error("--draw, --labels and --exclude need --folder for the lists and --images for the ids")
    if args.images and not args.folder:
        parser.error("--images belongs to --folder")
    return args


def pool_of(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Ids that the lists are about; None without --images.

    Raises:
        DataError: an excluded id is no image.
    """
    if args.images is None:
        return None
    from padding.data.loaders.listed_images import read_id_list
    from padding.data.prepare.split_lists import image_ids_in

    beside = args.labels is not None and args.labels.resolve() == args.images.resolve()
    ids = image_ids_in(args.images, subfolders=args.subfolders, label_suffix=args.suffix or (".png" if beside else ""))
    if args.exclude is None:
        return ids
    excluded = set(read_id_list(args.exclude))
    unknown = sorted(excluded - set(ids))
    if unknown:
        raise DataError(f"{args.exclude}: {len(unknown)} ids are no image of {args.images}, first {unknown[0]}")
    return tuple(one for one in ids if one not in excluded)


def chosen(names: Sequence[str]) -> list[str]:
    """Shipped splits with these names or below them.

    Raises:
        DataError: a name that is none.
    """
    from padding.data.semi_splits import shipped_splits

    known = shipped_splits()
    for name in names:
        if not any(f"{split}/".startswith(f"{name}/") for split in known):
            raise DataError(f"no shipped split is '{name}' or begins with it; there are {', '.join(known)}")
    return [split for split in known if not names or any(f"{split}/".startswith(f"{name}/") for name in names)]


def show(reports: Sequence[SplitReport], further_problems: Sequence[str] = ()) -> int:
    """Print a table and the problems; returns the exit status."""
    from tabulate import tabulate

    rows = [(r.name, r.labeled, r.unlabeled, r.digest, "ok" if not r.problems else "PROBLEM") for r in reports]
    print(tabulate(rows, headers=("split", "labeled", "unlabeled", "lists", "check"), disable_numparse=True))
    problems = [*further_problems, *(f"{report.name}: {text}" for report in reports for text in report.problems)]
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


def prepare(args: argparse.Namespace) -> int:
    """Check shipped lists, or write and check one's own; returns the exit status."""
    from padding.data.prepare import split_lists

    if args.folder is None:
        return show([split_lists.check_shipped_split(name) for name in chosen(args.names)], split_lists.check_pools())
    ids = pool_of(args)
    if args.draw is not None:
        split_lists.write_split(args.folder, *split_lists.draw_labeled(ids or (), args.draw, seed=args.seed))
    elif args.labels is not None:
        split_lists.write_split(
            args.folder, *split_lists.labeled_by_files(ids or (), args.labels, suffix=args.suffix or ".png")
        )
    return show([split_lists.check_split(args.folder, image_ids=ids)])


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
