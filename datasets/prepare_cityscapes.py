# SPDX-License-Identifier: Apache-2.0
"""Prepare Cityscapes for semantic segmentation: 19 train ids of 2975 training and 500 validation images.

    python datasets/prepare_cityscapes.py              # writes ..._gtFine_labelTrainIds.png beside ..._labelIds.png
    python datasets/prepare_cityscapes.py --check
    python datasets/prepare_cityscapes.py --subset     # accept fewer files than the official downloads have

Those that cityscapesscripts has written are right and stay.

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

from padding.data.prepare.command import add_options, preparation_parser, run_preparation

if TYPE_CHECKING:
    from padding.data.prepare.label_conversion import LabelPair
    from padding.data.sample import DatasetDict

_CURE = "datasets/README.md lists the official downloads; unpack gtFine_trainvaltest.zip."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__, root="folder of cityscapes")
    add_options(parser, "--num-workers", "--subset", "--overwrite", "--check")
    return parser.parse_args(arguments)


def images_with_labels(folder: Path, pairs: Sequence[LabelPair]) -> list[DatasetDict]:
    """Entry of every pair."""
    entries: list[DatasetDict] = []
    for pair in pairs:
        city = pair.target.parent
        image_id = pair.target.name.removesuffix("_gtFine_labelTrainIds.png")
        image = folder / "leftImg8bit" / city.parent.name / city.name / f"{image_id}_leftImg8bit.png"
        entries.append({"file_name": str(image), "sem_seg_file_name": str(pair.target), "image_id": image_id})
    return entries


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    from padding.data.prepare.cityscapes import cityscapes_label_pairs, read_label_ids
    from padding.data.prepare.label_conversion import convert_data_set
    from padding.data.sets.cityscapes import cityscapes_split

    folder = args.root / "cityscapes"
    return convert_data_set(
        args,
        [pair for part in ("train", "val") for pair in cityscapes_label_pairs(folder, part)],
        read_label_ids,
        entries=lambda pairs: images_with_labels(folder, pairs),
        names=cityscapes_split().names,
        title="labelTrainIds",
        cure=_CURE,
    )


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
