# SPDX-License-Identifier: Apache-2.0
"""Write a part of a trained model, such as one of two networks, as a model of its own: weights and configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from padding.data.files import write_text
from padding.engine.checkpointer import write_checkpoint
from padding.engine.commands import add_config_arguments, open_config, parse
from padding.engine.complexity import build_on_meta
from padding.errors import CheckpointError, ConfigError
from padding.modeling.weights.checkpoint import read_checkpoint

__all__ = ["Part", "check_export", "export_command", "export_part", "num_parameters", "standalone_cfg", "write_export"]


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        what: it is, for messages.
        command: that writes it.
        state: weights of the whole -> those of the part.
        cfg: configuration of the whole, file with the part's weights -> configuration of the part.
    """

    what: str
    command: str
    state: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    cfg: Callable[[CfgNode, Path], CfgNode]


def export_part(cfg: CfgNode, weights: str | Path, output: str | Path, part: Part) -> Path:
    """Write the part's weights and configuration.

    Args:
        cfg: the whole model's configuration; its data sets are registered.
        weights: its checkpoint.
        output: weight file to write, ``*.pth``; the configuration lies beside it as ``*.yaml``.
        part: what to write.

    Returns:
        The configuration file.

    Raises:
        ConfigError: for another kind of file.
        CheckpointError: if the checkpoint does not hold exactly what ``cfg`` describes.
        MissingFileError: if there is no checkpoint.
    """
    check_export(weights, output)
    own = part.cfg(cfg, Path(output))
    state = part.state(read_checkpoint(weights))
    header = f"The {part.what} of {weights}; written by python -m {part.command}."
    return write_export(own, state, output, source=weights, what=part.what, header=header)


def export_command(
    arguments: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    part_of: Callable[[argparse.Namespace], Part],
    *,
    architecture: str,
) -> Path:
    """Run the command line of a method's export; ``part_of`` makes its arguments a part. Returns the configuration."""
    add_config_arguments(parser, help_text="configuration of the training", weights="its checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="weight file to write, *.pth")
    args = parse(parser, arguments)
    part = part_of(args)
    cfg = open_config(args.config_file, args.opts, architectures=(architecture,))
    target = export_part(cfg, args.weights, args.output, part)
    whole, own = num_parameters(cfg), num_parameters(part.cfg(cfg, Path(args.output)))
    print(  # noqa: T201  (the command's result)
        f"{own:,} of {whole:,} parameters ({100 * own / whole:.1f} %) in {args.output}, configuration in {target}; "
        "run them with demo.py or train_net.py --eval-only"
    )
    return target


def num_parameters(cfg: CfgNode) -> int:
    """Parameters of the model that a configuration describes, without building it."""
    return sum(parameter.numel() for parameter in build_on_meta(cfg).parameters())


def check_export(weights: str | Path, output: str | Path) -> None:
    """Check the names of files before anything is read.

    Args:
        weights: checkpoint of the whole model.
        output: weight file to write.

    Raises:
        ConfigError: the output is no .pth file, or the checkpoint itself.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise ConfigError(f"{output}: weights are written to a .pth file; change the ending")
    if output.resolve() == Path(weights).resolve():
        raise ConfigError(f"{output} is the checkpoint to be read; choose another name")


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
