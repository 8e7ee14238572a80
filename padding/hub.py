# SPDX-License-Identifier: Apache-2.0
"""Send a packed model to the Hugging Face Hub with a card, or fetch one from there.

  python -m padding.hub push model.safetensors OWNER/NAME [--license apache-2.0] [--private]
  python -m padding.hub pull OWNER/NAME --output model.safetensors [--revision v1]

The model is a file of ``python -m padding.pack``. In place of OWNER/NAME both take a folder, which gets or has the same
two files; nothing then leaves the machine. The card (README.md) lists classes, results of the last evaluation and how
the model is used. Of the Hub's own, HF_TOKEN or ``hf auth login`` say who you are, HF_ENDPOINT names another server.
"""

import argparse
import sys
from collections.abc import Sequence

from padding.engine.commands import command_parser
from padding.errors import run_command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="send a model and its card")
    push.add_argument("model", metavar="FILE", help="of python -m padding.pack")
    push.add_argument("target", metavar="OWNER/NAME", help="repository, or a folder")
    push.add_argument("--license", default="", metavar="NAME", help="of the weights, for the card, such as apache-2.0")
    push.add_argument("--private", action="store_true", help="a new repository is seen by its owner alone")
    pull = commands.add_parser("pull", help="fetch a model and verify it")
    pull.add_argument("source", metavar="OWNER/NAME", help="repository, or a folder")
    pull.add_argument("--output", required=True, metavar="FILE", help="to write, *.safetensors")
    pull.add_argument("--revision", default="", metavar="NAME", help="branch, tag or commit; default: the newest")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> str:
    """Command line; returns where the model lies."""
    args = parse_arguments(arguments)
    from padding.engine.hub import pull, push

    if args.command == "push":
        place = push(args.model, args.target, license_name=args.license, private=args.private)
    else:
        place = str(pull(args.source, args.output, revision=args.revision))
    print(f"{args.command}ed: {place}")  # noqa: T201  (the command's result)
    return place


if __name__ == "__main__":
    sys.exit(run_command(main))
