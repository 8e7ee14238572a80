# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of a model: ``python -m padding.engine.complexity --config-file FILE [KEY VALUE ...]``.

Nothing is computed, so that it takes seconds. Convolutions, matrix products and attention count, fused or not; norms,
activations and resizing do not. A method counts in its own way in ``<method>/complexity.py``, whose ``COUNTING`` says
how; of others the parameters of each part are shown.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from tabulate import tabulate
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from padding.engine.commands import add_config_arguments, command_parser, open_config, parse
from padding.errors import run_command

Size = tuple[int, int]
Rows = Mapping[str, Sequence[str]]  # name of a model -> cells


@dataclass(frozen=True)
class Counting:
    """How a method counts.

    Attributes:
        architecture: MODEL.META_ARCHITECTURE.
        size: (H, W) of the image without ``--size``.
        num_classes: without ``--num-classes``.
        columns: headers; {h} {w} {k} are height, width and number of classes.
        count: configuration file, configuration, size, number of classes -> a row for each model of the method.
        reference: KEY VALUE pairs, size, number of classes -> rows of the published models.
        published: numbers of these at ``size`` and with ``num_classes``, to be shown in brackets.
    """

    architecture: str
    size: Size
    num_classes: int
    columns: Sequence[str]
    count: Callable[[str, CfgNode, Size, int], Rows]
    reference: Callable[[Sequence[str], Size, int], Rows]
    published: Mapping[str, Sequence[float]]

    def table(self, rows: Rows, size: Size, num_classes: int, *, published: bool = False) -> str:
        """Markdown table; ``published`` numbers stand in brackets where size and number of classes are theirs."""
        known = self.published if published and (size, num_classes) == (self.size, self.num_classes) else {}
        lines = []
        for name, cells in rows.items():
            others = [f" ({number})" for number in known.get(name, ())]
            lines.append([name, *(cell + other for cell, other in zip_longest(cells, others, fillvalue=""))])
        headers = [column.format(h=size[0], w=size[1], k=num_classes) for column in self.columns]
        return _markdown(lines, headers)


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


def count_command(arguments: Sequence[str] | None, description: str | None, counting: Counting | None = None) -> None:
    """Print the table of a configuration; of a method's command without one, that of its published models.

    Args:
        arguments: None: those of this process.
        description: of the command.
        counting: of the method whose command this is; None: that of the configuration, which must be given.

    Raises:
        MethodError: the configuration is of another method.
    """
    parser = command_parser(description)
    add_config_arguments(parser, required=counting is None)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the image")
    parser.add_argument("--num-classes", type=int, help="of methods that count without a data set")
    args = parse(parser, arguments)
    if args.config_file:
        cfg = open_config(args.config_file, args.opts, architectures=(counting.architecture,) if counting else ())
        counting = counting or _counting_of(cfg)
    if counting is None:
        text = _parts_table(cfg)
    else:
        last = (tuple(args.size or counting.size), args.num_classes or counting.num_classes)
        if args.config_file:
            text = counting.table(counting.count(args.config_file, cfg, *last), *last)
        else:
            text = counting.table(counting.reference(args.opts, *last), *last, published=True)
    print(text)  # noqa: T201  (the command's result)


def _counting_of(cfg: CfgNode) -> Counting | None:
    package = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__.split(".")[0]
    if importlib.util.find_spec(f"{package}.complexity") is None:
        return None
    counting: Counting = importlib.import_module(f"{package}.complexity").COUNTING
    return counting


def _parts_table(cfg: CfgNode) -> str:
    model = build_on_meta(cfg)
    rows = [[name, f"{millions(part):.2f}"] for name, part in [*model.named_children(), ("all", model)]]
    return _markdown(rows, ["part", "M parameters"])


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Table whose cells stay as they are."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration of any method."""
    count_command(arguments, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
