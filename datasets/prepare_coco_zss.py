# SPDX-License-Identifier: Apache-2.0
"""Prepare COCO-Stuff 164k for zero-shot semantic segmentation, 156 seen and 15 unseen classes (PADing, Tab. 4).

    python datasets/prepare_coco_zss.py               # the COCO folder below $DETECTRON2_DATASETS or datasets
    python datasets/prepare_coco_zss.py --check       # verify, write nothing
    python datasets/prepare_coco_zss.py --subset      # accept fewer images than the official download has

Reads stuffthingmaps/{train,val}2017 and the images, writes stuff_zss/{train,val}2017 and annotations/zss. Interrupted
runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # `python datasets/prepare_coco_zss.py` puts datasets/ on the path, not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import padding  # noqa: F401  (the Detectron2 fixes come before Detectron2)
from padding.data.class_split import ClassSplit
from padding.data.coco_splits import coco_zss_split
from padding.data.coco_stuff import FULL_IMAGES, StuffTask, check_stuff, stuff_tasks, write_stuff
from padding.errors import PreparationError

_SHOWN_PROBLEMS = 20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; paths that are not given follow from --root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    parser.add_argument("--root", type=Path, default=default_root, help="COCO folder (default: %(default)s)")
    parser.add_argument("--stuff-dir", type=Path, help="official label PNGs (default: <root>/stuffthingmaps)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: --root itself)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--subset", action="store_true", help="the folders hold only a part of the official images")
    parser.add_argument("--check", action="store_true", help="verify a prepared folder and write nothing")
    return parser.parse_args(arguments)


def plan(args: argparse.Namespace, split: ClassSplit) -> dict[str, tuple[list[StuffTask], Path]]:
    """Tasks and image list of the two subsets.

    Raises:
        PreparationError: folders are missing, or hold another number of labels than the official download.
    """
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


def prepare(plans: dict[str, tuple[list[StuffTask], Path]], split: ClassSplit, num_workers: int) -> int:
    """Write and audit; returns the exit status."""
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
    problems = []
    for subset, (tasks, image_list) in plans.items():
        audit, found = check_stuff(tasks, image_list, num_workers=num_workers, title=f"check {subset}")
        print("\n".join([f"{subset}:", *audit.lines()]))
        problems += found
    for problem in problems[:_SHOWN_PROBLEMS]:
        print(f"problem: {problem}")
    print(
        f"{len(problems)} problems" if problems else "checked: complete, labels agree with the source, no unseen class"
    )
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse_arguments(arguments)
    split = coco_zss_split()
    try:
        plans = plan(args, split)
        return check(plans, args.num_workers) if args.check else prepare(plans, split, args.num_workers)
    except (PreparationError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is written stays valid, the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
