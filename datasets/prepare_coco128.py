# SPDX-License-Identifier: Apache-2.0
"""Check coco128_panoptic, 100 training and 100 validation photographs of COCO, or link a copy below the data root.

    python datasets/prepare_coco128.py --source DIR     # links <root>/coco128_panoptic to DIR, then checks
    python datasets/prepare_coco128.py --check          # checks, writes nothing
    python datasets/prepare_coco128.py --check --samples        # the photographs that ship in datasets/samples

Nothing is converted: training and evaluation read the folder as it is. Exit status: 0 sound, 1 problems found, 2 input
that cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.errors import PreparationError

FOLDER = "coco128_panoptic"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="folder of coco128_panoptic")
    parser.add_argument("--source", type=Path, metavar="DIR", help="unpacked copy to link")
    parser.add_argument("--samples", action="store_true", help="the photographs in datasets/samples instead")
    help_texts = {"check": "write nothing (the default without --source)", "subset": "accept another number of images"}
    add_options(parser, "--check", "--subset", **help_texts)
    args = parser.parse_args(arguments)
    if args.source and (args.check or args.samples):
        parser.error("--source writes a link, --check and --samples write nothing; give one of them")
    return args


def link(source: Path, target: Path) -> None:
    """Make ``target`` a link to a copy; a right one is left alone.

    Raises:
        PreparationError: the copy has another layout, or something else is in the way.
    """
    from padding.data.sets.coco_photographs import photograph_files

    missing = [
        path for part in ("train", "val") for path in photograph_files(source, part).values() if not path.exists()
    ]
    if missing:
        raise PreparationError(f"{source}: has no {missing[0].relative_to(source)}; name the folder that holds images/")
    if target.resolve() == source.resolve():
        return
    if target.exists() or target.is_symlink():
        raise PreparationError(f"{target} exists already and is another folder than {source}; move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve(), target_is_directory=True)
    print(f"{target} -> {source.resolve()}")


def check(folder: Path, counts: dict[str, int], *, subset: bool) -> int:
    """Read every image, PNG and entry; returns the exit status."""
    from padding.data.prepare.photograph_audit import audit_photographs
    from padding.data.sets.coco_photographs import photograph_files

    lines, problems = [], []
    for part, expected in counts.items():
        audit = audit_photographs(photograph_files(folder, part))
        if audit.num_images != expected and not subset:
            problems.append(f"{part}: {audit.num_images} images, expected {expected}; --subset accepts another number")
        problems += audit.problems
        lines.append(f"{part}: {audit.num_images} images, {audit.num_segments} segments of {audit.num_classes} classes")
    return report(problems, lines, sound="checked: images, PNGs and JSON agree")


def prepare(args: argparse.Namespace) -> int:
    """Link, if there is something to link, and check; returns the exit status."""
    from padding.data.sets.coco_photographs import COUNTS, samples_dir

    if args.samples:
        return check(samples_dir(), COUNTS["coco_samples"], subset=args.subset)
    folder = args.root / FOLDER
    if args.source:
        link(args.source, folder)
    return check(folder, COUNTS["coco128"], subset=args.subset)


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
