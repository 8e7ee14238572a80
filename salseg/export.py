# SPDX-License-Identifier: Apache-2.0
r"""Write the segmentation of a trained SalSeg alone: what the saliency branch was for is in the encoder by now.

Example:
  python -m salseg.export --config-file configs/shapes_salseg.yaml --weights output/shapes_salseg/model_final.pth \
      --output segmentation.pth

This writes ``segmentation.pth``, the weights without the branch, the weights of the tasks and the training's state, and
``segmentation.yaml``, with which ``train_net.py --eval-only`` and ``demo.py`` run it. Class scores are those of the
whole model, bit for bit.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from padding.engine.commands import command_parser
from padding.engine.part_export import Part, export_command, standalone_cfg
from padding.errors import CheckpointError, ConfigError, run_command
from salseg.task_weighting import tasks_of

__all__ = ["PART", "segmentation_cfg", "segmentation_state"]

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
        ConfigError: the segmentation was not trained.
    """
    node = cfg.MODEL.SALSEG
    if "seg" not in tasks_of(node.WEIGHTING):
        raise ConfigError(
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


PART = Part("segmentation", "salseg.export", segmentation_state, segmentation_cfg)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    return export_command(arguments, command_parser(__doc__), lambda _: PART, architecture="SalSeg")


if __name__ == "__main__":
    sys.exit(run_command(main))
