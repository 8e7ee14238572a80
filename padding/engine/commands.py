# SPDX-License-Identifier: Apache-2.0
"""The front of every command: its arguments, and the way from them to a configuration, data sets and a model.

A configuration always has the keys of all methods, so that whatever file the project writes is accepted and an unknown
key is always an error. KEY VALUE pairs stand bare in the command line, after ``--`` or after ``--opts``.

This module loads only the standard library; what needs torch or Detectron2 is imported by the function that needs it,
so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padding.errors import DEBUG_OPTION, DEBUG_VARIABLE, ConfigError, MethodError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# The methods, each a package that exposes add_<method>_config and registers its parts when it is imported.
METHODS = ("padding", "tcc", "psi", "salseg")

_PAIRS_OPTION = "--opts"
_KEY = re.compile(
    r"(?:DATALOADER|DATASETS|ENGINE|GLOBAL|INPUT|MODEL|SOLVER|TEST)(?:\.[A-Z0-9_]+)+"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|OUTPUT_DIR|OUTPUT_OVERWRITE|SEED|TRAINER|VERSION|VIS_PERIOD"
)


def method_configs() -> tuple[Callable[[CfgNode], None], ...]:
    """Import every method and return what adds its keys to a configuration."""
    return tuple(getattr(importlib.import_module(name), f"add_{name}_config") for name in METHODS)


# ------------------------------------------------------------------------------------------------------- arguments


def command_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Parser whose help shows the description as it is written; ``--debug`` is one of its options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, **options)
    parser.add_argument(
        DEBUG_OPTION, action="store_true", help=f"show where an error comes from, as {DEBUG_VARIABLE}=1 does"
    )
    return parser


def add_config_arguments(
    parser: argparse.ArgumentParser,
    *,
    required: bool = True,
    help_text: str = "configuration: a file of configs/, or the config.yaml that a training wrote",
    weights: str = "",
) -> None:
    """Add what names a configuration; arguments must be read by ``parse``.

    Args:
        parser: of a command or sub-command.
        required: False: without a file, the defaults.
        help_text: of ``--config-file``.
        weights: help of ``--weights``, which is required then; "": no such option.
    """
    parser.add_argument("--config-file", required=required, default="", metavar="FILE", help=help_text)
    if weights:
        parser.add_argument("--weights", required=True, metavar="FILE", help=weights)
    add_pairs_argument(parser)


def add_pairs_argument(parser: argparse.ArgumentParser) -> None:
    """Add KEY VALUE pairs alone, for a command that knows its configuration."""
    parser.add_argument(
        _PAIRS_OPTION, nargs="*", default=[], metavar="KEY VALUE", help="of the configuration; --opts can be left out"
    )


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line with KEY VALUE pairs in any spelling.

    Args:
        parser: with ``add_config_arguments`` or ``add_pairs_argument``.
        arguments: None: those of this process.

    Returns:
        What the parser makes of the rest; ``opts`` are the pairs as a list, KEY, VALUE, ...
    """
    words, pairs = _split_pairs(sys.argv[1:] if arguments is None else arguments)
    args, rest = parser.parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    pairs = [*rest, *pairs]  # words that look like no key are reported where keys are checked
    if pairs and not hasattr(args, "opts"):
        parser.error(f"unrecognized arguments: {' '.join(pairs)}")
    args.opts = [*getattr(args, "opts", ()), *pairs]
    return args


