# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of the students: ``python -m tcc.complexity``.

One operation is an addition or a multiplication, so a GFLOP here is half a GMAC. Convolutions, matrix products and
attention count, fused or not; norms, activations and resizing do not. Nothing is computed, so that it takes seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from padding.engine.commands import load_config
from padding.engine.complexity import Counting, count_command, markdown, millions, operations
from padding.errors import run_command
from tcc.students import Student, build_student

__all__ = ["COUNTING", "Complexity", "complexity_table", "reference_table", "student_complexity"]

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


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a student.

    Attributes:
        backbone_millions: parameters of the backbone.
        head_millions: parameters of the head.
        gflops: operations of one image in evaluation, in 10^9.
    """

    backbone_millions: float
    head_millions: float
    gflops: float


def student_complexity(student: Student, size: tuple[int, int]) -> Complexity:
    """Count.

    Args:
        student: on any device; on "meta" nothing is computed.
        size: (H, W) of the image, multiples of 32.
    """
    image = torch.empty(1, 3, *size, device=next(student.parameters()).device)
    gflops = operations(student, lambda: student(image)) / 1e9
    return Complexity(millions(student.backbone), millions(student.head), gflops)


def complexity_table(cfg: CfgNode, size: tuple[int, int], num_classes: int) -> str:
    """Markdown table of the two students of a configuration."""
    rows = []
    for name in ("CNN", "VIT"):
        node = cfg.MODEL.TCC[name]
        rows.append([f"{node.BACKBONE} OS{node.OUTPUT_STRIDE}", *_row(_count(cfg, name, size, num_classes))])
    return _markdown(rows, size, num_classes)


def reference_table() -> str:
    """Markdown table of every published student, with the numbers it is held against in brackets."""
    rows = []
    for (backbone, stride), expected in REFERENCE.items():
        options = ["MODEL.TCC.VIT.BACKBONE", backbone, "MODEL.TCC.VIT.OUTPUT_STRIDE", str(stride)]
        cfg = load_config("", options)
        measured = _row(_count(cfg, "VIT", (512, 512), 21))
        cells = [f"{value} ({other})" for value, other in zip(measured, expected, strict=True)]
        rows.append([f"{backbone} OS{stride}", *cells])
    return _markdown(rows, (512, 512), 21)


COUNTING = Counting(
    "TCC",
    size=(512, 512),
    num_classes=21,
    table=lambda _, cfg, size, num_classes: complexity_table(cfg, size, num_classes),
    reference=lambda opts, *size: complexity_table(load_config("", opts), *size) if opts else reference_table(),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a configuration's two students, or of all published students."""
    count_command(arguments, __doc__, COUNTING)


def _count(cfg: CfgNode, name: str, size: tuple[int, int], num_classes: int) -> Complexity:
    with torch.device("meta"):
        return student_complexity(build_student(cfg, name, num_classes), size)


def _row(complexity: Complexity) -> list[str]:
    total = complexity.backbone_millions + complexity.head_millions
    numbers = (complexity.backbone_millions, complexity.head_millions, total, complexity.gflops)
    return [f"{number:.2f}" if number < 10 else f"{number:.1f}" for number in numbers]


def _markdown(rows: Sequence[Sequence[str]], size: tuple[int, int], num_classes: int) -> str:
    cost = f"GFLOP ({size[0]}x{size[1]}, {num_classes} classes)"
    return markdown(rows, ["student", "backbone M", "head M", "total M", cost])


if __name__ == "__main__":
    sys.exit(run_command(main))
