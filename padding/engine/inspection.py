# SPDX-License-Identifier: Apache-2.0
"""Look at a trained model beside its images: the frame of the commands ``python -m <method>.plots``.

``strip`` draws chosen images in rows; a second sub-command draws curves from the folders of finished trainings.
"""

import argparse
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.entry_choice import choose_entries
from padding.data.files import write_json
from padding.engine.commands import add_config_arguments, command_parser, parse, positive, start_log

__all__ = ["Curves", "Inspection", "Strip", "draw_plots"]

Inspected = TypeVar("Inspected")


class Inspection(Generic[Inspected]):
    """Images of a data set and what a trained model makes of them; iterate over it."""

    def __init__(
        self, entries: list[dict[str, Any]], class_split: ClassSplit, *, number: int, ids: Sequence[str], what: str
    ) -> None:
        """Choose the images.

        Args:
            entries: of the data sets.
            class_split: their classes.
            number: of images, evenly spread; 0: all.
            ids: images by id or stem of their file, in place of a number.
            what: they are, for the message.

        Raises:
            DataError: an id is unknown.
        """
        self.class_split = class_split
        self._entries = choose_entries(entries, number=number, ids=ids, what=what)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Inspected]:
        return map(self.inspect, self._entries)

    @abstractmethod
    def inspect(self, entry: dict[str, Any]) -> Inspected:
        """What the model makes of one image."""


class Reported(Protocol):
    """Numbers of a curve."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""


@dataclass(frozen=True)
class Strip:
    """The sub-command ``strip``.

    Attributes:
        help_text: what it shows.
        inspect: arguments -> images of a trained model.
        draw: file, inspected images, inspection -> picture.
    """

    help_text: str
    inspect: Callable[[argparse.Namespace], Inspection[Any]]
    draw: Callable[[Path, Sequence[Any], Any], None]


@dataclass(frozen=True)
class Curves:
    """A sub-command that draws curves of finished trainings.

    Attributes:
        name: of the sub-command.
        help_text: what it shows.
        read: folder, its name or "", arguments -> curves of the trainings below it.
        draw: file, curves, arguments -> picture.
        options: further options, name -> arguments of ``add_argument``.
    """

    name: str
    help_text: str
    read: Callable[[Path, str, argparse.Namespace], Sequence[Reported]]
    draw: Callable[[Path, Sequence[Any], argparse.Namespace], None]
    options: dict[str, dict[str, Any]]


def draw_plots(arguments: Sequence[str] | None, description: str | None, strip: Strip, curves: Curves) -> Path:
    """Run the command line of a method's plots; returns the picture's path."""
    args = parse(_plots_parser(description, strip, curves), arguments)
    start_log(warnings_only=True)
    if args.command == "strip":
        inspection = strip.inspect(args)
        strip.draw(args.output, list(tqdm(inspection, total=len(inspection), unit="image")), inspection)
    else:
        named = [text.rpartition("=")[::2] for text in args.results]
        found = [curve for name, folder in named for curve in curves.read(Path(folder), name, args)]
        curves.draw(args.output, found, args)
        write_json(args.output.with_suffix(".json"), [curve.to_json() for curve in found])
    output: Path = args.output
    return output


def _plots_parser(description: str | None, strip: Strip, curves: Curves) -> argparse.ArgumentParser:
    parser = command_parser(description)
    commands = parser.add_subparsers(dest="command", required=True)
    of_images = commands.add_parser("strip", help=strip.help_text)
    add_config_arguments(of_images, weights="checkpoint of this configuration")
    chosen = of_images.add_mutually_exclusive_group()
    chosen.add_argument("--images", type=positive, default=4, metavar="N", help="evenly spread (default %(default)s)")
    chosen.add_argument("--ids", nargs="+", default=[], metavar="ID", help="images by id or stem of their file")
    of_trainings = commands.add_parser(curves.name, help=curves.help_text)
    of_trainings.add_argument("--results", nargs="+", required=True, metavar="[NAME=]FOLDER", help="one color each")
    for name, options in curves.options.items():
        of_trainings.add_argument(name, **options)
    for command in (of_images, of_trainings):
        command.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    return parser
