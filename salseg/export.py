# SPDX-License-Identifier: Apache-2.0
r"""Write the segmentation of a trained SalSeg alone: what the saliency branch was for is in the encoder by now.

Example:
  python -m salseg.export --config-file configs/shapes_salseg.yaml --weights output/shapes_salseg/model_final.pth \
      --output segmentation.pth

This writes ``segmentation.pth``, the weights without the branch, the weights of the tasks and the training's state, and
``segmentation.yaml``, with which ``train_net.py --eval-only`` and ``demo.py`` run it. Class scores are those of the
whole model, bit for bit.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import padding  # noqa: F401  (first: it applies the fixes that Detectron2 needs)

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.engine.part_export import check_export, standalone_cfg, write_export
from padding.engine.setup import load_cfg
from padding.modeling.checkpoint import CheckpointError, read_checkpoint
from salseg.config import add_salseg_config
from salseg.task_weighting import tasks_of

__all__ = ["export_segmentation", "num_parameters", "segmentation_cfg", "segmentation_state"]

# Children of the model that segmentation does without; "statistics" are the saliency passes' own.
_LEFT_OUT = ("branch.", "weighting.", "statistics.")


def segmentation_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that segmentation needs, under their names.

    Args:
        state: names to tensors of a SalSeg checkpoint.

    Raises:
        CheckpointError: there is no segmentation in it.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(_LEFT_OUT)}
    if not any(name.startswith("decoder.") for name in kept):
        parts = sorted({name.split(".")[0] for name in state})
        raise CheckpointError(f"no parameter 'decoder.*': the checkpoint holds {', '.join(parts)}; is it SalSeg's?")
    return kept


def segmentation_cfg(cfg: CfgNode, weights: Path) -> CfgNode:
    """Configuration of the segmentation alone.

    Args:
        cfg: the whole model's; its data sets are registered, those for saliency are left out.
        weights: file with the segmentation's weights.

    Returns:
        A frozen copy.

    Raises:
        ValueError: the segmentation was not trained.
    """
    node = cfg.MODEL.SALSEG
    if "seg" not in tasks_of(node.WEIGHTING):
        raise ValueError(
            f"MODEL.SALSEG.WEIGHTING is '{node.WEIGHTING}': segmentation was not trained; take the training that "
            "started from this one"
        )
    exported = standalone_cfg(cfg, weights)
    exported.MODEL.SALSEG.SALIENCY.ENABLED = False
    exported.MODEL.SALSEG.SALIENCY.SHARE_DECODER = False
    exported.MODEL.SALSEG.WEIGHTING = "seg_only"
    exported.MODEL.SALSEG.TEST.SALIENCY = False
    exported.DATASETS.TRAIN_SALIENCY = ()
    exported.DATASETS.TEST = tuple(
        name for name in cfg.DATASETS.TEST if MetadataCatalog.get(name).get("evaluator_type") != "saliency"
    )
    exported.TEST.BEST_METRIC = ""  # may name a set that is gone
    exported.freeze()
    return exported


def export_segmentation(cfg: CfgNode, weights: str | Path, output: str | Path) -> Path:
    """Write the segmentation's weights and configuration.

    Args:
        cfg: the whole model's configuration; its data sets are registered.
        weights: its checkpoint.
        output: weight file to write, ``*.pth``; the configuration lies beside it as ``*.yaml``.

    Returns:
        The configuration file.

    Raises:
        ValueError: for another kind of file, or a model whose segmentation was not trained.
        CheckpointError: if the checkpoint does not hold exactly what ``cfg`` describes.
        FileNotFoundError: if there is no checkpoint.
    """
    check_export(weights, output)
    exported = segmentation_cfg(cfg, Path(output))
    state = segmentation_state(read_checkpoint(weights))
    header = f"The segmentation of {weights}; written by python -m salseg.export."
    return write_export(exported, state, output, source=weights, what="segmentation", header=header)


def num_parameters(cfg: CfgNode) -> int:
    """Parameters of the model that a configuration describes, without building it."""
    shapes_only = cfg.clone()
    shapes_only.defrost()
    shapes_only.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(shapes_only).parameters())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration of the training")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="weight file to write, *.pth")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; the last option")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    args = parse_arguments(arguments)
    cfg = load_cfg(args.config_file, args.opts, (add_salseg_config,), drop_unknown=True)
    register_all()
    register_own_data(cfg)
    target = export_segmentation(cfg, args.weights, args.output)
    whole, part = num_parameters(cfg), num_parameters(segmentation_cfg(cfg, Path(args.output)))
    print(  # noqa: T201  (the command's result)
        f"{part:,} of {whole:,} parameters ({100 * part / whole:.1f} %) in {args.output}, configuration in {target}; "
        "run them with demo.py or train_net.py --eval-only"
    )
    return target


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
