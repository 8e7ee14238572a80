# SPDX-License-Identifier: Apache-2.0
"""What checksums cost: saving and resuming a training, opening a feature bank, reading labels, with and without them.

Without them is what stood there before: a bare ``torch.save`` and ``torch.load``, a shard mapped and its rows read, a
PNG opened by Pillow. Run ``python -m benchmarks.checksums``; a ratio of 1.1: a tenth more time.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from tabulate import tabulate

from benchmarks import add_numbers, time_in_turn
from padding.bank.shard import Shard, write_shard
from padding.data.files import replacing, save_png
from padding.data.readers import read_label_map
from padding.engine.checkpointer import read_training_checkpoint, write_checkpoint
from padding.errors import run_command

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each pair in turns and print the table; the last line is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_numbers(parser, megabytes=250, images=4096, repeats=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        pairs = {
            **checkpoint_pairs(Path(folder), args.megabytes),
            **bank_pairs(Path(folder), args.images),
            **label_pairs(Path(folder)),
        }
        rows = {}
        for name, (without, with_) in pairs.items():
            seconds, _ = time_in_turn({"without": without, "with": with_}, args.repeats)
            rows[name] = (seconds["without"], seconds["with"])
    table = [[name, f"{1000 * a:.1f}", f"{1000 * b:.1f}", f"{b / a:.2f}"] for name, (a, b) in rows.items()]
    print(
        tabulate(
            table, headers=["", "without, CPU ms", "with, CPU ms", "ratio"], tablefmt="github", disable_numparse=True
        )
    )
    ratios = {name: round(b / a, 3) for name, (a, b) in rows.items()}
    result = {"benchmark": "checksums", "megabytes": args.megabytes, "images": args.images, "ratios": ratios}
    print(json.dumps(result))
    return result


@contextmanager
def without_crc32() -> Iterator[None]:
    """Have ``torch.save`` compute no CRC32; torch before 2.6 always computes them."""
    if not hasattr(torch.serialization, "get_crc32_options"):
        yield
        return
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def checkpoint_pairs(folder: Path, megabytes: int) -> dict[str, Pair]:
    """A third of the file the network, the rest its optimiser, in tensors of some megabytes."""
    count = max(megabytes // 3, 1)
    model = {f"layer{i}.weight": torch.randn(512, 512) for i in range(count)}
    state = {i: {"exp_avg": torch.randn(512, 512), "exp_avg_sq": torch.randn(512, 512)} for i in range(count)}
    content = {"model": model, "trainer": {"optimizers": {"main": {"state": state}}}, "iteration": 9}

    def save_bare() -> None:
        with without_crc32(), replacing(folder / "bare.pth") as temporary:
            torch.save(content, temporary)

    return {
        "save a checkpoint": (save_bare, lambda: write_checkpoint(folder / "ours.pth", content)),
        "resume from a checkpoint": (
            lambda: torch.load(folder / "ours.pth", map_location="cpu", weights_only=True),
            lambda: read_training_checkpoint(folder / "ours.pth"),
        ),
    }


def bank_pairs(folder: Path, images: int) -> dict[str, Pair]:
    """A shard of the default size: 20 rows of width 256 an image."""
    rng = np.random.default_rng(0)
    rows = 20 * images
    content: dict[str, npt.NDArray[Any]] = {
        "embeddings": rng.standard_normal((rows, 256), np.float32).astype(np.float16),
        "labels": rng.integers(0, 134, rows),
        "weights": np.ones(rows, np.float32),
        "offsets": np.arange(0, rows + 1, 20),
    }

    def write_bare() -> None:
        with replacing(folder / "bare.safetensors") as temporary:
            save_file(content, temporary)

    path = folder / "ours.safetensors"
    return {
        "write a shard": (write_bare, lambda: write_shard(path, content, num_classes=133)),
        "open a shard and read it once": (
            lambda: load_file(folder / "bare.safetensors"),
            lambda: Shard(path, num_classes=133).arrays["embeddings"].copy(),
        ),
    }


def label_pairs(folder: Path) -> dict[str, Pair]:
    """A label map of 640 x 480 with large segments."""
    blocks = np.random.default_rng(0).integers(0, 21, (12, 16), dtype=np.uint8)
    path = folder / "labels.png"
    save_png(np.kron(blocks, np.ones((40, 40), np.uint8)), path)

    def read_bare() -> Any:
        with Image.open(path) as image:
            return np.asarray(image)

    return {"read a label map": (read_bare, lambda: read_label_map(path))}


if __name__ == "__main__":
    sys.exit(run_command(main))
