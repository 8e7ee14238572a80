# SPDX-License-Identifier: Apache-2.0
"""Add classes to a trained model by their names: no images, no training of the network, seconds on a CPU.

python -m padding.add_classes --config-file FILE --weights model_final.pth --names "zebra,traffic cone" --output new.pth
    [--embeddings FILE.npz] [--stuff ["NAMES"]] [--statistics FILE_OR_BANK] [--refit] [--opts KEY VALUE ...]

The new file holds the wider classifier, names, kinds and embeddings of all classes, and the seen statistics, so that it
can be extended again. ``demo.py`` and ``Predictor`` take it as MODEL.WEIGHTS with the same configuration.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from padding.bank.seen_statistics import SeenStatistics
from padding.checkpoint import LABEL_SPACE_ENTRY, describe_label_space
from padding.engine.checkpointer import write_checkpoint
from padding.engine.commands import add_config_arguments, command_parser, load_model, open_config, parse
from padding.errors import ConfigError, run_command
from padding.extension import STATISTICS_ENTRY, ExtensionReport, add_classes_to, find_statistics
from padding.meta_arch import PADing


def split_names(listed: str) -> list[str]:
    """Names of a comma-separated list, stripped; empty parts are left out."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def extended_checkpoint(model: PADing, statistics: SeenStatistics) -> dict[str, Any]:
    """Everything that is needed to use an extended model or to extend it again: tensors and plain values only."""
    return {
        "model": model.state_dict(),
        LABEL_SPACE_ENTRY: describe_label_space(model),
        STATISTICS_ENTRY: statistics.state_dict(),
    }


def save_extended(path: Path, model: PADing, statistics: SeenStatistics) -> None:
    """Write ``extended_checkpoint``; a killed process leaves the old file or none."""
    write_checkpoint(path, extended_checkpoint(model, statistics))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, weights="checkpoint of the second stage")
    parser.add_argument("--names", required=True, help='new classes, "zebra,traffic cone"')
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write, *.pth")
    parser.add_argument("--embeddings", metavar="FILE", help="npz table with the new names; default: the config's")
    parser.add_argument(
        "--stuff", nargs="?", const="", metavar="NAMES", help="new classes that are stuff; without names: all of them"
    )
    parser.add_argument(
        "--statistics", metavar="PATH", help="seen statistics or a feature bank; default: in or beside the checkpoint"
    )
    parser.add_argument("--refit", action="store_true", help="fit the rows of the old classes again too")
    return parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> ExtensionReport:
    """Command line; returns what it prints."""
    args = parse_arguments(arguments)
    output = Path(args.output)
    if output.suffix != ".pth":
        raise ConfigError(f"--output {output}: a checkpoint is a .pth file; add the suffix")
    cfg = open_config(args.config_file, args.opts, weights=args.weights, architectures=("PADing",))
    model = load_model(cfg)
    names = split_names(args.names)
    stuff = [] if args.stuff is None else split_names(args.stuff) or names
    statistics = find_statistics(cfg, model, args.statistics)
    report = add_classes_to(
        model, cfg, names, embeddings=args.embeddings, stuff=stuff, statistics=statistics, refit=args.refit
    )
    save_extended(output, model, statistics)
    print(f"{report}\n\nwritten to {output}; use it as MODEL.WEIGHTS with {args.config_file}")  # noqa: T201
    print(json.dumps(asdict(report)))  # noqa: T201
    return report


if __name__ == "__main__":
    sys.exit(run_command(main))
