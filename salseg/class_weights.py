# SPDX-License-Identifier: Apache-2.0
"""Class weights of the segmentation loss, 1 / ln(1.02 + p): ``python -m salseg.class_weights --config-file ...``.

A training counts them by itself; the command shows them, and makes the file ahead of a job of many processes.
"""

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from padding.data.catalog import register_all
from padding.data.class_frequency import class_counts, inverse_log_weights
from padding.data.folders import register_own_data
from padding.engine import load_cfg
from salseg.config import add_salseg_config
from salseg.trainer import class_frequency_file

__all__ = ["class_weight_table"]


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
    parser = argparse.ArgumentParser(description="Class weights of SalSeg's segmentation loss.")
    parser.add_argument("--config-file", required=True, help="its DATASETS and MODEL.SALSEG.CLASS_WEIGHTS are read")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the configuration")
    args = parser.parse_args(arguments)
    cfg = load_cfg(args.config_file, args.opts, [add_salseg_config], drop_unknown=True)
    register_all()
    register_own_data(cfg)
    print(class_weight_table(cfg))  # noqa: T201  (the command's result)


if __name__ == "__main__":
    main()
