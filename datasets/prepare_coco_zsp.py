# SPDX-License-Identifier: Apache-2.0
"""Prepare COCO 2017 panoptic for zero-shot training: seen-only JSON and semantic PNGs (PADing, section 4).

    python datasets/prepare_coco_zsp.py               # the COCO folder below $DETECTRON2_DATASETS or datasets
    python datasets/prepare_coco_zsp.py --check       # verify, write nothing
    python datasets/prepare_coco_zsp.py --policy ignore_pixels --output output/ignore/coco
    python datasets/prepare_coco_zsp.py --panoptic-json J --panoptic-dir P --image-dir I --output output/sample/coco

Interrupted runs go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

import argparse
import filecmp
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.class_split import ClassSplit, splits_dir
from padding.data.prepare.annotation_file import read_summary
from padding.data.prepare.coco_panoptic import POLICIES, FilterSummary, PanopticFiles, filter_panoptic_json, label_tasks
from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.data.sets.coco import coco_panoptic_split
from padding.errors import PreparationError


@dataclass(frozen=True)
class Layout:
    """Where things are read from and written to; `output` looks like a COCO folder."""

    train: PanopticFiles
    val: PanopticFiles
    instances_val: Path | None
    output: Path
    policy: str

    @property
    def masked(self) -> bool:
        """Whether the training PNGs are copies without unseen segments."""
        return self.policy == "ignore_pixels"

    @property
    def train_json(self) -> Path:
        """The training annotations without unseen classes."""
        return self.output / "annotations" / "zsp" / "panoptic_train2017_seen.json"

    @property
    def masked_dir(self) -> Path | None:
        """Panoptic PNGs without unseen segments; None under `drop_image`, which uses the originals."""
        return self.output / "panoptic_train2017" if self.masked else None

    @property
    def prepared_train(self) -> PanopticFiles:
        """The training set as it will be read."""
        return PanopticFiles(self.train_json, self.train.panoptic_dir, self.train.image_dir)

    def semantic_dir(self, subset: str) -> Path:
        """Semantic PNGs of `train` or `val`."""
        return self.output / f"panoptic_semseg_zsp_{subset}2017"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; paths that are not given follow from --root."""
    parser = preparation_parser(__doc__, root="COCO folder", below="coco")
    parser.add_argument("--output", type=Path, help="folder laid out like --root; default: --root itself")
    parser.add_argument("--policy", choices=POLICIES, default="drop_image", help="what happens to unseen classes")
    parser.add_argument("--panoptic-json", type=Path, help="one panoptic JSON, used as training and validation set")
    parser.add_argument("--panoptic-dir", type=Path, help="its panoptic PNGs")
    parser.add_argument("--image-dir", type=Path, help="its images")
    parser.add_argument("--unseen", type=Path, default=splits_dir() / "coco_zsp_119_14.txt", help="unseen class names")
    help_texts = {"overwrite": "filter the JSON again although a result exists", "check": "verify a prepared folder"}
    add_options(parser, "--num-workers", "--overwrite", "--check", **help_texts)
    return parser.parse_args(arguments)


def build_layout(args: argparse.Namespace) -> Layout:
    """Resolve the paths and refuse combinations that would damage the originals.

    Raises:
        PreparationError: a folder is missing or would be overwritten.
    """
    direct = (args.panoptic_json, args.panoptic_dir, args.image_dir)
    if any(direct) and not (all(direct) and args.output):
        raise PreparationError("--panoptic-json, --panoptic-dir, --image-dir and --output go together: give all four.")
    output = args.output or args.root
    if all(direct):
        train = val = PanopticFiles(*direct)
        instances = None
    else:
        train, val = (
            PanopticFiles(
                args.root / "annotations" / f"panoptic_{subset}2017.json",
                args.root / f"panoptic_{subset}2017",
                args.root / f"{subset}2017",
            )
            for subset in ("train", "val")
        )
        instances = args.root / "annotations" / "instances_val2017.json"
    if args.policy == "ignore_pixels" and (output / "panoptic_train2017").resolve() == train.panoptic_dir.resolve():
        raise PreparationError(
            f"--policy ignore_pixels rewrites panoptic PNGs and would change the originals in {train.panoptic_dir}. "
            "Give --output, a folder of its own, for example --output output/coco_ignore/coco."
        )
    layout = Layout(train, val, instances, output, args.policy)
    for files in (train, val):
        _require_folders(files)
    return layout


