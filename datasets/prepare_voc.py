# SPDX-License-Identifier: Apache-2.0
"""Prepare PASCAL VOC 2012 with SBD's labels for semantic segmentation: 10 582 training images, 1449 to evaluate on.

    python datasets/prepare_voc.py --sbd benchmark_RELEASE     # writes VOCdevkit/VOC2012/SegmentationClassAug
    python datasets/prepare_voc.py --sbd benchmark_RELEASE --check
    python datasets/prepare_voc.py --subset                    # accept fewer files than the official downloads have

Label images that are there and differ from their source are reported and left alone (--overwrite replaces them).
Interrupted runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
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

from padding.data.class_split import splits_dir
from padding.data.prepare.command import add_options, preparation_parser, run_preparation

if TYPE_CHECKING:
    from padding.data.prepare.label_conversion import LabelPair
    from padding.data.sample import DatasetDict

_CURE = "datasets/README.md lists the official downloads; --sbd names the unpacked benchmark_RELEASE."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="folder of VOCdevkit")
    parser.add_argument("--sbd", type=Path, help="unpacked SBD (default: <root>/benchmark_RELEASE)")
    add_options(parser, "--num-workers", "--subset", "--overwrite", "--check")
    return parser.parse_args(arguments)


def images_with_labels(folder: Path, pairs: Sequence[LabelPair], *, subset: bool) -> list[DatasetDict]:
    """Training images of the pairs, and validation images (with ``subset``, those whose labels are there)."""
    from padding.data.loaders.listed_images import read_id_list
    from padding.data.prepare.label_conversion import labeled_image

    files = [folder / "SegmentationClass" / f"{i}.png" for i in read_id_list(splits_dir() / "voc" / "val.txt")]
    files = [*(pair.target for pair in pairs), *(path for path in files if not subset or path.is_file())]
    return [labeled_image(folder / "JPEGImages" / f"{path.stem}.jpg", path) for path in files]


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    from padding.data.prepare.label_conversion import convert_data_set
    from padding.data.prepare.voc import read_voc_labels, voc_label_pairs
    from padding.data.sets.voc import VOC_FOLDER, VOC_NAMES, voc_palette

    folder = args.root / VOC_FOLDER
    return convert_data_set(
        args,
        voc_label_pairs(folder, args.sbd or args.root / "benchmark_RELEASE"),
        read_voc_labels,
        entries=lambda pairs: images_with_labels(folder, pairs, subset=args.subset),
        names=VOC_NAMES,
        palette=voc_palette(),
        title="SegmentationClassAug",
        cure=_CURE,
    )


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
