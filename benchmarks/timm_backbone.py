# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as timm has it against the preset of configs/_base_/lite0.yaml: one training step of the backbone.

The preset keeps stem and first stages, holds the batch norms and computes in channels-last order. Also printed: each
of the three by itself, and the difference of the maps of both memory orders.

Example:
  python -m benchmarks.timm_backbone --batch 4 --height 128 --width 160
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import add_numbers, relative_difference, time_in_turn
from padding.errors import run_command
from padding.modeling.timm_backbone import TimmBackbone

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "frozen_norms": {"norm": "FrozenBN"},
    "freeze_at_2": {"freeze_at": 2},
    "preset": {"channels_last": True, "norm": "FrozenBN", "freeze_at": 2},
}


def step_of(backbone: TimmBackbone, images: Tensor) -> Callable[[], None]:
    """Forward and backward of all maps."""

    def step() -> None:
        torch.stack([features.mean() for features in backbone(images).values()]).sum().backward()
        backbone.zero_grad(set_to_none=True)

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tf_efficientnet_lite0", help="of timm (default %(default)s)")
    add_numbers(parser, batch=4, height=128, width=160, repeats=7)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = torch.randn(args.batch, 3, args.height, args.width)
    built = {name: TimmBackbone(args.network, **options).train() for name, options in FORMS.items()}
    seconds, _ = time_in_turn({name: step_of(backbone, images) for name, backbone in built.items()}, args.repeats)
    built["channels_last"].load_state_dict(built["plain"].state_dict())
    with torch.no_grad():
        maps = [list(built[name].eval()(images).values()) for name in ("channels_last", "plain")]
    result = {
        "network": args.network,
        "size": [args.batch, args.height, args.width],
        "cpu_ms": {name: round(1000 * value) for name, value in seconds.items()},
        "ratio": {name: round(seconds["plain"] / value, 2) for name, value in seconds.items()},
        "relative_difference": relative_difference(*maps),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
