# SPDX-License-Identifier: Apache-2.0
"""Write one student of a trained cohort as a model of its own: at test time the other one is not needed.

Example:
  python -m tcc.export_student --config-file configs/voc_tcc_s.yaml --weights output/voc_tcc_s/model_final.pth \
      --student vit --output vit.pth

This writes ``vit.pth``, the weights without the other student and the training's state, and ``vit.yaml``, with which
``train_net.py --eval-only`` and ``demo.py`` run it. A cohort with moving averages (MODEL.TCC.EMA) is exported with the
average, which is what its evaluation uses. ``--output FILE.onnx`` or ``FILE.pt2`` writes a graph, as
``python -m padding.export`` does.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from padding.engine.commands import command_parser
from padding.engine.part_export import Part, export_command
from padding.errors import run_command
from tcc.meta_arch import STUDENTS


def part_of_student(student: str) -> Part:
    """One student of a cohort; where there is a moving average of it, that.

    Args:
        student: "cnn" or "vit".

    Raises:
        ValueError: for another name.
    """
    if student not in STUDENTS:
        raise ValueError(f"student {student!r} is unknown; a cohort has {' and '.join(STUDENTS)}")

    def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        average, own = f"averages.{student}.", f"{student}."
        prefix = average if any(name.startswith(average) for name in state) else own
        return {own + name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    settings = {
        **dict.fromkeys(("MODEL.TCC.STUDENTS", "MODEL.TCC.TEST.STUDENT"), student),
        **dict.fromkeys(("MODEL.TCC.CNN.WEIGHTS", "MODEL.TCC.VIT.WEIGHTS"), ""),  # what the cohort started from
        "MODEL.TCC.EMA.DECAY": 0.0,
        "TEST.SEM_SEG.PARTS": (),
    }
    command = "tcc.export_student"
    return Part(f"{student} student", command, "TCC", mark=f"{student}.", weights=weights, settings=lambda _: settings)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    parser = command_parser(__doc__)
    parser.add_argument("--student", required=True, choices=STUDENTS)
    return export_command(arguments, parser, lambda args: part_of_student(args.student))


if __name__ == "__main__":
    sys.exit(run_command(main))
