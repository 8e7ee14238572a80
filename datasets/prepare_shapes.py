# SPDX-License-Identifier: Apache-2.0
"""Make or verify the embedded data set ``shapes`` (generated, no download).

    python datasets/prepare_shapes.py                       # 3000 training and 400 validation images
    python datasets/prepare_shapes.py --num-train 1500 --num-val 150
    python datasets/prepare_shapes.py --check               # verify what is there
    python datasets/prepare_shapes.py --preview sheet.png   # only a picture of some images

The folder is ``<root>/shapes``. An interrupted run continues, a damaged folder is repaired, and a changed number
of images costs only the difference. ``padding/data/shapes/write.py`` describes the files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.prepare.command import add_options, preparation_parser, run_preparation
from padding.data.shapes.classes import ShapesConfig

_SHOWN_PROBLEMS = 20
_PREVIEW_GRID = (4, 6)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; the defaults are those of ``ShapesConfig``."""
    defaults = ShapesConfig()
    parser = preparation_parser(__doc__, root="data root; the data set is <root>/shapes")
    parser.add_argument("--num-train", type=int, default=defaults.num_train, help="training images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=defaults.num_val, help="validation images (%(default)s)")
    parser.add_argument("--size", type=int, default=defaults.size, help="height and width in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add_options(parser, "--overwrite", overwrite="replace a data set made with other parameters")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="verify the folder and write nothing")
    mode.add_argument("--preview", type=Path, metavar="PNG", help="draw some validation images and write nothing else")
    return parser.parse_args(arguments)


def draw_preview(config: ShapesConfig, path: Path) -> None:
    """Write a sheet of validation images."""
    import numpy as np

    from padding.data.prepare.scribble_preview import write_sheet
    from padding.data.shapes.render import render_image

    rows, columns = _PREVIEW_GRID
    frame = ((2, 2), (2, 2), (0, 0))
    images = [render_image(config, "val", index).image for index in range(rows * columns)]
    write_sheet(path, [np.pad(image, frame, constant_values=255) for image in images], columns)
    print(f"{rows * columns} validation images drawn to {path}")


def check(root: Path) -> int:
    """Print what is wrong with the folder; returns the exit status."""
    from tqdm import tqdm

    from padding.data.shapes.check import check_shapes

    with tqdm(unit=" images", desc="checking", disable=None) as bar:
        problems = check_shapes(root, on_progress=bar.update)
    if not problems:
        print(f"{root / 'shapes'}: complete and sound")
        return 0
    for problem in problems[:_SHOWN_PROBLEMS]:
        print(problem)
    print(
        f"{root / 'shapes'}: {len(problems)} problems"
        + (", the first shown" if len(problems) > _SHOWN_PROBLEMS else "")
    )
    return 1


def write(root: Path, config: ShapesConfig, workers: int, overwrite: bool) -> int:
    """Write the data set; returns the exit status."""
    from tqdm import tqdm

    from padding.data.shapes.write import write_shapes

    start = time.perf_counter()
    with tqdm(total=config.num_train + config.num_val, unit=" images", desc="shapes", disable=None) as bar:
        manifest = write_shapes(
            root, config, num_workers=workers, overwrite=overwrite, on_progress=bar.update, start_method="fork"
        )
    seconds = time.perf_counter() - start
    total, rendered = config.num_train + config.num_val, manifest["rendered"]
    print(f"{root / 'shapes'}: {config.num_train} training and {config.num_val} validation images")
    print(f"{rendered} rendered, {total - rendered} kept, {seconds:.1f} s; sha256 {manifest['sha256'][:16]}")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Check, draw or write; returns the exit status."""
    if args.check:
        return check(args.root)
    config = ShapesConfig(num_train=args.num_train, num_val=args.num_val, size=args.size, seed=args.seed)
    if args.preview is not None:
        draw_preview(config, args.preview)
        return 0
    return write(args.root, config, args.workers, args.overwrite)


main = partial(run_preparation, prepare, parse_args)

if __name__ == "__main__":
    raise SystemExit(main())
