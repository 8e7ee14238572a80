# SPDX-License-Identifier: Apache-2.0
r"""Try models on a page in the browser: classes by their names, strokes whose labels grow, methods side by side.

Example:
  python -m padding.app                                  trains small models on the embedded data first, minutes once
  python -m padding.app --model model.safetensors        of python -m padding.pack; several are chosen on the page
  python -m padding.app --config-file configs/coco_zsp.yaml MODEL.WEIGHTS model_final.pth

The page is served on this machine alone (127.0.0.1) unless --host names another interface; there is no password. Images
stay in a temporary folder, and the process refuses to connect to other machines. Needs gradio: pip install '.[app]'.
"""

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from padding.engine.commands import METHODS, add_config_arguments, command_parser, parse
from padding.errors import MissingFileError, run_command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False, help_text="configuration of a model whose weights are MODEL.WEIGHTS")
    parser.add_argument("--model", nargs="+", default=[], metavar="FILE", help="packed models")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="whose small models are trained; all"
    )
    parser.add_argument("--output", type=Path, default=Path("output/app"), metavar="DIR", help="of these trainings")
    parser.add_argument("--train-only", action="store_true", help="make the models ready, serve nothing")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="interface; 0.0.0.0: all (%(default)s)")
    parser.add_argument("--port", type=int, metavar="N", help="the first free one from 7860 on; 0: any")
    parser.add_argument("--name", nargs="+", default=[], help="further names that browsers call this machine by")
    return parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; serves until Ctrl-C."""
    args = parse_arguments(arguments)
    if not args.train_only and importlib.util.find_spec("gradio") is None:
        raise MissingFileError("the page needs gradio, which is not installed; run: pip install '.[app]'")
    from padding.page.guard import stay_on_this_machine
    from padding.page.models import open_models

    files: Sequence[str | Path] = args.model
    if not files and not args.config_file:
        from padding.page.first_models import train_first_models

        files = train_first_models(args.output, args.methods)
    models = open_models(files, args.config_file, args.opts)
    if args.train_only:
        return 0
    stay_on_this_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the temporary folder is removed
    from padding.page.server import served

    with served(models, host=args.host, port=args.port, names=args.name) as address:
        print(f"{', '.join(models)} on {address} (Ctrl-C ends)", flush=True)  # noqa: T201  (the command's result)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    sys.exit(run_command(main))
