# SPDX-License-Identifier: Apache-2.0
"""Look at a trained model beside its images: the frame of the commands ``python -m <method>.plots``.

``strip`` draws chosen images in rows; a second sub-command draws curves from the folders of finished trainings.
"""

import argparse
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from padding.data.class_split import ClassSplit
from padding.data.files import write_json
from padding.data.sample import DatasetDict
from padding.data.sets.scribbles import label_key
from padding.engine.commands import (
    add_config_arguments,
    command_parser,
    load_model,
    open_config,
    parse,
    positive,
    start_log,
)
from padding.errors import DataError

Inspected = TypeVar("Inspected")


class Inspection(Generic[Inspected]):
    """Images of a data set and what a trained model makes of them; iterate over it.

    Attributes:
        architecture: MODEL.META_ARCHITECTURE that is looked at.
        what: the images are, for messages.
        load: configuration -> trained model, in the form that the method looks at.
        cfg: the full configuration.
        class_split: the images' classes.
    """

    architecture: str
    what: str = "image"
    load: Callable[[CfgNode], Any] = staticmethod(load_model)

    def __init__(self, cfg: CfgNode, model: Any, *, number: int = 0, ids: Sequence[str] = ()) -> None:
        """Choose the images.

        Args:
            cfg: the full configuration; its data sets are registered.
            model: as ``load`` returns it; its mode is left as it is found.
            number: of images, evenly spread; 0: all.
            ids: images by id or stem of their file, in place of a number.

        Raises:
            DataError: an id is unknown.
            ConfigError: there is nothing to look at.
        """
        self.cfg = cfg
        self.class_split, entries = self.prepare(cfg, model)
        self._entries = choose_entries(entries, number=number, ids=ids, what=self.what)

    @classmethod
    def open(cls, config_file: str | Path, weights: str, opts: Sequence[str] = (), **chosen: Any) -> Self:
        """Images of a training; registers the data sets.

        Args:
            config_file: of ``configs/`` or OUTPUT_DIR/config.yaml.
            weights: checkpoint.
            opts: KEY VALUE pairs.
            chosen: number or ids.

        Raises:
            MethodError: the configuration is of another method.
        """
        cfg = open_config(config_file, opts, weights=weights, architectures=(cls.architecture,))
        return cls(cfg, cls.load(cfg), **chosen)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Inspected]:
        return map(self.inspect, self._entries)

    @abstractmethod
    def prepare(self, cfg: CfgNode, model: Any) -> tuple[ClassSplit, list[dict[str, Any]]]:
        """Classes and entries of the data sets; also keeps what ``inspect`` needs."""

    @abstractmethod
    def inspect(self, entry: dict[str, Any]) -> Inspected:
        """What the model makes of one image."""


def choose_entries(
    entries: Sequence[dict[str, Any]], *, number: int = 0, ids: Sequence[str] = (), what: str = "image"
) -> list[dict[str, Any]]:
    """Entries by name or, without names, evenly spread.

    Args:
        entries: of a data set.
        number: of entries if there are no ``ids``; 0: all.
        ids: images by id or stem of their file; where several entries have one name, all of them are taken.
        what: the entries are, for the message.

    Raises:
        DataError: an id is unknown.
    """
    if not ids:
        if not 0 < number < len(entries):
            return list(entries)
        return [entries[i] for i in np.linspace(0, len(entries) - 1, number).astype(int)]
    known: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for name in dict.fromkeys((str(entry["image_id"]), label_key(cast(DatasetDict, entry)))):
            known.setdefault(name, []).append(entry)
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise DataError(f"no {what} is called {', '.join(unknown)}; the first ones are {', '.join(list(known)[:4])}")
    return [entry for name in ids for entry in known[name]]


class Reported(Protocol):
    """Numbers of a curve."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""


@dataclass(frozen=True)
class Strip:
    """The sub-command ``strip``.

    Attributes:
        help_text: what it shows.
        inspection: whose images are drawn.
        draw: file, inspected images, inspection -> picture.
    """

    help_text: str
    inspection: type[Inspection[Any]]
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
        chosen = {"number": args.images, "ids": args.ids}
        inspection = strip.inspection.open(args.config_file, args.weights, args.opts, **chosen)
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
