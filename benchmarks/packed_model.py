# SPDX-License-Identifier: Apache-2.0
"""A model as one file against its configuration and checkpoint: size, and CPU time until it is ready to predict.

Run ``python -m benchmarks.packed_model [--config-file configs/coco_zsi_48_17.yaml]``; the weights are untrained.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import add_numbers, time_in_turn
from padding.engine.commands import add_config_arguments, command_parser, load_config, open_config, parse
from padding.errors import run_command

CONFIG = "configs/coco_zsi_48_17.yaml"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure in turns; the last line is the result as JSON."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False, help_text=f"default: {CONFIG}")
    add_numbers(parser, repeats=5)
    args = parse(parser, argv)
    result = {"benchmark": "packed_model", **measure(args.config_file or CONFIG, args.opts, args.repeats)}
    print(json.dumps(result))
    return result


def measure(config_file: str, opts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Bytes of both, median CPU seconds from nothing to a model, their ratio."""
    from padding.engine.checkpointer import write_checkpoint
    from padding.engine.packing import open_packed, pack_model
    from padding.engine.predictor import Predictor
    from padding.engine.trainer import TRAINER_REGISTRY

    with tempfile.TemporaryDirectory() as folder:
        weights, packed = Path(folder) / "model.pth", Path(folder) / "model.safetensors"
        words = [*opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights)]
        cfg = open_config(config_file, words)
        model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
        write_checkpoint(weights, {"model": model.state_dict()})
        pack_model(cfg, model, packed)
        forms = {
            "configuration and checkpoint": lambda: Predictor(load_config(config_file, words)),
            "one file": lambda: Predictor(open_packed(packed, ["MODEL.DEVICE", "cpu"])),
        }
        seconds, _ = time_in_turn(forms, repeats)
        return {
            "megabytes": {
                "checkpoint": round(weights.stat().st_size / 1e6, 1),
                "one file": round(packed.stat().st_size / 1e6, 1),
            },
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "ratio": round(seconds["one file"] / seconds["configuration and checkpoint"], 3),
        }


if __name__ == "__main__":
    sys.exit(run_command(main))
