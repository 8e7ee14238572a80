# SPDX-License-Identifier: Apache-2.0
"""Make, convert or check the scribbles of a data set.

    P=datasets/prepare_scribbles.py
    python $P simulate --dataset camvid_train_scribble                              # from dense labels
    python $P simulate --dataset shapes_train_scribble_coarse --style line --length 0.5
    python $P convert --dataset voc_2012_train_aug_scribble --source scribble_annotation.zip --below pascal_2012
    python $P check --dataset camvid_train_scribble --preview sheet.png

Any registered set with dense semantic labels can be named, with --output; own data: --images, --labels, --classes. All
three print what the scribbles cover and, where there are dense labels, how often they contradict them. Interrupted runs
go on where they stopped. Exit status: 0 done, 1 problems found, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import preparation_parser, report, run_preparation
from padding.data.roots import data_root
from padding.errors import PreparationError

if TYPE_CHECKING:
    from padding.data.prepare.scribbles import LabelSpace, ScribbleTask
    from padding.data.scribbles.folder import ScribbleFolder
    from padding.data.scribbles.statistics import ScribbleStatistics

_SUSPICIOUS_PCT = 25.0


@dataclass(frozen=True)
class Target:
    """What a command works on."""

    tasks: list[ScribbleTask]
    space: LabelSpace
    folder: ScribbleFolder
    simulator: dict[str, Any]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = preparation_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data = _data_arguments()
    simulate = commands.add_parser("simulate", parents=[data], help="from dense labels")
    _add_simulator_arguments(simulate)
    convert = commands.add_parser("convert", parents=[data], help="from published scribbles")
    _add_reader_arguments(convert)
    for command in (simulate, convert):
        command.add_argument("--overwrite", action="store_true", help="replace scribbles made with other settings")
    check = commands.add_parser("check", parents=[data], help="read everything, write nothing")
    check.add_argument("--preview", type=Path, metavar="PNG", help="draw some images with their scribbles")
    return parser.parse_args(arguments)


def _data_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--root", type=Path, default=data_root(), help="data root (default: %(default)s)")
    parser.add_argument("--dataset", default="", help="a scribble set; or, with --output, a set with dense labels")
    parser.add_argument("--images", default="", help="own data: folder of images")
    parser.add_argument("--labels", default="", help="own data: folder of dense label PNGs (convert: may be empty)")
    parser.add_argument("--classes", default="", help="own data: text file, one class name a line, label 0 first")
    parser.add_argument("--void", type=int, nargs="*", default=[], help="own data: label values that mean nothing")
    parser.add_argument("--output", type=Path, help="folder of the scribble PNGs (default: that of the data set)")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    return parser


def _add_simulator_arguments(parser: argparse.ArgumentParser) -> None:
    """Fields of ``SimulatorConfig``; those that are not given follow from the data set."""
    parser.add_argument("--style", help="kind of curve (default: skeleton)")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--width", type=int, help="pixels across a line (default: of the data set, or 3)")
    parser.add_argument("--length", type=float, help="share of each curve that is drawn, 0: a dot (default: 1)")
    parser.add_argument("--drop", type=float, help="probability that an object has no scribble (default: 0)")
    parser.add_argument("--min-area", type=int, help="pixels below which an object has none")
    parser.add_argument("--erosion", type=float, nargs=2, help="pixels kept from the border of small and large objects")
    parser.add_argument("--erosion-share", type=float, nargs=2, help="shares of the image that are small and large")
    parser.add_argument("--background-erosion", type=float, help="factor for the class background")
    parser.add_argument("--second-share", type=float, help="share of the image from which objects get two scribbles")


def _add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, required=True, help="folder or zip file with XML, PNG or HDF5 files")
    parser.add_argument("--below", default="", help="use only this folder inside it")
    parser.add_argument("--format", default="", help="where it holds several (default: find out)")
    parser.add_argument("--width", type=int, default=3, help="pixels across a line (default: %(default)s)")
    parser.add_argument("--background-first", action="store_true", help="draw the background below the other classes")
    parser.add_argument("--rescale", action="store_true", help="fit scribbles made on another size of the image")
    parser.add_argument("--missing-as-empty", action="store_true", help="images without a file stay unlabelled")
    parser.add_argument("--values", nargs="+", default=[], metavar="VALUE:CLASS", help="other numbers in PNG or HDF5")
    parser.add_argument("--alphabetical", action="store_true", help="PASCAL-Context: PNGs in mmsegmentation's order")


def find_target(args: argparse.Namespace) -> Target:
    """Images, classes and folder that the arguments name.

    Raises:
        PreparationError: they name none, or not enough.
    """
    from padding.data.catalog import register_all
    from padding.data.folders import register_folders
    from padding.data.own_data import OWN_NAMES, OwnData
    from padding.data.prepare.scribbles import tasks_of_dataset
    from padding.data.scribbles.folder import ScribbleFolder
    from padding.data.sets.scribbles import SCRIBBLE_SETS, scribble_tags

    register_all(args.root)
    one = SCRIBBLE_SETS.get(args.dataset)
    if one is not None and one.written_as:
        raise PreparationError(f"{one.name} reads the files of {one.written_as}; prepare that one")
    if args.dataset and args.images:
        raise PreparationError("--dataset and --images exclude each other; name one of them")
    if args.images:
        # Without dense labels only the names of the files are made of this folder.
        labels = args.labels or args.images
        register_folders(OwnData(images=args.images, labels=labels, classes=args.classes, void_values=args.void))
    dense = one.dense if one else OWN_NAMES[0] if args.images else args.dataset
    if not dense:
        raise PreparationError(f"name --dataset ({', '.join(SCRIBBLE_SETS)}) or --images, --labels and --classes")
    if one is None and args.output is None:
        raise PreparationError(f"--output is missing: where do the scribbles of {args.dataset or args.images} go?")
    has_dense = not args.images or bool(args.labels)
    tasks, space = tasks_of_dataset(dense, scribble_tags(dense), with_dense=has_dense)
    folder = args.output or args.root / (one.folder if one else "")
    return Target(tasks, space, ScribbleFolder(folder), dict(one.simulator) if one else {})


def simulate(args: argparse.Namespace, target: Target) -> tuple[ScribbleStatistics, int]:
    """Simulate the scribbles of the target."""
    from padding.data.prepare.scribbles import simulate_files
    from padding.data.scribbles.simulator import SimulatorConfig

    given = {field.name: getattr(args, field.name) for field in fields(SimulatorConfig)}
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    config = SimulatorConfig(**{**target.simulator, **given})
    return simulate_files(
        target.tasks, target.space, config, target.folder, num_workers=args.num_workers, overwrite=args.overwrite
    )


def convert(args: argparse.Namespace, target: Target) -> tuple[ScribbleStatistics, int]:
    """Convert published scribbles of the target."""
    from padding.data.prepare.scribbles import convert_scribbles
    from padding.data.scribbles.sources import ScribbleReader, find_scribbles
    from padding.data.sets.pascal_context import context_classes

    values = dict(_value_pair(text) for text in args.values) or None
    if args.alphabetical:
        if "pascal_context" not in args.dataset or values:
            raise PreparationError("--alphabetical is for PASCAL-Context, and without --values")
        values = {entry.alphabetical_index: index for index, entry in enumerate(context_classes())}
    reader = ScribbleReader(
        find_scribbles(args.source, below=args.below, wanted_format=args.format),
        target.space.tags,
        width=args.width,
        first_label=target.space.background if args.background_first else None,
        value_map=values,
        rescale=args.rescale,
    )
    how = {name: getattr(args, name) for name in ("missing_as_empty", "num_workers", "overwrite")}
    return convert_scribbles(target.tasks, target.space, reader, target.folder, **how)


def _value_pair(text: str) -> tuple[int, int]:
    value, _, label = text.partition(":")
    if not (value.isdigit() and label.isdigit()):
        raise PreparationError(f"--values: '{text}' is not VALUE:CLASS, two numbers")
    return int(value), int(label)


def write(args: argparse.Namespace, target: Target) -> int:
    """Simulate or convert, and report; returns the exit status."""
    start = time.perf_counter()
    statistics, written = (simulate if args.command == "simulate" else convert)(args, target)
    seconds = time.perf_counter() - start
    print("\n".join(statistics.lines(target.space.split.names)))
    rate = f", {seconds / max(written, 1):.3f} s an image with {args.num_workers} processes" if written else ""
    print(f"{target.folder.path}: {written} written, {len(target.tasks) - written} kept, {seconds:.1f} s{rate}")
    if statistics.contradiction_pct > _SUSPICIOUS_PCT:
        print(
            f"warning: {statistics.contradiction_pct:.0f} % of the scribble pixels contradict the dense labels. Have "
            "both the same order of classes? PASCAL-Context has two, see --alphabetical",
            file=sys.stderr,
        )
    return 0


def check(args: argparse.Namespace, target: Target) -> int:
    """Verify; returns the exit status."""
    from padding.data.prepare.scribble_preview import draw_preview
    from padding.data.prepare.scribbles import check_scribbles

    statistics, problems = check_scribbles(target.tasks, target.space, target.folder, num_workers=args.num_workers)
    print("\n".join(statistics.lines(target.space.split.names)))
    status = report(problems, sound=f"{target.folder.path}: checked, nothing wrong")
    if args.preview is not None:
        number = draw_preview(target.tasks, target.folder, target.space.palette, args.preview)
        print(f"{number} images drawn to {args.preview}")
    return status


def prepare(args: argparse.Namespace) -> int:
    """Make or check scribbles; returns the exit status."""
    target = find_target(args)
    return check(args, target) if args.command == "check" else write(args, target)


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
