# SPDX-License-Identifier: Apache-2.0
"""Turn label images in colors into index images, which every method here reads, and write the list of their classes.

    python datasets/prepare_color_labels.py --labels my/SegmentationClass --colors my/labelmap.txt --output my/labels
    ... --void background unlabeled      # classes that are none: their pixels become 255
    ... --classes my/classes.txt         # the names, label 0 first (default: classes.txt beside --output)
    ... --check                          # compares, writes nothing

The table of colors is CVAT's labelmap.txt, or has lines name,r,g,b, r g b name or name,#rrggbb; ids are given in
its order. A color that it lacks is an error with file and pixel. Folders below --labels are kept.

Index images that are there and differ from their source are reported and left alone (--overwrite replaces them).
Interrupted runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, run_preparation
from padding.errors import PreparationError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__)
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="label images in colors")
    parser.add_argument("--colors", type=Path, required=True, metavar="FILE", help="name and color of every class")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the index images")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="list of names that is written")
    parser.add_argument("--void", nargs="+", default=[], metavar="NAME", help="names of the table that are no class")
    add_options(parser, "--num-workers", "--overwrite", "--check")
    args = parser.parse_args(arguments)
    if args.labels.resolve() == args.output.resolve():
        parser.error("--output is the folder of --labels, whose images stay as they are; name another one")
    args.classes = args.classes or args.output.parent / "classes.txt"
    args.subset = False
    return args


def write_classes(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Write the list of names unless it is there.

    Raises:
        PreparationError: the file holds something else.
    """
    from padding.data.files import write_text
    from padding.data.readers import read_text

    text = "".join(f"{name}\n" for name in names)
    if args.classes.is_file() and read_text(args.classes) != text and not args.overwrite:
        raise PreparationError(
            f"{args.classes}: lists other classes than {args.colors}; name another file by "
            "--classes, or pass --overwrite"
        )
    if not args.check:
        write_text(args.classes, text)


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    from padding.data.prepare.color_labels import color_label_pairs, read_color_labels, read_color_table
    from padding.data.prepare.label_conversion import convert_data_set

    table = read_color_table(args.colors, args.void)
    pairs = color_label_pairs(args.labels, args.output)
    write_classes(args, table.names)
    status = convert_data_set(
        args,
        pairs,
        partial(read_color_labels, table=table),
        entries=lambda pairs: [
            {"file_name": str(p.source), "sem_seg_file_name": str(p.target), "image_id": p.target.stem} for p in pairs
        ],
        names=table.names,
        palette=table.colors[: len(table.names)],
        title="index images",
        cure="",
    )
    print(f"{len(table.names)} classes: {args.classes}")
    return status


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
