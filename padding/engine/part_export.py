# SPDX-License-Identifier: Apache-2.0
"""Write a part of a trained model, such as one of two networks, as a model of its own: weights and configuration."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from padding.data.files import write_text
from padding.engine.checkpointer import write_checkpoint
from padding.modeling.checkpoint import CheckpointError

__all__ = ["check_export", "standalone_cfg", "write_export"]


def check_export(weights: str | Path, output: str | Path) -> None:
    """Check the names of files before anything is read.

    Args:
        weights: checkpoint of the whole model.
        output: weight file to write.

    Raises:
        ValueError: the output is no .pth file, or the checkpoint itself.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise ValueError(f"{output}: weights are written to a .pth file; change the ending")
    if output.resolve() == Path(weights).resolve():
        raise ValueError(f"{output} is the checkpoint to be read; choose another name")


def standalone_cfg(cfg: CfgNode, weights: str | Path) -> CfgNode:
    """A copy of a configuration that loads ``weights`` wherever it runs, and is not frozen.

    Results of an evaluation go into a folder of the same name; expected ones are forgotten.
    """
    exported = cfg.clone()
    exported.defrost()
    exported.TEST.EXPECTED_RESULTS = []
    exported.MODEL.WEIGHTS = str(weights)
    exported.MODEL.DEVICE = "cuda"  # where there is none, load_cfg takes the CPU
    exported.OUTPUT_DIR = str(Path(weights).with_suffix(""))
    return exported


def write_export(
    cfg: CfgNode, state: Mapping[str, Tensor], output: str | Path, *, source: str | Path, what: str, header: str
) -> Path:
    """Write weights, and beside them the configuration as ``*.yaml``.

    Args:
        cfg: of the part.
        state: its weights.
        output: weight file.
        source: where they come from, for the message.
        what: the part is, for the message.
        header: first line of the configuration.

    Returns:
        The configuration file.

    Raises:
        CheckpointError: if the weights are not exactly those that ``cfg`` describes.
    """
    _check_complete(cfg, state, str(source), what)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(output, {"model": dict(state)})
    target = output.with_suffix(".yaml")
    write_text(target, f"# {header}\n" + cfg.dump())
    return target


def _check_complete(cfg: CfgNode, state: Mapping[str, Tensor], source: str, what: str) -> None:
    on_cpu = cfg.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    expected = build_model(on_cpu).state_dict()
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [n for n, value in state.items() if n in expected and expected[n].shape != value.shape],
    }
    listed = [f"{len(names)} {problem} (first: {names[0]})" for problem, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            f"{source} does not hold the {what} that the configuration describes: parameters {', '.join(listed)}; "
            "use the configuration of its training (config.yaml beside it)"
        )
