# SPDX-License-Identifier: Apache-2.0
r"""Write a trained model of any method as a graph that runs without this project: torch.export or ONNX.

Example:
  python -m padding.export --format onnx --config-file configs/shapes_zsp.yaml --output model.onnx \
      MODEL.WEIGHTS output/shapes_zsp/model_final.pth
  python -m padding.export --format torch-export --model model.safetensors --output model.pt2 --post-processing

The graph takes images (B, 3, H, W) float in [0, 255] and normalises them. MaskFormer and PADing give class and mask
logits of their queries, TCC, PSI and SalSeg class logits; with --post-processing labels, panoptic segments and
instances, as MODEL.MASK_FORMER.TEST switches them on. Batch, H and W are free (multiples of what the network needs)
unless --size fixes them. The file is compared with the network; model.json says how exact it is, and what goes in and
comes out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from padding.engine.commands import add_config_arguments, command_parser, load_model, open_config, parse, positive
from padding.errors import ConfigError, run_command

FORMATS = ("torch-export", "onnx")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument("--model", default="", metavar="FILE", help="of padding.pack, in place of --config-file")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="FILE", help="*.pt2 of torch-export, *.onnx of onnx")
    parser.add_argument("--post-processing", action="store_true", help="labels and segments instead of logits")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="images of this size alone")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="with --size, images at once (1)")
    return parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the file."""
    args = parse_arguments(arguments)
    if bool(args.model) == bool(args.config_file):
        raise ConfigError("give either --config-file, with MODEL.WEIGHTS, or --model")
    from padding.engine.export import export_graph
    from padding.engine.graphs import graph_of
    from padding.engine.packing import open_packed
    from padding.engine.predictor import class_names_of

    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    cfg = open_packed(args.model, opts) if args.model else open_config(args.config_file, opts)
    model = load_model(cfg)
    report = export_graph(
        graph_of(model, post_processing=args.post_processing),
        args.output,
        form=args.format,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        channels=len(cfg.MODEL.PIXEL_MEAN),
        pixels=cfg.INPUT.FORMAT,
        classes=class_names_of(cfg, model),
    )
    size = "any batch and size" if report.size is None else f"{report.batch} x {report.size[0]} x {report.size[1]}"
    print(  # noqa: T201  (the command's result)
        f"{', '.join(report.outputs)} of {size} in {args.output}; differences from the network: "
        f"{json.dumps(report.differences)}"
    )
    return Path(args.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
