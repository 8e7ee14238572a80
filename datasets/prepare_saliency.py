# SPDX-License-Identifier: Apache-2.0
"""Check saliency sets: layout, number of images, pairs, damaged files, sizes, and how soft the maps are.

    python datasets/prepare_saliency.py --check                           # every published set that is there
    python datasets/prepare_saliency.py --check --set duts_train --set camvid_train_saliency

Nothing is written: the sets are used as their archives unpack, or as folders images and masks (datasets/README.md).
Saliency that is derived from class labels is checked when it is named. Exit status: 0 sound, 1 problems found, 2 input
that cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # `python datasets/prepare_saliency.py` puts datasets/ on the path, not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate

import padding  # noqa: F401  (the Detectron2 fixes come before Detectron2)
from padding.data.catalog import data_root, register_all
from padding.data.saliency_audit import SaliencyAudit, audit_saliency
from padding.data.saliency_sets import SALIENCY_SETS, pair_saliency, registered_saliency

_CURE = "datasets/README.md lists sources and layouts."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=data_root(), help="data root (default: %(default)s)")
    parser.add_argument("--set", action="append", dest="sets", metavar="NAME", help="registered name; may be repeated")
    parser.add_argument("--check", action="store_true", help="accepted for likeness; this script never writes")
    parser.add_argument("--subset", action="store_true", help="accept another number of images than published")
    return parser.parse_args(arguments)


def selected_sets(names: Sequence[str] | None, root: Path) -> list[str]:
    """The given names, or those of the published sets whose folders exist.

    Raises:
        ValueError: a name belongs to no saliency set.
        FileNotFoundError: no name is given, and there is no published set.
    """
    known = registered_saliency()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"'{unknown[0]}' is no saliency set; known are {', '.join(known)}")
    found = list(names or [one.name for one in SALIENCY_SETS.values() if (root / one.folder).is_dir()])
    if not found:
        folders = ", ".join(one.folder for one in SALIENCY_SETS.values())
        raise FileNotFoundError(f"{root}: has none of the folders {folders}. {_CURE}")
    return found


def check_set(name: str, root: Path, *, subset: bool) -> tuple[SaliencyAudit, list[str]]:
    """Audit one set and print its layout and remarks; returns the audit and the problems.

    Raises:
        FileNotFoundError, ValueError: the folders of the set are missing or empty, or its labels are.
    """
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
    rows, problems = [], []
    for name in names:
        audit, found = check_set(name, root, subset=subset)
        rows.append({"set": name, **audit.row(), "problems": len(found)})
        problems += [f"{name}: {line}" for line in found]
    print(tabulate(rows, headers="keys", tablefmt="github"))
    print("soft: maps with values other than 0 and 255. Training counts values above 128 as salient unless")
    print("INPUT.SALIENCY.BINARIZE is False; the evaluation always does.")
    print("\n".join([*(f"problem: {line}" for line in problems), f"{len(problems)} kinds of problems"]))
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse_arguments(arguments)
    try:
        register_all(args.root)
        return check(selected_sets(args.sets, args.root), args.root, subset=args.subset)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
