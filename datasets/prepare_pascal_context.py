# SPDX-License-Identifier: Apache-2.0
"""Prepare PASCAL-Context, 59 classes and background: 4998 training images, 5105 to evaluate on.

    python datasets/prepare_pascal_context.py             # VOC2010/trainval/*.mat -> VOC2010/SegmentationContext60
    python datasets/prepare_pascal_context.py --check
    python datasets/prepare_pascal_context.py --subset    # accept fewer files than the official download has

The 459 classes are found through their names in labels.txt, beside trainval/; without it, through our table
datasets/splits/pascal_context/classes.tsv. Label images that are there and differ from their source are reported and
left alone (--overwrite replaces them). Exit status: 0 done, 1 problems found, 2 input that cannot be used.
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

from padding.data.prepare.command import add_options, preparation_parser, run_preparation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CURE = "datasets/README.md lists the official downloads: trainval.tar.gz with trainval/*.mat, images of VOC 2010."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="folder of VOCdevkit")
    add_options(parser, "--num-workers", "--subset", "--overwrite", "--check")
    return parser.parse_args(arguments)


def lookup_of(folder: Path) -> npt.NDArray[np.uint8]:
    """Value in the .mat files -> our index, by the names of ``labels.txt`` where it lies in the folder."""
    from padding.data.sets.pascal_context import context_lookup, read_label_names

    names = folder / "labels.txt"
    return context_lookup(read_label_names(names) if names.is_file() else None)


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    from padding.data.prepare.label_conversion import LabelPair, convert_data_set, labeled_image
    from padding.data.sets.pascal_context import (
        CONTEXT_FOLDER,
        CONTEXT_LABELS,
        context_ids,
        context_split,
        read_context_mat,
    )
    from padding.data.sets.voc import voc_palette

    folder = args.root / CONTEXT_FOLDER
    # Some converters lose images; the counts of the lists are checked, and a missing file is an error.
    ids = [*context_ids("train"), *context_ids("val")]
    return convert_data_set(
        args,
        [LabelPair(folder / "trainval" / f"{i}.mat", folder / CONTEXT_LABELS / f"{i}.png") for i in ids],
        partial(read_context_mat, lookup=lookup_of(folder)),
        entries=lambda pairs: [labeled_image(folder / "JPEGImages" / f"{p.target.stem}.jpg", p.target) for p in pairs],
        names=context_split().names,
        palette=voc_palette(),
        title=CONTEXT_LABELS,
        cure=_CURE,
    )


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
