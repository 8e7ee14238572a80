# SPDX-License-Identifier: Apache-2.0
"""Prepare Cityscapes for semantic segmentation: 19 train ids of 2975 training and 500 validation images.

    python datasets/prepare_cityscapes.py              # writes ..._gtFine_labelTrainIds.png beside ..._labelIds.png
    python datasets/prepare_cityscapes.py --check
    python datasets/prepare_cityscapes.py --subset     # accept fewer files than the official downloads have

Those that cityscapesscripts has written are right and stay.

Label images that are there and differ from their source are reported and left alone (--overwrite replaces them).
Interrupted runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # `python datasets/prepare_cityscapes.py` puts datasets/ on the path, not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import padding  # noqa: F401  (the Detectron2 fixes come before Detectron2)
from padding.data.catalog import data_root
from padding.data.cityscapes import cityscapes_split
from padding.data.cityscapes_labels import cityscapes_label_pairs, read_label_ids
from padding.data.label_conversion import LabelPair, conclude, convert_labels, existing_pairs
from padding.data.sample import DatasetDict
from padding.errors import PreparationError

_CURE = "datasets/README.md lists the official downloads; unpack gtFine_trainvaltest.zip."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of cityscapes (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--subset", action="store_true", help="the folders hold only a part of the official images")
    parser.add_argument("--overwrite", action="store_true", help="replace label images that differ from their source")
    parser.add_argument("--check", action="store_true", help="compare with the sources and write nothing")
    return parser.parse_args(arguments)


def images_with_labels(folder: Path, pairs: list[LabelPair]) -> list[DatasetDict]:
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
    folder = args.root / "cityscapes"
    pairs = [pair for part in ("train", "val") for pair in cityscapes_label_pairs(folder, part)]
    pairs = existing_pairs(pairs, subset=args.subset, cure=_CURE)
    done = convert_labels(
        pairs,
        read_label_ids,
        write=not args.check,
        overwrite=args.overwrite,
        num_workers=args.num_workers,
        title="labelTrainIds",
    )
    lines, problems = conclude(done, images_with_labels(folder, pairs), cityscapes_split().names)
    print("\n".join([*lines, *(f"problem: {line}" for line in problems), f"{len(problems)} kinds of problems"]))
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return prepare(parse_arguments(arguments))
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is written stays valid, the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
