# SPDX-License-Identifier: Apache-2.0
r"""Write a trained model of any method as one file that needs no configuration, no data set and no checkout.

Example:
  python -m padding.pack --config-file configs/shapes_zsp.yaml --output model.safetensors \
      MODEL.WEIGHTS output/shapes_zsp/model_final.pth

The file holds weights, configuration, classes with their colours and, of PADing, class embeddings and seen statistics,
so that classes can be added to it. It is a safetensors file: nothing in it is executed. ``Predictor.from_file(FILE)``
and ``demo.py --model FILE`` use it; ``python -m padding.hub`` sends it to the Hugging Face Hub and fetches it from
there. As MODEL.WEIGHTS of a configuration it is a weight file like any other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from padding.engine.commands import add_config_arguments, command_parser, load_model, open_config, parse
from padding.errors import run_command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="model to write, *.safetensors")
    return parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the file."""
    args = parse_arguments(arguments)
    cfg = open_config(args.config_file, args.opts)
    from padding.engine.packing import pack_model

    description = pack_model(cfg, load_model(cfg), args.output)
    output = Path(args.output)
    print(  # noqa: T201  (the command's result)
        f"{cfg.MODEL.META_ARCHITECTURE} of {len(description.predicted.names)} classes in {output}, "
        f"{output.stat().st_size / 1e6:.1f} MB; use it: demo.py --model {output} --input photo.jpg --output pictures"
    )
    return output


if __name__ == "__main__":
    sys.exit(run_command(main))
