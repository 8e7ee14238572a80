# SPDX-License-Identifier: Apache-2.0
"""Check saliency sets: layout, number of images, pairs, damaged files, sizes, and how soft the maps are.

    python datasets/prepare_saliency.py --check                           # every published set that is there
    python datasets/prepare_saliency.py --check --set duts_train --set camvid_train_saliency

Nothing is written: the sets are used as their archives unpack, or as folders images and masks (datasets/README.md).
Saliency that is derived from class labels is checked when it is named. Exit status: 0 sound, 1 problems found, 2 input
that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from padding.data.prepare.saliency_audit import SaliencyAudit

_CURE = "datasets/README.md lists sources and layouts."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="data root")
    parser.add_argument("--set", action="append", dest="sets", metavar="NAME", help="registered name; may be repeated")
    help_texts = {
        "check": "accepted for likeness; this script never writes",
        "subset": "accept another number of images",
    }
    add_options(parser, "--check", "--subset", **help_texts)
    return parser.parse_args(arguments)


def selected_sets(names: Sequence[str] | None, root: Path) -> list[str]:
    """The given names, or those of the published sets whose folders exist.

    Raises:
        DataError: a name belongs to no saliency set.
        MissingFileError: no name is given, and there is no published set.
    """
    from padding.data.sets.saliency import SALIENCY_SETS, registered_saliency

    known = registered_saliency()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise DataError(f"'{unknown[0]}' is no saliency set; known are {', '.join(known)}")
    found = list(names or [one.name for one in SALIENCY_SETS.values() if (root / one.folder).is_dir()])
    if not found:
        folders = ", ".join(one.folder for one in SALIENCY_SETS.values())
        raise MissingFileError(f"{root}: has none of the folders {folders}. {_CURE}")
    return found


def check_set(name: str, root: Path, *, subset: bool) -> tuple[SaliencyAudit, list[str]]:
    """Audit one set and print its layout and remarks; returns the audit and the problems.

    Raises:
        MissingFileError, DataError: the folders of the set are missing or empty, or its labels are.
    """
    from padding.data.prepare.saliency_audit import audit_saliency
    from padding.data.sets.saliency import SALIENCY_SETS, pair_saliency, registered_saliency

    problems: list[str] = []
    published = SALIENCY_SETS.get(name)
    if published is None:
        entries: Sequence[Any] = registered_saliency()[name]()
        print(f"{name}: {len(entries)} images")
    else:
        pairs = pair_saliency(root / published.folder, images=published.images, masks=published.masks, cure=_CURE)
        entries = pairs.entries
        print(f"{name} ({published.title}): images in {pairs.images}, maps in {pairs.masks}, {len(entries)} pairs")
        if pairs.without_mask:
            problems.append(f"{len(pairs.without_mask)} images have no map, first {pairs.without_mask[0]}")
        if pairs.without_image:
            problems.append(f"{len(pairs.without_image)} maps have no image, first {pairs.without_image[0]}")
        if len(entries) != published.count and not subset:
            problems.append(f"{len(entries)} pairs, {published.title} has {published.count}")
    audit = audit_saliency(entries, name=name)
    print("".join(f"  remark: {line}\n" for line in audit.remarks()), end="")
    return audit, [*problems, *audit.problems()]


def check(names: Sequence[str], root: Path, *, subset: bool) -> int:
    """Audit the sets; returns the exit status."""
    from tabulate import tabulate

    rows, problems = [], []
    for name in names:
        audit, found = check_set(name, root, subset=subset)
        rows.append({"set": name, **audit.row(), "problems": len(found)})
        problems += [f"{name}: {line}" for line in found]
    print(tabulate(rows, headers="keys", tablefmt="github"))
    print("soft: maps with values other than 0 and 255. Training counts values above 128 as salient unless")
    print("INPUT.SALIENCY.BINARIZE is False; the evaluation always does.")
    return report(problems)


def audit(args: argparse.Namespace) -> int:
    """Register and audit; returns the exit status."""
    from padding.data.catalog import register_all

    register_all(args.root)
    return check(selected_sets(args.sets, args.root), args.root, subset=args.subset)


main = partial(run_preparation, audit, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
