# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of SalSeg: ``python -m salseg.complexity``.

A GMAC is 10^9 multiply-adds, which the paper calls GFLOP. Convolutions and matrix products count; norms, activations
and resizing do not, so that counts lie 0.3 % below the published ones. Nothing is computed, so that it takes seconds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.engine import load_cfg
from salseg.config import add_salseg_config
from salseg.meta_arch import SalSeg

__all__ = ["Complexity", "build_on_meta", "complexity_table", "model_complexity"]

# Table 1: pyramid -> millions of parameters and GMACs at 1024x512 with 19 classes.
PUBLISHED = {"plain ASPP": (59.34, 177.78), "DSC-ASPP": (46.81, 152.13)}
_R101 = "configs/cityscapes_salseg.yaml"


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model.

    Attributes:
        millions: parameters that segmentation needs.
        gmacs: its operations for one image.
        branch_millions: what the saliency branch adds; it can be left out after training.
        branch_gmacs: likewise.
    """

    millions: float
    gmacs: float
    branch_millions: float
    branch_gmacs: float


def model_complexity(model: SalSeg, size: tuple[int, int]) -> Complexity:
    """Count.

    Args:
        model: on any device; on "meta" nothing is computed.
        size: (H, W) of the image, multiples of 32.
    """
    branch = 0.0 if model.branch is None else _millions(model.branch)
    segmentation = _gmacs(model, size, saliency=False)
    extra = 0.0 if model.branch is None else _gmacs(model, size, saliency=True) - segmentation
    log_variances = _millions(model.weighting)
    return Complexity(_millions(model) - branch - log_variances, segmentation, branch, extra)


def build_on_meta(config_file: str, opts: Sequence[str] = ()) -> SalSeg:
    """Model of a configuration, without memory for its parameters."""
    cfg = load_cfg(config_file, ["MODEL.DEVICE", "meta", *opts], [add_salseg_config], drop_unknown=True)
    register_all()
    register_own_data(cfg)
    return _on_meta(cfg)


def complexity_table(rows: dict[str, SalSeg], size: tuple[int, int]) -> str:
    """Markdown table of some models; published numbers stand in brackets."""
    lines = []
    for name, model in rows.items():
        complexity = model_complexity(model, size)
        published = PUBLISHED.get(name) if size == (512, 1024) else None
        cells = [f"{complexity.millions:.3f}", f"{complexity.gmacs:.2f}"]
        if published is not None:
            cells = [f"{cell} ({other})" for cell, other in zip(cells, published, strict=True)]
        lines.append([name, *cells, f"+{complexity.branch_millions:.2f}", f"+{complexity.branch_gmacs:.1f}"])
    headers = ["model", "M parameters", f"GMAC ({size[1]}x{size[0]})", "saliency branch: M", "GMAC"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration, or of the published networks."""
    parser = argparse.ArgumentParser(description="Parameters and operations of SalSeg.")
    parser.add_argument("--config-file", default="", help="its model; without it the published ones")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"), help="of the image")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the configuration")
    args = parser.parse_args(arguments)
    if args.config_file:
        rows = {args.config_file: build_on_meta(args.config_file, args.opts)}
    else:
        rows = {
            name: build_on_meta(_R101, ["MODEL.SALSEG.ASPP.DSC", str(name == "DSC-ASPP"), *args.opts])
            for name in PUBLISHED
        }
    print(complexity_table(rows, tuple(args.size)))  # noqa: T201  (the command's result)


def _on_meta(cfg: CfgNode) -> SalSeg:
    with torch.device("meta"):
        model = build_model(cfg)
    if not isinstance(model, SalSeg):
        raise TypeError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; this command counts SalSeg")
    return model


def _gmacs(model: SalSeg, size: tuple[int, int], *, saliency: bool) -> float:
    mode, wanted = model.training, model.predict_saliency
    model.eval()
    model.predict_saliency = saliency
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(torch.empty(1, 3, *size, device=model.device))
    model.train(mode)
    model.predict_saliency = wanted
    return counter.get_total_flops() / 2e9


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


if __name__ == "__main__":
    main()
