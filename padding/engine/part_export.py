# SPDX-License-Identifier: Apache-2.0
"""Write a part of a trained model, such as one of two networks, as a model of its own: weights and configuration."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from padding.data.files import write_text
from padding.engine.checkpointer import write_checkpoint
from padding.engine.commands import add_config_arguments, open_config, parse
from padding.engine.complexity import build_on_meta
from padding.errors import CheckpointError, ConfigError
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.report import describe_differences


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        what: it is, for messages.
        command: that writes it.
        architecture: MODEL.META_ARCHITECTURE of the whole.
        mark: how the names of some of its weights begin.
        weights: those of the whole -> those of the part.
        settings: configuration of the whole -> keys and values of the part alone.
    """

    what: str
    command: str
    architecture: str
    mark: str
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    settings: Callable[[CfgNode], Mapping[str, Any]]

    def state(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the part, under the names that it has alone.

        Raises:
            CheckpointError: the checkpoint does not have it.
        """
        found = self.weights(whole)
        if not any(name.startswith(self.mark) for name in found):
            parts = ", ".join(sorted({name.split(".")[0] for name in whole}))
            raise CheckpointError(
                f"no parameter '{self.mark}*': the checkpoint holds {parts}; is it {self.architecture}'s?"
            )
        return found

    def cfg(self, whole: CfgNode, weights: Path) -> CfgNode:
        """Frozen configuration of the part, which loads ``weights`` wherever it runs.

        Results of an evaluation go into a folder of the same name; expected ones are forgotten.
        """
        own = whole.clone()
        own.defrost()
        own.TEST.EXPECTED_RESULTS = []
        own.MODEL.WEIGHTS = str(weights)
        own.MODEL.DEVICE = "cuda"  # where there is none, load_cfg takes the CPU
        own.OUTPUT_DIR = str(weights.with_suffix(""))
        own.merge_from_list(list(chain.from_iterable(self.settings(whole).items())))
        own.freeze()
        return own


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
        ConfigError: the output is no .pth file or the checkpoint itself, or the part was not trained.
        CheckpointError: if the checkpoint does not hold exactly what ``cfg`` describes.
        MissingFileError: if there is no checkpoint.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise ConfigError(f"{output}: weights are written to a .pth file; change the ending")
    if output.resolve() == Path(weights).resolve():
        raise ConfigError(f"{output} is the checkpoint to be read; choose another name")
    own = part.cfg(cfg, output)
    state = part.state(read_checkpoint(weights))
    on_cpu = own.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    differences = describe_differences(state, build_model(on_cpu).state_dict())
    if differences:
        raise CheckpointError(
            f"{weights} does not hold the {part.what} that the configuration describes: parameters {differences}; "
            "use the configuration of its training (config.yaml beside it)"
        )
    write_checkpoint(output, {"model": state})
    target = output.with_suffix(".yaml")
    write_text(target, f"# The {part.what} of {weights}; written by python -m {part.command}.\n" + own.dump())
    return target


def export_command(
    arguments: Sequence[str] | None, parser: argparse.ArgumentParser, part_of: Callable[[argparse.Namespace], Part]
) -> Path:
    """Run the command line of a method's export; ``part_of`` makes its arguments a part. Returns the configuration."""
    add_config_arguments(parser, help_text="configuration of the training", weights="its checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="weight file to write, *.pth")
    args = parse(parser, arguments)
    part = part_of(args)
    cfg = open_config(args.config_file, args.opts, architectures=(part.architecture,))
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
