# SPDX-License-Identifier: Apache-2.0
"""Write a part of a trained model, such as one of two networks, as a model of its own: weights and configuration.

Or as a graph that runs without this project, see ``padding.engine.export``: the ending of the file decides.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from padding.data.class_split import class_split_of
from padding.data.files import write_text
from padding.engine.checkpointer import write_checkpoint
from padding.engine.commands import add_config_arguments, open_config, parse
from padding.engine.complexity import build_on_meta
from padding.engine.export import ENDINGS, export_graph
from padding.engine.graphs import graph_of
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
        endings = " and ".join(ENDINGS.values())
        raise ConfigError(f"{output}: weights are written to a .pth file, graphs to {endings}; change the ending")
    if output.resolve() == Path(weights).resolve():
        raise ConfigError(f"{output} is the checkpoint to be read; choose another name")
    own = part.cfg(cfg, output)
    state = part_model(own, weights, part).state_dict()
    write_checkpoint(output, {"model": state})
    target = output.with_suffix(".yaml")
    write_text(target, f"# The {part.what} of {weights}; written by python -m {part.command}.\n" + own.dump())
    return target


def part_model(own: CfgNode, weights: str | Path, part: Part) -> nn.Module:
    """The part alone, on the CPU, with its weights.

    Args:
        own: its configuration, of ``Part.cfg``.
        weights: checkpoint of the whole.
        part: which.

    Raises:
        CheckpointError: if the checkpoint does not hold exactly what ``own`` describes.
        MissingFileError: if there is no checkpoint.
    """
    state = part.state(read_checkpoint(weights))
    on_cpu = own.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    model = build_model(on_cpu)
    if differences := describe_differences(state, model.state_dict()):
        raise CheckpointError(
            f"{weights} does not hold the {part.what} that the configuration describes: parameters {differences}; "
            "use the configuration of its training (config.yaml beside it)"
        )
    model.load_state_dict(state)
    return model.eval()


def export_part_graph(cfg: CfgNode, weights: str | Path, output: str | Path, part: Part) -> Path:
    """Write the part as a graph for any batch and size, class logits in ``*.onnx`` or ``*.pt2``; see ``export_part``.

    Returns:
        The description beside it, a JSON.
    """
    model = part_model(part.cfg(cfg, Path(output)), weights, part)
    form = next(form for form, ending in ENDINGS.items() if ending == Path(output).suffix)
    names = class_split_of((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0]).names
    export_graph(
        graph_of(model, post_processing=False),
        output,
        form=form,
        channels=len(cfg.MODEL.PIXEL_MEAN),
        pixels=cfg.INPUT.FORMAT,
        classes=names,
    )
    return Path(output).with_suffix(".json")


def export_command(
    arguments: Sequence[str] | None, parser: argparse.ArgumentParser, part_of: Callable[[argparse.Namespace], Part]
) -> Path:
    """Run the command line of a method's export; ``part_of`` makes its arguments a part. Returns the configuration."""
    add_config_arguments(parser, help_text="configuration of the training", weights="its checkpoint")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="to write: weights *.pth, or a graph *.onnx, *.pt2"
    )
    args = parse(parser, arguments)
    part = part_of(args)
    cfg = open_config(args.config_file, args.opts, architectures=(part.architecture,))
    is_graph = Path(args.output).suffix in ENDINGS.values()
    target = (export_part_graph if is_graph else export_part)(cfg, args.weights, args.output, part)
    if is_graph:
        print(f"class logits of the {part.what} in {args.output}, described in {target}")  # noqa: T201
        return target
    whole, own = num_parameters(cfg), num_parameters(part.cfg(cfg, Path(args.output)))
    print(  # noqa: T201  (the command's result)
        f"{own:,} of {whole:,} parameters ({100 * own / whole:.1f} %) in {args.output}, configuration in {target}; "
        "run them with demo.py or train_net.py --eval-only"
    )
    return target


def num_parameters(cfg: CfgNode) -> int:
    """Parameters of the model that a configuration describes, without building it."""
    return sum(parameter.numel() for parameter in build_on_meta(cfg).parameters())
