# SPDX-License-Identifier: Apache-2.0
r"""Segment your own images or videos and write the overlays; names of classes unseen in training end with ``*``.

Example:
  python demo.py --config-file configs/shapes_zsp.yaml --input photo.jpg --output output/pictures \
      --opts MODEL.WEIGHTS model_final.pth

``--classes "zebra,traffic cone"`` shows these classes only; ``python -m padding.add_classes`` adds new ones to a model.
With ``MODEL.PADING.TEST.MODE zsl`` the listed unseen classes do not even compete with others.

``--label-maps`` also writes the labels themselves, for models that give every pixel a class: index images in
``label_maps/`` with a palette, and ``classes.txt``, the names. Keys of ``TEST.SEM_SEG`` choose windows, scales and
mirror, as in an evaluation; ``--opts MODEL.TCC.TEST.STUDENT cnn`` asks the other network of a TCC model.

A model that predicts saliency (SalSeg with ``MODEL.SALSEG.TEST.SALIENCY True``) gets its heat map beside the segments.

``--input`` takes images, folders, glob patterns and videos, several at once.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.engine.commands import add_config_arguments, command_parser, load_config, parse, register_data
from padding.errors import UserError, run_command

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from padding.engine import Predictor

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
KNOWN_ENDINGS = IMAGE_ENDINGS | VIDEO_ENDINGS


class DemoError(UserError, ValueError):
    """An input cannot be found, or what was asked for cannot be had."""


class UnreadableError(DemoError):
    """An input is damaged; the others can still be drawn."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, glob patterns or videos")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the overlays, made if missing")
    parser.add_argument("--confidence", type=float, metavar="P", help="least class probability of a segment, 0 to 1")
    parser.add_argument("--weights", metavar="FILE", help="trained model, short for MODEL.WEIGHTS FILE")
    parser.add_argument(
        "--classes", metavar="NAMES", help='only these classes, "zebra,traffic cone"; all others are left unlabelled'
    )
    parser.add_argument("--label-maps", action="store_true", help="write index images of the labels too")
    return parse(parser, arguments)


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """Turn files, folders and glob patterns into a list of images and videos, sorted and without repetitions.

    Raises:
        DemoError: if a pattern matches nothing, or a file is neither image nor video.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            if path.suffix.lower() not in KNOWN_ENDINGS:
                raise DemoError(f"{path} is neither image nor video; expected {' '.join(sorted(KNOWN_ENDINGS))}")
            candidates = [path]
        elif path.is_dir():
            candidates = sorted(path.iterdir())
        else:
            candidates = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  (absolute patterns)
        usable = [p for p in candidates if p.is_file() and p.suffix.lower() in KNOWN_ENDINGS]
        if not usable:
            raise DemoError(
                f"no image or video found for --input {pattern}; expected {' '.join(sorted(KNOWN_ENDINGS))}"
            )
        found.update(dict.fromkeys(usable))
    return list(found)


def video_frames(path: Path) -> tuple[float, int, Iterator[npt.NDArray[np.uint8]]]:
    """Open a video.

    Returns:
        Frames per second, number of frames (0 if the file does not say), and the frames as RGB (h, w, 3) uint8.

    Raises:
        UnreadableError: if the file is no readable video.
    """
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UnreadableError(f"{path} cannot be opened as a video; convert it, for example to .mp4 with H.264")

    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
        finally:
            capture.release()

    return capture.get(cv2.CAP_PROP_FPS) or 25.0, max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), frames()


class Demo:
    """Draw predictions of one model into one folder."""

    def __init__(
        self, predictor: Predictor, output: Path, *, confidence: float | None = None, label_maps: bool = False
    ) -> None:
        self._predictor = predictor
        self._output = output
        self._label_maps = output / "label_maps" if label_maps else None
        self._confidence = 0.5 if confidence is None else confidence
        self._taken: set[str] = set()
        self.left_out: dict[Path, str] = {}  # inputs that could not be read, and why
        output.mkdir(parents=True, exist_ok=True)

    def run(self, inputs: Sequence[Path]) -> list[Path]:
        """Process every input with a progress bar; return the written pictures and videos.

        An input that cannot be read is left out, see ``left_out``.

        Raises:
            DemoError: if label maps are wanted of a video, or of a model without semantic predictions.
        """
        if self._label_maps is not None:
            self._begin_label_maps(self._label_maps, inputs)
        written = []
        for path in tqdm(inputs, desc="inputs", disable=len(inputs) < 2):
            is_video = path.suffix.lower() in VIDEO_ENDINGS
            try:
                written.append(self._draw_video(path) if is_video else self._draw_image(path))
            except UnreadableError as error:
                self.left_out[path] = str(error)
                tqdm.write(f"left out: {error}", file=sys.stderr)
        return written

    def _begin_label_maps(self, folder: Path, inputs: Sequence[Path]) -> None:
        from padding.data.files import write_text
        from padding.engine.label_map import UNLABELED

        videos = [path.name for path in inputs if path.suffix.lower() in VIDEO_ENDINGS]
        if videos:
            raise DemoError(f"--label-maps is for images; leave out {', '.join(videos)}")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{index} {name}\n" for index, name in enumerate(self._predictor.class_names)]
        write_text(folder / "classes.txt", "".join([*lines, f"{UNLABELED} unlabeled\n"]))

    def _overlay(self, image: npt.NDArray[np.uint8], prediction: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        """Draw the segments and, of a model that predicts it, saliency beside them."""
        from padding.engine.saliency_picture import beside, draw_saliency

        segments = self._predictor.draw(image, dict(prediction), confidence=self._confidence)
        if "saliency" not in prediction:
            return segments
        return beside(segments, draw_saliency(image, prediction["saliency"]))

    def _target(self, source: Path, ending: str) -> Path:
        """Name the overlay after its source; equal names from different folders are numbered."""
        name, number = f"{source.stem}{ending}", 1
        while name in self._taken or (self._output / name).resolve() == source.resolve():
            number += 1
            name = f"{source.stem}_{number}{ending}"
        self._taken.add(name)
        return self._output / name

    def _read(self, path: Path) -> npt.NDArray[np.uint8]:
        from padding.data.photographs import read_photograph
        from padding.errors import DataError, MissingFileError

        try:
            return read_photograph(path, value_range=self._predictor.cfg.INPUT.VALUE_RANGE)
        except (DataError, MissingFileError) as error:
            raise UnreadableError(str(error)) from error

    def _draw_image(self, path: Path) -> Path:
        from padding.data.files import save_picture
        from padding.engine.label_map import class_colors, label_map_of, write_label_map

        target = self._target(path, ".png")
        image = self._read(path)
        prediction = self._predictor(image)
        save_picture(self._overlay(image, prediction), target)
        if self._label_maps is not None:
            try:
                labels = label_map_of(prediction)
            except ValueError as error:
                raise DemoError(f"--label-maps: {error}") from error
            write_label_map(self._label_maps / target.name, labels, class_colors(self._predictor.metadata))
        return target

    def _draw_video(self, path: Path) -> Path:
        rate, count, frames = video_frames(path)
        target = self._target(path, ".mp4")
        writer: cv2.VideoWriter | None = None
        try:
            for frame in tqdm(frames, desc=path.name, total=count or None, unit="frame"):
                overlay = self._overlay(frame, self._predictor(frame))
                if writer is None:
                    height, width = overlay.shape[:2]
                    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
                    if not writer.isOpened():
                        raise DemoError(f"cannot write {target}: OpenCV has no mp4v encoder here")
                writer.write(cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
        finally:
            if writer is not None:
                writer.release()
        if writer is None:
            raise UnreadableError(f"{path} holds no readable frame")
        return target


def demo_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration; ``--confidence`` sets the model's threshold for panoptic segments too."""
    opts = list(args.opts)
    if args.weights:
        opts += ["MODEL.WEIGHTS", args.weights]
    if args.confidence is not None:
        if not 0.0 <= args.confidence <= 1.0:
            raise DemoError(f"--confidence must lie between 0 and 1, got {args.confidence}")
        opts += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", str(args.confidence)]
    return load_config(args.config_file, opts)


