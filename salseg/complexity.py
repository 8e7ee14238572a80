# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of SalSeg: ``python -m salseg.complexity``.

A GMAC is 10^9 multiply-adds, which the paper calls GFLOP. Convolutions and matrix products count; norms, activations
and resizing do not, so that counts lie 0.3 % below the published ones. Nothing is computed, so that it takes seconds.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from padding.engine.commands import open_config
from padding.engine.complexity import Counting, build_on_meta, count_command, millions, operations
from padding.errors import run_command
from salseg.meta_arch import SalSeg

# Table 1: pyramid -> millions of parameters and GMACs at 1024x512 with 19 classes.
PUBLISHED = {"plain ASPP": (59.34, 177.78), "DSC-ASPP": (46.81, 152.13)}
_R101 = "configs/cityscapes_salseg.yaml"


class Complexity(NamedTuple):
    """Size and cost of a model: 10^6 parameters, 10^9 multiply-adds for one image."""

    millions: float  # what segmentation needs
    gmacs: float
    branch_millions: float  # what the saliency branch adds; it can be left out after training
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


def row_of(model: SalSeg, size: tuple[int, int]) -> list[str]:
    """Cells of a model."""
    found = model_complexity(model, size)
    return [f"{found[0]:.3f}", f"{found[1]:.2f}", f"+{found[2]:.2f}", f"+{found[3]:.1f}"]


def _reference_rows(opts: Sequence[str], size: tuple[int, int], _: int) -> dict[str, list[str]]:
    """Of the published networks, with KEY VALUE pairs on top."""
    rows = {}
    for name in PUBLISHED:
        options = ["MODEL.SALSEG.ASPP.DSC", str(name == "DSC-ASPP"), *opts]
        rows[name] = row_of(build_on_meta(open_config(_R101, options, architectures=("SalSeg",))), size)
    return rows


COUNTING = Counting(
    "SalSeg",
    size=(512, 1024),
    num_classes=0,
    columns=("model", "M parameters", "GMAC ({w}x{h})", "saliency branch: M", "GMAC"),
    count=lambda name, cfg, size, _: {name: row_of(build_on_meta(cfg), size)},
    reference=_reference_rows,
    published=PUBLISHED,
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
