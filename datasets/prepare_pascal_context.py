# SPDX-License-Identifier: Apache-2.0
"""Prepare PASCAL-Context, 59 classes and background: 4998 training images, 5105 to evaluate on.

    python datasets/prepare_pascal_context.py             # VOC2010/trainval/*.mat -> VOC2010/SegmentationContext60
    python datasets/prepare_pascal_context.py --check
    python datasets/prepare_pascal_context.py --subset    # accept fewer files than the official download has

The 459 classes are found through their names in labels.txt, beside trainval/; without it, through our table
datasets/splits/pascal_context/classes.tsv. Label images that are there and differ from their source are reported and
left alone (--overwrite replaces them). Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # `python datasets/prepare_pascal_context.py` puts datasets/ on the path, not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

import padding  # noqa: F401  (the Detectron2 fixes come before Detectron2)
from padding.data.catalog import data_root
from padding.data.label_conversion import LabelPair, conclude, convert_labels, existing_pairs
from padding.data.pascal_context import (
    CONTEXT_FOLDER,
    CONTEXT_LABELS,
    context_ids,
    context_lookup,
    context_split,
    read_context_mat,
    read_label_names,
)
from padding.data.sample import DatasetDict
from padding.data.voc import voc_palette
from padding.errors import PreparationError

_CURE = "datasets/README.md lists the official downloads: trainval.tar.gz with trainval/*.mat, images of VOC 2010."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of VOCdevkit (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--subset", action="store_true", help="the folders hold only a part of the official images")
    parser.add_argument("--overwrite", action="store_true", help="replace label images that differ from their source")
    parser.add_argument("--check", action="store_true", help="compare with the sources and write nothing")
    return parser.parse_args(arguments)


def lookup_of(folder: Path) -> npt.NDArray[np.uint8]:
    """Value in the .mat files -> our index, by the names of ``labels.txt`` where it lies in the folder."""
    names = folder / "labels.txt"
    return context_lookup(read_label_names(names) if names.is_file() else None)


def read_labels(path: Path, lookup: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Labels of one file, see ``read_context_mat``.

    Raises:
        PreparationError: it cannot be used.
    """
    try:
        return read_context_mat(path, lookup)
    except (FileNotFoundError, ValueError) as error:
        raise PreparationError(str(error)) from error


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    folder = args.root / CONTEXT_FOLDER
    # Some converters lose images; the counts of the lists are checked, and a missing file is an error.
    ids = [*context_ids("train"), *context_ids("val")]
    pairs = [LabelPair(folder / "trainval" / f"{i}.mat", folder / CONTEXT_LABELS / f"{i}.png") for i in ids]
    pairs = existing_pairs(pairs, subset=args.subset, cure=_CURE)
    done = convert_labels(
        pairs,
        partial(read_labels, lookup=lookup_of(folder)),
        palette=voc_palette(),
        write=not args.check,
        overwrite=args.overwrite,
        num_workers=args.num_workers,
        title=CONTEXT_LABELS,
    )
    entries: list[DatasetDict] = [
        {
            "file_name": str(folder / "JPEGImages" / f"{pair.target.stem}.jpg"),
            "sem_seg_file_name": str(pair.target),
            "image_id": pair.target.stem,
        }
        for pair in pairs
    ]
    lines, problems = conclude(done, entries, context_split().names)
    print("\n".join([*lines, *(f"problem: {line}" for line in problems), f"{len(problems)} kinds of problems"]))
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return prepare(parse_arguments(arguments))
    except (PreparationError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is written stays valid, the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
