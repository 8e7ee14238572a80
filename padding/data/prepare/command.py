# SPDX-License-Identifier: Apache-2.0
"""The frame of the scripts ``datasets/prepare_*.py``: common options, exit status, and how problems are printed.

Only the standard library is loaded, so that ``--help`` answers at once.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from padding.data.roots import data_root
from padding.errors import DEBUG_OPTION, run_command

_INTERRUPTED = "interrupted; what is written stays valid, the same command goes on from here"
_SHOWN = 20
_OPTIONS: dict[str, dict[str, Any]] = {
    "--num-workers": {"type": int, "default": 2, "help": "processes (default: %(default)s)"},
    "--subset": {"action": "store_true", "help": "the folders hold only a part of the official images"},
    "--overwrite": {"action": "store_true", "help": "replace label images that differ from their source"},
    "--check": {"action": "store_true", "help": "compare with the sources and write nothing"},
}


def preparation_parser(description: str | None, *, root: str = "", below: str = "") -> argparse.ArgumentParser:
    """Parser whose help shows the description as it is written.

    Args:
        description: of the script.
        root: help of ``--root``; "": no such option.
        below: folder in the data root that is the default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(DEBUG_OPTION, action="store_true", help="show where an error comes from")
    if root:
        parser.add_argument("--root", type=Path, default=data_root() / below, help=f"{root} (default: %(default)s)")
    return parser


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: str) -> None:
    """Add common options.

    Args:
        parser: of a script or of one of its commands.
        names: of the options, such as ``--num-workers``.
        changes: help in place of the common one, by name without dashes in front and with underscores.
    """
    for name in names:
        help_text = changes.get(name[2:].replace("-", "_"), _OPTIONS[name]["help"])
        parser.add_argument(name, **{**_OPTIONS[name], "help": help_text})


def run_preparation(
    action: Callable[[argparse.Namespace], int],
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a script.

    Returns:
        The exit status: what ``action`` returns, 2 after an error of the user, 130 after Ctrl-C.
    """
    return run_command(lambda words: action(parse(words)), arguments, failure=2, interrupted=_INTERRUPTED)


def report(problems: Sequence[str], lines: Sequence[str] = (), *, sound: str = "") -> int:
    """Print lines, then problems.

    Args:
        problems: a line each.
        lines: before them.
        sound: the last line where nothing is wrong, of a script that counts single problems and shows the first ones;
            "": all are shown, and are kinds of problems.

    Returns:
        The exit status.
    """
    shown = problems[:_SHOWN] if sound else problems
    number = f"{len(problems)} problems" if sound else f"{len(problems)} kinds of problems"
    last = number if problems or not sound else sound
    print("\n".join([*lines, *(f"problem: {line}" for line in shown), last]))  # noqa: T201  (the script's result)
    return 1 if problems else 0
