# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of the students: ``python -m tcc.complexity``.

One operation is an addition or a multiplication, so a GFLOP here is half a GMAC. Convolutions, matrix products and
attention count, fused or not; norms, activations and resizing do not. Nothing is computed, so that it takes seconds.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

from padding.engine.commands import load_config
from padding.engine.complexity import Counting, count_command, millions, operations
from padding.errors import run_command
from tcc.students import Student, build_student

# Backbone and output stride -> millions of parameters of backbone, head and both, GFLOP per image of 512x512 with 21
# classes: the numbers that the students were specified with, counted before they existed.
REFERENCE = {
    ("resnet50", 16): (23.5, 16.8, 40.4, 138),
    ("resnet50", 8): (23.5, 16.8, 40.4, 365),
    ("resnet101", 16): (42.5, 16.8, 59.3, 177),
    ("pvt_small", 32): (24.0, 5.4, 29.4, 91),
    ("pvt_medium", 32): (43.7, 5.4, 49.1, 124),
    ("convnext_small", 32): (49.5, 7.3, 56.8, 136),
    ("convnext_small", 16): (49.5, 7.3, 56.8, 169),
}


class Complexity(NamedTuple):
    """Size and cost of a student: parameters of backbone and head in 10^6, 10^9 operations for one image."""

    backbone_millions: float
    head_millions: float
    gflops: float


def student_complexity(student: Student, size: tuple[int, int]) -> Complexity:
    """Count, in evaluation.

    Args:
        student: on any device; on "meta" nothing is computed.
        size: (H, W) of the image, multiples of 32.
    """
    image = torch.empty(1, 3, *size, device=next(student.parameters()).device)
    gflops = operations(student, lambda: student(image)) / 1e9
    return Complexity(millions(student.backbone), millions(student.head), gflops)


def _rows(cfg: CfgNode, size: tuple[int, int], num_classes: int, *names: str) -> dict[str, list[str]]:
    rows = {}
    for name in names:
        with torch.device("meta"):
            backbone, head, gflops = student_complexity(build_student(cfg, name, num_classes), size)
        label = f"{cfg.MODEL.TCC[name].BACKBONE} OS{cfg.MODEL.TCC[name].OUTPUT_STRIDE}"
        numbers = (backbone, head, backbone + head, gflops)
        rows[label] = [f"{number:.2f}" if number < 10 else f"{number:.1f}" for number in numbers]
    return rows


def _reference_rows(opts: Sequence[str], size: tuple[int, int], num_classes: int) -> dict[str, list[str]]:
    """Of the students that KEY VALUE pairs describe; without them, of every published one."""
    if opts:
        return _rows(load_config("", opts), size, num_classes, "CNN", "VIT")
    rows: dict[str, list[str]] = {}
    for backbone, stride in REFERENCE:
        options = ["MODEL.TCC.VIT.BACKBONE", backbone, "MODEL.TCC.VIT.OUTPUT_STRIDE", str(stride)]
        rows |= _rows(load_config("", options), size, num_classes, "VIT")
    return rows


COUNTING = Counting(
    "TCC",
    size=(512, 512),
    num_classes=21,
    columns=("student", "backbone M", "head M", "total M", "GFLOP ({h}x{w}, {k} classes)"),
    count=lambda _, cfg, size, num_classes: _rows(cfg, size, num_classes, "CNN", "VIT"),
    reference=_reference_rows,
    published={f"{backbone} OS{stride}": numbers for (backbone, stride), numbers in REFERENCE.items()},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration's two students, or of all published students."""
    count_command(arguments, __doc__, COUNTING)


if __name__ == "__main__":
    sys.exit(run_command(main))