def write(layout: Layout, split: ClassSplit, *, num_workers: int, overwrite: bool) -> int:
    """Filter, write PNGs, audit; returns the exit status."""
    from padding.data.prepare.panoptic_audit import write_all_labels

    summary = filter_panoptic_json(
        layout.train.json_file, layout.train_json, split, policy=layout.policy, overwrite=overwrite
    )
    print("\n".join(summary.lines()))
    link_originals(layout)
    tasks = label_tasks(layout.prepared_train, split, layout.semantic_dir("train"), layout.masked_dir)
    audit = write_all_labels(tasks, split, num_workers=num_workers, total=summary.num_kept, title="train")
    print("\n".join(["training set, leak audit:", *audit.lines()]))
    tasks = label_tasks(layout.val, split, layout.semantic_dir("val"))
    total = sum(1 for _ in layout.val.panoptic_dir.glob("*.png"))
    val_audit = write_all_labels(tasks, split, num_workers=num_workers, total=total, title="val")
    print("\n".join(["validation set (all classes):", *val_audit.lines()]))
    if audit.leaks:
        print("LEAK: unseen classes are in what will be trained on; run with --overwrite", file=sys.stderr)
        return 1
    print(f"no unseen class in what will be trained on; written to {layout.output}")
    return 0


def check(layout: Layout, split: ClassSplit, *, num_workers: int) -> int:
    """Verify a prepared folder; returns the exit status."""
    from padding.data.prepare.panoptic_audit import check_all_labels

    summary = read_summary(layout.train_json, FilterSummary)
    problems = []
    if summary is None or summary.policy != layout.policy or summary.unseen != sorted(split.unseen_names):
        found = "none" if summary is None else f"policy {summary.policy}, {len(summary.unseen)} unseen classes"
        problems.append(
            f"{layout.train_json}: prepared with other settings or not at all (found: {found}); prepare again."
        )
    else:
        print("\n".join(summary.lines()))
        problems += _differences_from_source(layout, split)
        tasks = label_tasks(layout.prepared_train, split, layout.semantic_dir("train"), layout.masked_dir)
        count, found_problems = check_all_labels(
            tasks, split, unseen_allowed=False, num_workers=num_workers, total=summary.num_kept
        )
        problems += found_problems
        if count != summary.num_kept:
            problems.append(f"{layout.train_json}: {count} images, its summary says {summary.num_kept}; prepare again.")
    tasks = label_tasks(layout.val, split, layout.semantic_dir("val"))
    problems += check_all_labels(tasks, split, unseen_allowed=True, num_workers=num_workers)[1]
    return report(problems, sound="checked: complete, PNGs agree with the JSON, no unseen class")


def link_originals(layout: Layout) -> None:
    """Complete an output folder of its own by links, so that it can be registered like a COCO folder.

    Raises:
        PreparationError: something else stands where a link belongs.
    """
    links = {
        "train2017": layout.train.image_dir,
        "val2017": layout.val.image_dir,
        "panoptic_val2017": layout.val.panoptic_dir,
        "annotations/panoptic_train2017.json": layout.train.json_file,
        "annotations/panoptic_val2017.json": layout.val.json_file,
        "annotations/instances_val2017.json": layout.instances_val,
    }
    if not layout.masked:
        links["panoptic_train2017"] = layout.train.panoptic_dir
    for name, original in links.items():
        link = layout.output / name
        if original is None or not original.exists() or (link.exists() and link.samefile(original)):
            continue
        if link.exists() or link.is_symlink():
            raise PreparationError(
                f"{link} is in the way of a link to {original}; remove it or choose another --output."
            )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(original.resolve())


def _differences_from_source(layout: Layout, split: ClassSplit) -> list[str]:
    """Filter once more into a temporary file: the prepared JSON must be the same, byte by byte."""
    if not layout.train.json_file.is_file():
        print(f"no {layout.train.json_file}: not compared with the source")
        return []
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "again.json"
        filter_panoptic_json(layout.train.json_file, again, split, policy=layout.policy)
        if filecmp.cmp(again, layout.train_json, shallow=False):
            return []
    return [f"{layout.train_json}: differs from what {layout.train.json_file} gives; prepare again with --overwrite."]


def _require_folders(files: PanopticFiles) -> None:
    cure = "unpack COCO as datasets/README.md shows, or name other places with --root or --panoptic-json"
    if not files.json_file.is_file():
        raise PreparationError(f"No file {files.json_file}: {cure}.")
    for folder in (files.panoptic_dir, files.image_dir):
        if folder is not None and not folder.is_dir():
            raise PreparationError(f"No folder {folder}: {cure}.")


def prepare(args: argparse.Namespace) -> int:
    """Write or check; returns the exit status."""
    split = coco_panoptic_split(args.unseen)
    layout = build_layout(args)
    if args.check:
        return check(layout, split, num_workers=args.num_workers)
    return write(layout, split, num_workers=args.num_workers, overwrite=args.overwrite)


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
