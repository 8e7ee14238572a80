# SPDX-License-Identifier: Apache-2.0
"""Write one student of a trained cohort as a model of its own: at test time the other one is not needed.

Example:
  python -m tcc.export_student --config-file configs/voc_tcc_s.yaml --weights output/voc_tcc_s/model_final.pth \
      --student vit --output vit.pth

This writes ``vit.pth``, the weights without the other student and the training's state, and ``vit.yaml``, with which
``train_net.py --eval-only`` and ``demo.py`` run it. A cohort with moving averages (MODEL.TCC.EMA) is exported with the
average, which is what its evaluation uses.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import padding  # noqa: F401  (first: it applies the fixes that Detectron2 needs)

# isort: split
from detectron2.config import CfgNode
from torch import Tensor

from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.engine.part_export import check_export, standalone_cfg, write_export
from padding.engine.setup import load_cfg
from padding.modeling.checkpoint import CheckpointError, read_checkpoint
from tcc.config import add_tcc_config
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
    """Write one student's weights and configuration.

    Args:
        cfg: the cohort's configuration; its data sets are registered.
        weights: the cohort's checkpoint.
        student: "cnn" or "vit".
        output: weight file to write, ``*.pth``; the configuration lies beside it as ``*.yaml``.

    Returns:
        The configuration file.

    Raises:
        ValueError: for an unknown student or another kind of file.
        CheckpointError: if the checkpoint does not hold exactly the student that ``cfg`` describes.
        FileNotFoundError: if there is no checkpoint.
    """
    check_export(weights, output)
    state = student_state(read_checkpoint(weights), student)
    exported = student_cfg(cfg, student, Path(output))
    header = f"The {student} student of {weights}; written by python -m tcc.export_student."
    return write_export(exported, state, output, source=weights, what="student", header=header)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration of the cohort's training")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the cohort's checkpoint")
    parser.add_argument("--student", required=True, choices=STUDENTS)
    parser.add_argument("--output", required=True, metavar="FILE", help="weight file to write, *.pth")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; the last option")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    args = parse_arguments(arguments)
    cfg = load_cfg(args.config_file, args.opts, (add_tcc_config,), drop_unknown=True)
    register_all()
    register_own_data(cfg)
    target = export_student(cfg, args.weights, args.student, args.output)
    print(f"{args.output} and {target} written; run them with demo.py or train_net.py --eval-only")  # noqa: T201
    return target


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
