# SPDX-License-Identifier: Apache-2.0
"""SalSeg's segmentation against Detectron2's own DeepLabV3+ with the same ResNet-101 at output stride 16, on a CPU.

Both networks get the same random image and make class logits of stride 4, without the saliency branch. Time is CPU time
of one thread, the median of alternating runs; ratios are SalSeg over Detectron2, so below 1 SalSeg is cheaper.
Operations are multiply-adds of convolutions. Weights are random: time does not depend on them.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_backbone, build_model
from detectron2.projects.deeplab import add_deeplab_config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import time_in_turn
from padding.data.catalog import register_all
from padding.engine.commands import add_pairs_argument, command_parser, load_config, parse
from padding.errors import run_command
from salseg.meta_arch import SalSeg

CONFIG = "configs/cityscapes_salseg.yaml"
CLASSES = 19


class DeepLab(nn.Module):
    """Backbone and head of Detectron2's DeepLab project."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)
        head = SEM_SEG_HEADS_REGISTRY.get("DeepLabV3PlusHead")
        self.head: Any = head(cfg, self.backbone.output_shape())

    def forward(self, images: Tensor) -> Tensor:
        """Class logits of stride 4."""
        return self.head.layers(self.backbone(images))


class Segmentation(nn.Module):
    """SalSeg without saliency branch, as a function of images."""

    def __init__(self, model: SalSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Class logits of stride 4."""
        return self.model.logits(images)["sem_seg"]


def build_networks(size: tuple[int, int], opts: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Both networks in evaluation mode, "salseg" and "detectron2"."""
    register_all()
    norms = ["MODEL.RESNETS.NORM", "BN", "MODEL.SALSEG.NORM", "BN"]
    plain = ["MODEL.DEVICE", "cpu", "MODEL.SALSEG.WEIGHTING", "seg_only"]
    cfg = load_config(CONFIG, [*norms, *plain, *opts]).clone()
    model = build_model(cfg)
    assert isinstance(model, SalSeg)
    cfg.defrost()
    backbone = cfg.MODEL.RESNETS.clone()
    add_deeplab_config(cfg)
    cfg.MODEL.RESNETS = backbone  # its defaults are another stem and multi-grid
    head = cfg.MODEL.SEM_SEG_HEAD
    head.IN_FEATURES, head.PROJECT_FEATURES, head.NUM_CLASSES = ["res2", "res5"], ["res2"], CLASSES
    head.CONVS_DIM, head.COMMON_STRIDE, head.NORM, head.LOSS_TYPE = 256, 4, "BN", "cross_entropy"
    crop = cfg.INPUT.CROP
    crop.ENABLED, crop.TYPE, crop.SIZE = True, "absolute", list(size)  # its image pooling has a fixed window
    return {"salseg": Segmentation(model).eval(), "detectron2": DeepLab(cfg).eval()}


def gmacs(network: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Multiply-adds of one call, in 10^9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops() / 2e9


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = command_parser("SalSeg against Detectron2's DeepLabV3+ with the same backbone")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each network")
    add_pairs_argument(parser)
    args = parse(parser, argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = build_networks(tuple(args.size), args.opts)
    images = torch.randn(1, 3, *args.size)
    counts = {name: gmacs(network, images) for name, network in networks.items()}
    sizes = {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()}
    with torch.inference_mode():
        seconds, _ = time_in_turn({name: partial(network, images) for name, network in networks.items()}, args.repeats)
    result = {
        "size": list(args.size),
        "time_ratio": round(seconds["salseg"] / seconds["detectron2"], 3),
        "gmac_ratio": round(counts["salseg"] / counts["detectron2"], 3),
        "parameter_ratio": round(sizes["salseg"] / sizes["detectron2"], 3),
        "parameters": {name: round(value, 3) for name, value in sizes.items()},
        "gmacs": {name: round(value, 2) for name, value in counts.items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
