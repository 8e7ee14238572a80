# SPDX-License-Identifier: Apache-2.0
"""Bring Clothing Co-Parsing, 2098 photographs of which 1004 have labels, into the expected layout, and check it.

    python datasets/prepare_ccp.py --source clothing-co-parsing     # a clone: converts the .mat files, links photos
    python datasets/prepare_ccp.py --source copy                    # or images and labels, which are linked
    python datasets/prepare_ccp.py --check                          # checks, writes nothing

Labels become PNGs below <root>/ccp/labels, with the numbers of the 59 tags as values. Exit status: 0 sound, 1 problems
found, 2 input that cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.data.prepare.linked_copy import link_folders
from padding.errors import PreparationError

_COUNTS = {"ccp_train_sem_seg": 1898, "ccp_train_labeled_sem_seg": 804, "ccp_val_sem_seg": 200}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="data root; CCP lies in its folder ccp")
    parser.add_argument("--source", type=Path, metavar="DIR", help="clone of the repository, or a copy to link")
    add_options(parser, "--check", "--overwrite", "--num-workers", check="write nothing (the default without --source)")
    args = parser.parse_args(arguments)
    if args.check and args.source:
        parser.error("--check writes nothing, --source writes; give one of them")
    return args


def bring(source: Path, folder: Path, args: argparse.Namespace) -> list[str]:
    """Fill ``folder`` from a clone or a copy; returns problems.

    Raises:
        PreparationError: the source has another layout, a file cannot be read, or something is in the way.
    """
    from padding.data.prepare.ccp import PHOTOS, ccp_label_pairs, read_ccp_labels
    from padding.data.prepare.label_conversion import convert_labels, differing_problem

    if (source / "images").is_dir() and (source / "labels").is_dir():
        link_folders({folder / name: source / name for name in ("images", "labels")})
        return []
    pairs = ccp_label_pairs(source, folder / "labels")
    if not pairs or not (source / PHOTOS).is_dir():
        raise PreparationError(
            f"{source}: holds neither photos and annotations/pixel-level/*.mat (a clone) nor images and labels"
        )
    link_folders({folder / "images": source / PHOTOS})
    done = convert_labels(
        pairs, read_ccp_labels, overwrite=args.overwrite, num_workers=args.num_workers, title="labels"
    )
    print(f"label images: {len(done.written)} written, {len(done.kept)} right already")
    return differing_problem(done)


def check(root: Path) -> list[str]:
    """Read the labels of the sets; returns problems."""
    from detectron2.data import DatasetCatalog

    from padding.data.label_statistics import audit_labels
    from padding.data.sets.ccp import ccp_label_map, ccp_split, register_ccp

    register_ccp(root / "ccp")
    problems = []
    for name, expected in _COUNTS.items():
        entries = DatasetCatalog.get(name)
        if len(entries) != expected:
            problems.append(f"{name}: {len(entries)} images, CCP has {expected}")
        if name == "ccp_train_sem_seg":
            continue  # its labels are those of the next one
        audit = audit_labels(entries, ccp_split().names, label_map=ccp_label_map())
        problems += [f"{name}: {line}" for line in audit.problems(all_labeled=True)]
        print("\n".join([f"{name}:", *audit.lines()]))
    return problems


def prepare(args: argparse.Namespace) -> int:
    """Fill the folder, if there is a source, and check it; returns the exit status."""
    problems = bring(args.source, args.root / "ccp", args) if args.source else []
    return report([*problems, *check(args.root)])


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
