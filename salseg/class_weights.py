# SPDX-License-Identifier: Apache-2.0
"""Class weights of the segmentation loss, 1 / ln(1.02 + p): ``python -m salseg.class_weights --config-file ...``.

A training counts them by itself; the command shows them, and makes the file ahead of a job of many processes.
"""

import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from padding.data.class_frequency import class_counts, inverse_log_weights
from padding.engine.commands import add_config_arguments, command_parser, open_config, parse
from padding.errors import run_command
from salseg.trainer import class_frequency_file


def class_weight_table(cfg: CfgNode) -> str:
    """Markdown table of the classes' pixels, shares and weights."""
    over = cfg.MODEL.SALSEG.CLASS_WEIGHTS.OVER
    counts = class_counts(cfg, cache=class_frequency_file(cfg))
    shares = counts.shares(over)
    rows = [
        [name, pixels, f"{100 * share:.2f}", f"{weight:.2f}"]
        for name, pixels, share, weight in zip(
            counts.names, counts.pixels, shares, inverse_log_weights(shares), strict=True
        )
    ]
    headers = ["class", "pixels", f"% of {over}", "weight"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = command_parser("Class weights of SalSeg's segmentation loss.")
    add_config_arguments(parser, help_text="its DATASETS and MODEL.SALSEG.CLASS_WEIGHTS are read")
    args = parse(parser, arguments)
    cfg = open_config(args.config_file, args.opts, architectures=("SalSeg",))
    print(class_weight_table(cfg))  # noqa: T201  (the command's result)


if __name__ == "__main__":
    sys.exit(run_command(main))
