# SPDX-License-Identifier: Apache-2.0
"""Mask2Former with ResNet-50, ours against that of Hugging Face's ``transformers``, with the same weights on a CPU.

Theirs is built from its configuration with random weights, which the importer of published files brings over; its
batch norms are frozen, as ours are. ``forward_ratio`` is the CPU time of predicting queries and their masks, without
pre- and post-processing, ``train_ratio`` that of losses and gradients of one image, ``memory_ratio`` what such a step
adds to the memory of a process that does nothing else, each ours over theirs. ``max_difference`` is the largest of
class and mask logits, relative to the largest logit.

    pip install '.[huggingface]'
    python -m benchmarks.segmentor [--sizes 512x512 800x1333] [--objects 8] [--no-memory] [KEY VALUE ...]
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import add_numbers, relative_difference, time_in_turn
from padding.engine.commands import add_pairs_argument, command_parser, load_config, parse, register_data
from padding.errors import UserError, run_command
from padding.modeling.maskformer import MaskFormer
from padding.modeling.weights.segmentors import import_huggingface

CONFIG = "configs/coco_zsp_pretrain.yaml"
SIZES = ("512x512", "800x1333")
_DIVISOR = 32
# Blocks of each stage of Detectron2's ResNets, by their depth.
_BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
Target = dict[str, Tensor]


def their_network(cfg: CfgNode, num_classes: int) -> nn.Module:
    """``Mask2FormerForUniversalSegmentation`` of the same sizes, with random weights; its norms have no gradient.

    Raises:
        UserError: ``transformers`` is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("transformers is not installed; install it once by pip install '.[huggingface]'")
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    resnet, head, former = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    backbone = ResNetConfig(
        embedding_size=resnet.STEM_OUT_CHANNELS,
        hidden_sizes=[resnet.RES2_OUT_CHANNELS * 2**stage for stage in range(4)],
        depths=_BLOCKS[resnet.DEPTH],
        layer_type="bottleneck" if resnet.DEPTH >= 50 else "basic",
        out_features=[f"stage{stage}" for stage in range(1, 5)],
    )
    network = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=num_classes,
            feature_size=head.CONVS_DIM,
            mask_feature_size=head.MASK_DIM,
            encoder_layers=head.TRANSFORMER_ENC_LAYERS,
            encoder_feedforward_dim=head.TRANSFORMER_ENC_DIM_FEEDFORWARD,
            hidden_dim=former.HIDDEN_DIM,
            num_queries=former.NUM_OBJECT_QUERIES,
            num_attention_heads=former.NHEADS,
            dim_feedforward=former.DIM_FEEDFORWARD,
            decoder_layers=former.DEC_LAYERS,
            train_num_points=former.TRAIN_NUM_POINTS,
        )
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(requires_grad=False)
    return network


def our_network(opts: Sequence[str]) -> tuple[MaskFormer, CfgNode]:
    """The network of ``CONFIG`` and its configuration."""
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    register_data(cfg)
    model = build_model(cfg)
    assert isinstance(model, MaskFormer)
    return model, cfg


