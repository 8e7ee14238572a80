# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of a model: ``python -m padding.engine.complexity --config-file FILE [KEY VALUE ...]``.

Nothing is computed, so that it takes seconds. Convolutions, matrix products and attention count, fused or not; norms,
activations and resizing do not. A method counts in its own way in ``<method>/complexity.py``, whose ``COUNTING`` says
how; of others the parameters of each part are shown.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from tabulate import tabulate
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from padding.engine.commands import add_config_arguments, command_parser, load_config, parse, register_data
from padding.errors import MethodError, run_command

__all__ = ["Counting", "build_on_meta", "count_command", "markdown", "millions", "operations"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Counting:
    """How a method counts.

    Attributes:
        architecture: MODEL.META_ARCHITECTURE.
        size: (H, W) of the image without ``--size``.
        num_classes: without ``--num-classes``; 0: those of the configuration, there is no such option.
        table: configuration file or "", configuration, size, number of classes -> Markdown.
        reference: size, KEY VALUE pairs -> Markdown of the published models.
        pairs_suffice: KEY VALUE pairs without a file are a configuration, not changes of the published models.
    """

    architecture: str
    size: Size
    num_classes: int
    table: Callable[[str, CfgNode, Size, int], str]
    reference: Callable[[Size, Sequence[str]], str]
    pairs_suffice: bool = False


def millions(module: nn.Module) -> float:
    """Parameters in 10^6."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def operations(module: nn.Module, run: Callable[[], object]) -> float:
    """Additions and multiplications of ``run``, with the module in evaluation mode; its mode is kept."""
    training = module.training
    module.eval()
    # The counter does not know every fused attention; this one is made of matrix products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        run()
    module.train(training)
    return float(counter.get_total_flops())


def build_on_meta(cfg: CfgNode) -> Any:
    """Model of a configuration, without memory for its parameters."""
    own = cfg.clone()
    own.defrost()
    own.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(own)


def markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Table whose cells stay as they are."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def count_command(arguments: Sequence[str] | None, description: str | None, counting: Counting) -> None:
    """Print the table of a configuration or, without one, of the method's published models."""
    args = _parse(arguments, description, counting)
    if not (args.config_file or (args.opts and counting.pairs_suffice)):
        print(counting.reference(args.size, args.opts))  # noqa: T201  (the command's result)
        return
    cfg = load_config(args.config_file, args.opts)
    if args.config_file and counting.architecture != cfg.MODEL.META_ARCHITECTURE:
        raise MethodError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; this command counts {counting.architecture}"
        )
    _print_table(args, cfg, counting)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration of any method."""
    args = _parse(arguments, __doc__, None)
    cfg = load_config(args.config_file, args.opts)
    package = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__.split(".")[0]
    if importlib.util.find_spec(f"{package}.complexity") is None:
        register_data(cfg)
        model = build_on_meta(cfg)
        rows = [[name, f"{millions(part):.2f}"] for name, part in model.named_children()]
        print(markdown([*rows, ["all", f"{millions(model):.2f}"]], ["part", "M parameters"]))  # noqa: T201
        return
    _print_table(args, cfg, importlib.import_module(f"{package}.complexity").COUNTING)


def _print_table(args: argparse.Namespace, cfg: CfgNode, counting: Counting) -> None:
    register_data(cfg)
    size = tuple(args.size or counting.size)
    print(counting.table(args.config_file, cfg, size, args.num_classes or counting.num_classes))  # noqa: T201


def _parse(arguments: Sequence[str] | None, description: str | None, counting: Counting | None) -> argparse.Namespace:
    parser = command_parser(description)
    add_config_arguments(parser, required=counting is None, help_text="without it, the published models")
    size = None if counting is None else counting.size
    parser.add_argument("--size", type=int, nargs=2, default=size, metavar=("H", "W"), help="of the image")
    parser.add_argument("--num-classes", type=int, default=0, help="of methods that count without a data set")
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