def _split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take KEY VALUE pairs out, whatever the values look like: options with several values would swallow them."""
    rest: list[str] = []
    pairs: list[str] = []
    inside = False
    remaining: Iterator[str] = iter(words)
    for word in remaining:
        if word in (_PAIRS_OPTION, "--"):
            inside = True
        elif word.startswith("-"):
            inside = False
            rest.append(word)
        elif inside or (_KEY.fullmatch(word) and not Path(word).exists()):
            pairs += [word, *([value] if (value := next(remaining, None)) is not None else [])]
        else:
            rest.append(word)
    return rest, pairs


def positive(text: str) -> int:
    """Type of an argument that is a number of things, at least 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1")
    return int(text)


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser of a training: the names of Detectron2's ``default_argument_parser``, which its ``launch`` needs."""
    parser = command_parser(description)
    add_config_arguments(parser, required=False)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and train nothing")
    parser.add_argument(
        "--save", action="store_true", help="write the predictions too, short for TEST.SAVE_PREDICTIONS"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, a GPU each")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="I", help="of this machine, from 0 on")
    port = 49152 + os.getuid() % 16384  # of the ports that nobody owns; users of one machine do not meet
    parser.add_argument(
        "--dist-url", default=f"tcp://127.0.0.1:{port}", metavar="URL", help="where the processes find each other"
    )
    return parser


# --------------------------------------------------------------------------------------------- from arguments to models


def load_config(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Frozen configuration with the keys of all methods; see ``padding.engine.setup.load_cfg``.

    Args:
        config_file: YAML, or "" for the defaults.
        opts: KEY, VALUE, ...

    Raises:
        ConfigError: for a missing or unsafe file, an unknown key or a value of the wrong type.
    """
    from padding.engine.setup import load_cfg

    return load_cfg(str(config_file), opts, method_configs())


def open_config(
    config_file: str | Path, opts: Sequence[str] = (), *, weights: str = "", architectures: Collection[str] = ()
) -> CfgNode:
    """Load a configuration, make sure that it is of the right method, and register the data sets.

    Args:
        config_file: of ``configs/``, or OUTPUT_DIR/config.yaml.
        opts: KEY, VALUE, ...
        weights: MODEL.WEIGHTS; "": the configuration's.
        architectures: values of MODEL.META_ARCHITECTURE that the command serves; empty: all.

    Raises:
        ConfigError: see ``load_config``.
        MethodError: the configuration is of another method.
    """
    cfg = load_config(config_file, [*opts, *(("MODEL.WEIGHTS", weights) if weights else ())])
    found = cfg.MODEL.META_ARCHITECTURE
    if architectures and found not in architectures:
        raise MethodError(
            f"{config_file} configures {found}; this command looks at {' and '.join(architectures)} alone"
        )
    register_data(cfg)
    return cfg


def register_data(cfg: CfgNode) -> None:
    """Make a process ready for a configuration: keys of ENGINE and of files, our data sets and DATASETS.FOLDERS."""
    from padding.data.catalog import register_all
    from padding.data.folders import register_own_data

    prepare_process(cfg)
    register_all()
    register_own_data(cfg)


def prepare_process(cfg: CfgNode) -> None:
    """Apply the keys of ENGINE and of files to this process."""
    from padding.data.damage import set_unpacked_limit
    from padding.data.readers import allow_truncated_jpegs
    from padding.engine.memory import keep_freed_memory

    keep_freed_memory(cfg)
    set_unpacked_limit(cfg.INPUT.MAX_UNPACKED_MB)
    allow_truncated_jpegs(cfg.INPUT.ALLOW_TRUNCATED_JPEG)


def load_model(cfg: CfgNode) -> Any:
    """Build the model of ``cfg`` and load MODEL.WEIGHTS, all of it; in evaluation mode.

    Raises:
        ConfigError: MODEL.WEIGHTS is empty.
        CheckpointError: the file does not fit the model.
    """
    from padding.engine.trainer import TRAINER_REGISTRY

    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty; set it to a trained checkpoint, for example model_final.pth")
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
    model = trainer_class.build_model(cfg)
    trainer_class.load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
    return model.eval()


def start_log(*, warnings_only: bool = False) -> None:
    """Show the log of all methods on the terminal."""
    import logging

    from detectron2.utils.logger import setup_logger

    for name in METHODS:
        setup_logger(name=name).setLevel(logging.WARNING if warnings_only else logging.DEBUG)
