# SPDX-License-Identifier: Apache-2.0
"""A network in torch against its exported graph in onnxruntime: CPU time of one image, and how far results differ.

Run ``python -m benchmarks.exported_graphs [--config-file FILE] [--size 256]`` with ``pip install '.[export]'``; the
weights are untrained, both run in one thread.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import add_numbers, time_in_turn
from padding.engine.commands import add_config_arguments, command_parser, open_config, parse
from padding.errors import run_command

CONFIGS = ("configs/shapes_zsp_pretrain.yaml", "configs/shapes_tcc.yaml", "configs/shapes_salseg.yaml")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every configuration in turns; the last line is the result as JSON."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False, help_text=f"default: {', '.join(CONFIGS)}")
    add_numbers(parser, size=256, repeats=5)
    args = parse(parser, argv)
    files = [args.config_file] if args.config_file else CONFIGS
    rows = {Path(file).stem: measure(file, args.opts, args.size, args.repeats) for file in files}
    result = {"benchmark": "exported_graphs", "size": args.size, "rows": rows}
    print(json.dumps(result))
    return result


def measure(config_file: str, opts: Sequence[str], size: int, repeats: int) -> dict[str, Any]:
    """Median CPU seconds of one image in both, their ratio, and the largest difference of each output."""
    import onnxruntime

    from padding.engine.export import difference, export_graph
    from padding.engine.graphs import graph_of
    from padding.engine.trainer import TRAINER_REGISTRY

    cfg = open_config(config_file, [*opts, "MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    graph = graph_of(TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg), post_processing=False)
    images = torch.randint(0, 256, (1, len(cfg.MODEL.PIXEL_MEAN), size, size)).float()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_graph(graph, path, form="onnx", size=(size, size), channels=images.shape[1])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def in_torch() -> list[torch.Tensor]:
        with torch.no_grad():
            return list(graph(images))

    def in_onnxruntime() -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]

    forms = {"torch": in_torch, "onnxruntime": in_onnxruntime}
    seconds, results = time_in_turn(forms, repeats)
    pairs = zip(graph.outputs, results["onnxruntime"], results["torch"], strict=True)
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratio": round(seconds["onnxruntime"] / seconds["torch"], 3),
        "differences": {name: difference(found, wanted) for name, found, wanted in pairs},
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
