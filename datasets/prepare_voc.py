# SPDX-License-Identifier: Apache-2.0
"""Prepare PASCAL VOC 2012 with SBD's labels for semantic segmentation: 10 582 training images, 1449 to evaluate on.

    python datasets/prepare_voc.py --sbd benchmark_RELEASE     # writes VOCdevkit/VOC2012/SegmentationClassAug
    python datasets/prepare_voc.py --sbd benchmark_RELEASE --check
    python datasets/prepare_voc.py --subset                    # accept fewer files than the official downloads have

Label images that are there and differ from their source are reported and left alone (--overwrite replaces them).
Interrupted runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # `python datasets/prepare_voc.py` puts datasets/ on the path, not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import padding  # noqa: F401  (the Detectron2 fixes come before Detectron2)
from padding.data.catalog import data_root
from padding.data.class_split import splits_dir
from padding.data.label_conversion import LabelPair, conclude, convert_labels, existing_pairs
from padding.data.listed_images import read_id_list
from padding.data.sample import DatasetDict
from padding.data.voc import VOC_FOLDER, VOC_NAMES, voc_palette
from padding.data.voc_labels import read_voc_labels, voc_label_pairs
from padding.errors import PreparationError

_CURE = "datasets/README.md lists the official downloads; --sbd names the unpacked benchmark_RELEASE."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of VOCdevkit (default: %(default)s)")
    parser.add_argument("--sbd", type=Path, help="unpacked SBD (default: <root>/benchmark_RELEASE)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--subset", action="store_true", help="the folders hold only a part of the official images")
    parser.add_argument("--overwrite", action="store_true", help="replace label images that differ from their source")
    parser.add_argument("--check", action="store_true", help="compare with the sources and write nothing")
    return parser.parse_args(arguments)


def images_with_labels(folder: Path, pairs: list[LabelPair], *, subset: bool) -> list[DatasetDict]:
    """Training images of the pairs, and validation images (with ``subset``, those whose labels are there)."""
    files = [folder / "SegmentationClass" / f"{i}.png" for i in read_id_list(splits_dir() / "voc" / "val.txt")]
    files = [*(pair.target for pair in pairs), *(path for path in files if not subset or path.is_file())]
    return [
        {
            "file_name": str(folder / "JPEGImages" / f"{path.stem}.jpg"),
            "sem_seg_file_name": str(path),
            "image_id": path.stem,
        }
        for path in files
    ]


def prepare(args: argparse.Namespace) -> int:
    """Write or compare, then read everything once more; returns the exit status."""
    folder = args.root / VOC_FOLDER
    pairs = voc_label_pairs(folder, args.sbd or args.root / "benchmark_RELEASE")
    pairs = existing_pairs(pairs, subset=args.subset, cure=_CURE)
    done = convert_labels(
        pairs,
        read_voc_labels,
        palette=voc_palette(),
        write=not args.check,
        overwrite=args.overwrite,
        num_workers=args.num_workers,
        title="SegmentationClassAug",
    )
    lines, problems = conclude(done, images_with_labels(folder, pairs, subset=args.subset), VOC_NAMES)
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