def draw(size: tuple[int, int], objects: int, num_classes: int) -> tuple[Tensor, Target]:
    """A normalised image (1, 3, H, W) as it is after the padding, and smooth masks (N, H, W) with classes."""
    height, width = (-(-side // _DIVISOR) * _DIVISOR for side in size)
    masks = F.interpolate(torch.randn(1, objects, 8, 8), size=(height, width), mode="bilinear")[0] > 0
    return torch.randn(1, 3, height, width), {"labels": torch.randint(0, num_classes, (objects,)), "masks": masks}


@torch.no_grad()
def our_forward(model: MaskFormer, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits (1, Q, K+1) and mask logits (1, Q, H/4, W/4)."""
    outputs = model.eval().sem_seg_head(model.backbone(image), with_aux=False)
    return outputs["pred_logits"], outputs["pred_masks"]


@torch.no_grad()
def their_forward(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """The same of theirs."""
    outputs = network.eval()(pixel_values=image)
    return outputs.class_queries_logits, outputs.masks_queries_logits


def our_step(model: MaskFormer, image: Tensor, target: Target) -> None:
    """Losses of all predictions and their gradients."""
    outputs = model.train().sem_seg_head(model.backbone(image), with_aux=True, as_products=True)
    sum(model.criterion(outputs, [target]).values()).backward()
    model.zero_grad()


def their_step(network: nn.Module, image: Tensor, target: Target) -> None:
    """The same of theirs."""
    masks, labels = [target["masks"].float()], [target["labels"]]
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    network(pixel_values=image, mask_labels=masks, class_labels=labels).loss.backward()
    network.zero_grad()


def step_memory(side: str, size: tuple[int, int], objects: int, opts: Sequence[str]) -> float:
    """MiB that one training step adds to this process at most, which shall be a fresh one; ``side``: ours, theirs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network: Any
    network, cfg = our_network(opts)
    num_classes = network.criterion.num_classes
    if side == "theirs":
        network = their_network(cfg, num_classes)
    image, target = draw(size, objects, num_classes)
    before = _resident("VmRSS")
    (our_step if side == "ours" else their_step)(network, image, target)
    return max(_resident("VmHWM") - before, 1 / 1024)


def _resident(field: str) -> float:
    """MiB of this process, ``VmRSS`` now or ``VmHWM`` at most; not by getrusage, which knows the parent's too."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(size: tuple[int, int], objects: int, repeats: int, opts: Sequence[str], *, memory: bool) -> dict[str, Any]:
    """Ratios of one size; memory first, each network in a process of its own."""
    result: dict[str, Any] = {}
    if memory:
        megabytes = {}
        for side in ("ours", "theirs"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                megabytes[side] = pool.submit(step_memory, side, size, objects, list(opts)).result()
        result["memory_ratio"] = round(megabytes["ours"] / megabytes["theirs"], 3)
        result["memory_mb"] = {side: round(value, 1) for side, value in megabytes.items()}
    torch.manual_seed(0)
    model, cfg = our_network(opts)
    network = their_network(cfg, model.criterion.num_classes)
    model.load_state_dict(import_huggingface(network.state_dict()).state)
    image, target = draw(size, objects, model.criterion.num_classes)
    forward: dict[str, Callable[[], Any]] = {
        "ours": partial(our_forward, model, image),
        "theirs": partial(their_forward, network, image),
    }
    step: dict[str, Callable[[], Any]] = {
        "ours": partial(our_step, model, image, target),
        "theirs": partial(their_step, network, image, target),
    }
    seconds, outputs = time_in_turn(forward, repeats)
    step_seconds, _ = time_in_turn(step, repeats)
    return {
        "forward_ratio": round(seconds["ours"] / seconds["theirs"], 3),
        "train_ratio": round(step_seconds["ours"] / step_seconds["theirs"], 3),
        **result,
        "max_difference": relative_difference(outputs["ours"], outputs["theirs"]),
        "forward_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "train_seconds": {name: round(value, 3) for name, value in step_seconds.items()},
    }


def _size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH."""
    height, width = text.split("x")
    return int(height), int(width)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each size; the last line printed is the result as JSON."""
    parser = command_parser(__doc__)
    sizes = [_size(text) for text in SIZES]
    parser.add_argument("--sizes", type=_size, nargs="+", default=sizes, metavar="HxW", help=f"default: {SIZES}")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    add_numbers(parser, objects=8, repeats=3)
    add_pairs_argument(parser)
    args = parse(parser, arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "segmentor"}
    for height, width in args.sizes:
        name = f"{height}x{width}"
        result[name] = measure((height, width), args.objects, args.repeats, args.opts, memory=not args.no_memory)
        print(name, json.dumps(result[name]), flush=True)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    sys.exit(run_command(main))
