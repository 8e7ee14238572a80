# SPDX-License-Identifier: Apache-2.0
r"""Write the segmentation of a trained SalSeg alone: what the saliency branch was for is in the encoder by now.

Example:
  python -m salseg.export --config-file configs/shapes_salseg.yaml --weights output/shapes_salseg/model_final.pth \
      --output segmentation.pth

This writes ``segmentation.pth``, the weights without the branch, the weights of the tasks and the training's state, and
``segmentation.yaml``, with which ``train_net.py --eval-only`` and ``demo.py`` run it. Class scores are those of the
whole model, bit for bit. ``--output FILE.onnx`` or ``FILE.pt2`` writes a graph, as ``python -m padding.export`` does.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from padding.engine.commands import command_parser
from padding.engine.part_export import Part, export_command
from padding.errors import ConfigError, run_command
from salseg.task_weighting import tasks_of

# Children of the model that segmentation does without; "statistics" are the saliency passes' own.
_LEFT_OUT = ("branch.", "weighting.", "statistics.")


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """Of the segmentation alone; data sets for saliency are left out.

    Raises:
        ConfigError: the segmentation was not trained.
    """
    weighting = cfg.MODEL.SALSEG.WEIGHTING
    if "seg" not in tasks_of(weighting):
        raise ConfigError(
            f"MODEL.SALSEG.WEIGHTING is '{weighting}': segmentation was not trained; take the training that started "
            "from this one"
        )
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
    return {
        "MODEL.SALSEG.SALIENCY.ENABLED": False,
        "MODEL.SALSEG.SALIENCY.SHARE_DECODER": False,
        "MODEL.SALSEG.WEIGHTING": "seg_only",
        "MODEL.SALSEG.TEST.SALIENCY": False,
        "DATASETS.TRAIN_SALIENCY": (),
        "DATASETS.TEST": tuple(name for name, kind in kinds.items() if kind != "saliency"),
        "TEST.BEST_METRIC": "",  # may name a set that is gone
    }


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the segmentation; a learned temperature of its logits goes into its last layer."""
    kept = {name: value for name, value in state.items() if not name.startswith(_LEFT_OUT)}
    log_temperature = state.get("weighting.log_temperatures.seg")
    if log_temperature is not None:
        for name in ("decoder.predictor.weight", "decoder.predictor.bias"):
            kept[name] = kept[name] * torch.exp(-log_temperature.float())
    return kept


SEGMENTATION = Part(
    "segmentation",
    command="salseg.export",
    architecture="SalSeg",
    mark="decoder.",
    weights=_weights,
    settings=_settings,
)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Command line; returns the configuration file."""
    return export_command(arguments, command_parser(__doc__), lambda _: SEGMENTATION)


if __name__ == "__main__":
    sys.exit(run_command(main))