def restrict_classes(predictor: Predictor, listed: str) -> None:
    """Restrict a predictor to a comma-separated list of known or added classes.

    Raises:
        DemoError: for an empty list, an unknown name (with the nearest ones), or a model that cannot be restricted.
    """
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise DemoError(f'--classes names no class, got "{listed}"; expected for example "zebra,traffic cone"')
    try:
        predictor.restrict_to(names)
    except (ValueError, TypeError) as error:
        raise DemoError(f"--classes: {error}") from error


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Run the demo; return the written files."""
    args = parse_arguments(arguments)
    inputs = find_inputs(args.input)
    from padding.engine.predictor import Predictor

    cfg = demo_cfg(args)
    register_data(cfg)
    predictor = Predictor(cfg)
    if args.classes is not None:
        restrict_classes(predictor, args.classes)
    demo = Demo(predictor, Path(args.output), confidence=args.confidence, label_maps=args.label_maps)
    written = demo.run(inputs)
    print(f"{len(written)} file(s) in {args.output}")
    if demo.left_out:
        reasons = "; ".join(demo.left_out.values())
        raise DemoError(f"{len(demo.left_out)} of {len(inputs)} inputs were left out: {reasons}")
    return written


if __name__ == "__main__":
    sys.exit(run_command(main))
