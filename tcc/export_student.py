# SPDX-License-Identifier: Apache-2.0
"""Write one student of a trained cohort as a model of its own: at test time the other one is not needed.

Example:
  python -m tcc.export_student --config-file configs/voc_tcc_s.yaml --weights output/voc_tcc_s/model_final.pth \
      --student vit --output vit.pth

This writes ``vit.pth``, the weights without the other student and the training's state, and ``vit.yaml``, with which
``train_net.py --eval-only`` and ``demo.py`` run it. A cohort with moving averages (MODEL.TCC.EMA) is exported with the
average, which is what its evaluation uses.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor

from padding.engine.commands import command_parser
from padding.engine.part_export import Part, export_command, export_part, standalone_cfg
from padding.errors import CheckpointError, run_command
from tcc.meta_arch import STUDENTS

__all__ = ["export_student", "student_cfg", "student_state"]


def student_state(state: Mapping[str, Tensor], student: str) -> dict[str, Tensor]:
    """The weights of one student out of a cohort's, under the names that a model of this student has.

    Args:
        state: names to tensors of a TCC checkpoint; with moving averages those are taken.
        student: "cnn" or "vit".

    Raises:
        ValueError: for another name.
        CheckpointError: if the student is not in the checkpoint.
    """
    if student not in STUDENTS:
        raise ValueError(f"student {student!r} is unknown; a cohort has {' and '.join(STUDENTS)}")
    average = f"averages.{student}."
    prefix = average if any(name.startswith(average) for name in state) else f"{student}."
    kept = {f"{student}.{name.removeprefix(prefix)}": value for name, value in state.items() if name.startswith(prefix)}
    if not kept:
        parts = sorted({name.split(".")[0] for name in state})
        raise CheckpointError(f"no parameter '{student}.*': the checkpoint holds {', '.join(parts)}; is it TCC's?")
    return kept


def student_cfg(cfg: CfgNode, student: str, weights: Path) -> CfgNode:
    """Configuration of a model that is one student of a cohort.

    Args:
        cfg: the cohort's.
        student: "cnn" or "vit".
        weights: file with the student's weights; results of an evaluation go into a folder of the same name.

    Returns:
        A frozen copy.
    """
    exported = standalone_cfg(cfg, weights)
    exported.MODEL.TCC.STUDENTS = student
    exported.MODEL.TCC.TEST.STUDENT = student
    exported.MODEL.TCC.EMA.DECAY = 0.0
    for node in (exported.MODEL.TCC.CNN, exported.MODEL.TCC.VIT):
        node.WEIGHTS = ""  # what the cohort started from
    exported.TEST.SEM_SEG.PARTS = ()
    exported.freeze()
    return exported


def export_student(cfg: CfgNode, weights: str | Path, student: str, output: str | Path) -> Path:
    """Write one student's weights and configuration; see ``export_part``.

    Args:
        cfg: the cohort's configuration.
        weights: the cohort's checkpoint.
        student: "cnn" or "vit".
        output: weight file to write, ``*.pth``.

    Returns:
        The configuration file.
    """
    return export_part(cfg, weights, output, _part(student))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    parser = command_parser(__doc__)
    parser.add_argument("--student", required=True, choices=STUDENTS)
    return export_command(arguments, parser, lambda args: _part(args.student), architecture="TCC")


def _part(student: str) -> Part:
    def cfg_of(cfg: CfgNode, weights: Path) -> CfgNode:
        return student_cfg(cfg, student, weights)

    return Part(f"{student} student", "tcc.export_student", partial(student_state, student=student), cfg_of)


if __name__ == "__main__":
    sys.exit(run_command(main))
