# SPDX-License-Identifier: Apache-2.0
"""What the commands that look at a trained model share: their arguments, and the way to its configuration."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.engine.setup import load_cfg
from padding.errors import MethodError

__all__ = ["add_strip_command", "positive", "trained_cfg"]


def trained_cfg(
    config_file: str | Path,
    weights: str,
    opts: Sequence[str],
    add_config: Callable[[CfgNode], None],
    *,
    meta_architecture: str,
) -> CfgNode:
    """Configuration of a training, with MODEL.WEIGHTS set; registers the data sets.

    Args:
        config_file: of ``configs/`` or OUTPUT_DIR/config.yaml.
        weights: checkpoint.
        opts: KEY VALUE pairs.
        add_config: adds the method's keys.
        meta_architecture: the method's.

    Raises:
        MethodError: the configuration is of another method.
    """
    cfg = load_cfg(str(config_file), [*opts, "MODEL.WEIGHTS", weights], [add_config], drop_unknown=True)
    if meta_architecture != cfg.MODEL.META_ARCHITECTURE:
        raise MethodError(
            f"{config_file} configures {cfg.MODEL.META_ARCHITECTURE}; this command looks at {meta_architecture} alone"
        )
    register_all()
    register_own_data(cfg)
    return cfg


def add_strip_command(commands: Any, help_text: str) -> argparse.ArgumentParser:
    """Add the sub-command ``strip`` with the arguments that name a trained model, images and options.

    Args:
        commands: of ``ArgumentParser.add_subparsers``.
        help_text: what the strip shows.
    """
    strip: argparse.ArgumentParser = commands.add_parser("strip", help=help_text)
    strip.add_argument("--config-file", required=True, metavar="FILE")
    strip.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of this configuration")
    chosen = strip.add_mutually_exclusive_group()
    chosen.add_argument("--images", type=positive, default=4, metavar="N", help="evenly spread (default %(default)s)")
    chosen.add_argument("--ids", nargs="+", default=[], metavar="ID", help="images by id or stem of their file")
    strip.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="of the configuration")
    return strip


def positive(text: str) -> int:
    """Type of an argument that is a number of things, at least 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1")
    return int(text)
