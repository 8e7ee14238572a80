# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of SalSeg: ``python -m salseg.complexity``.

A GMAC is 10^9 multiply-adds, which the paper calls GFLOP. Convolutions and matrix products count; norms, activations
and resizing do not, so that counts lie 0.3 % below the published ones. Nothing is computed, so that it takes seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from padding.engine import complexity
from padding.engine.commands import open_config
from padding.engine.complexity import Counting, count_command, markdown, millions, operations
from padding.errors import run_command
from salseg.meta_arch import SalSeg

__all__ = ["COUNTING", "Complexity", "complexity_table", "model_complexity", "salseg_on_meta"]

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
    branch = 0.0 if model.branch is None else millions(model.branch)
    segmentation = _gmacs(model, size, saliency=False)
    extra = 0.0 if model.branch is None else _gmacs(model, size, saliency=True) - segmentation
    log_variances = millions(model.weighting)
    return Complexity(millions(model) - branch - log_variances, segmentation, branch, extra)


def salseg_on_meta(config_file: str, opts: Sequence[str] = ()) -> SalSeg:
    """Model of a configuration, without memory for its parameters.

    Raises:
        MethodError: the configuration is of another method.
    """
    model: SalSeg = complexity.build_on_meta(open_config(config_file, opts, architectures=("SalSeg",)))
    return model


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
    return markdown(lines, headers)


def reference_table(size: tuple[int, int], opts: Sequence[str] = ()) -> str:
    """Markdown table of the published networks, with KEY VALUE pairs on top."""
    rows = {
        name: salseg_on_meta(_R101, ["MODEL.SALSEG.ASPP.DSC", str(name == "DSC-ASPP"), *opts]) for name in PUBLISHED
    }
    return complexity_table(rows, size)


COUNTING = Counting(
    "SalSeg",
    size=(512, 1024),
    num_classes=0,
    table=lambda name, cfg, size, _: complexity_table({name: complexity.build_on_meta(cfg)}, size),
    reference=lambda opts, size, _: reference_table(size, opts),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration's model, or of the published networks."""
    count_command(arguments, __doc__, COUNTING)


def _gmacs(model: SalSeg, size: tuple[int, int], *, saliency: bool) -> float:
    wanted = model.predict_saliency
    model.predict_saliency = saliency
    found = operations(model, lambda: model.logits(torch.empty(1, 3, *size, device=model.device)))
    model.predict_saliency = wanted
    return found / 2e9


if __name__ == "__main__":
    sys.exit(run_command(main))
