# SPDX-License-Identifier: Apache-2.0
r"""Segment your own images or videos and write the overlays; names of classes unseen in training end with ``*``.

Example:
  python demo.py --config-file configs/shapes_zsp.yaml --input photo.jpg --output output/pictures \
      --opts MODEL.WEIGHTS model_final.pth
  python demo.py --model model.safetensors --input photo.jpg --output output/pictures     (see python -m padding.pack)

``--classes "zebra,traffic cone"`` shows these classes only; ``python -m padding.add_classes`` adds new ones to a model.
With ``MODEL.PADING.TEST.MODE zsl`` the listed unseen classes do not even compete with others.

``--label-maps`` also writes the labels themselves, for models that give every pixel a class: index images in
``label_maps/`` with a palette, and ``classes.txt``, the names. Keys of ``TEST.SEM_SEG`` choose windows, scales and
mirror, as in an evaluation; ``--opts MODEL.TCC.TEST.STUDENT cnn`` asks the other network of a TCC model.

A model that predicts saliency (SalSeg with ``MODEL.SALSEG.TEST.SALIENCY True``) gets its heat map beside the segments.

``--input`` takes images, folders, glob patterns and videos, several at once, a camera (``--input 0``, until Ctrl-C or
``--max-frames``) or the address of a stream.

``--save`` writes predictions for other programs: COCO's panoptic JSON with PNGs, COCO results, index images, saliency,
of every frame of a video too;
``--no-pictures`` leaves the overlays out. For many images: ``--batch``, ``--num-workers``, ``--resume`` after a stop;
``torchrun --nproc-per-node N demo.py ...`` shares them between processes.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.engine.commands import add_config_arguments, command_parser, load_config, parse, positive, register_data
from padding.engine.video import UnreadableError, frame_name, is_live, video_frames, writing_video
from padding.errors import UserError, check_choice, run_command

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from padding.engine import Predictor
    from padding.engine.saved_predictions import PredictionWriter

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
KNOWN_ENDINGS = IMAGE_ENDINGS | VIDEO_ENDINGS
RUN_FILE = "demo.json"


class DemoError(UserError, ValueError):
    """An input cannot be found, or what was asked for cannot be had."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--model", default="", metavar="FILE", help="of python -m padding.pack, in place of --config-file"
    )
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, patterns, videos, or a camera: 0")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the overlays, made if missing")
    parser.add_argument("--confidence", type=float, metavar="P", help="least class probability of a segment, 0 to 1")
    parser.add_argument("--weights", metavar="FILE", help="trained model, short for MODEL.WEIGHTS FILE")
    parser.add_argument(
        "--classes", metavar="NAMES", help='only these classes, "zebra,traffic cone"; all others are left unlabelled'
    )
    parser.add_argument("--label-maps", action="store_true", help="write index images of the labels too")
    parser.add_argument(
        "--save",
        nargs="*",
        metavar="KIND",
        help="write predictions too: panoptic, instances, sem_seg, saliency; without a name all there is",
    )
    parser.add_argument("--no-pictures", action="store_true", help="with --save or --label-maps: no overlays")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier run wrote to --output")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="most images of one size at a time")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="processes that read images ahead")
    parser.add_argument("--max-frames", type=positive, metavar="N", help="end a video or camera after so many frames")
    args = parse(parser, arguments)
    if args.no_pictures and args.save is None and not args.label_maps:
        parser.error("--no-pictures leaves nothing to do; add --save or --label-maps")
    return args


def find_inputs(patterns: Sequence[str]) -> list[Path | str]:
    """Turn files, folders and glob patterns into a list of images and videos, sorted and without repetitions.

    Cameras and addresses of streams stay texts.

    Raises:
        DemoError: if a pattern matches nothing, or a file is neither image nor video.
    """
    found: dict[Path | str, None] = {}
    for pattern in patterns:
        if is_live(pattern) and not Path(pattern).exists():
            found[pattern] = None
            continue
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


@dataclass(frozen=True)
class DemoOptions:
    """What is written, and how the inputs are worked through; see the command line."""

    confidence: float = 0.5
    pictures: bool = True
    label_maps: bool = False
    save: tuple[str, ...] | None = None  # kinds of predictions; None: nothing is saved
    resume: bool = False
    batch: int = 1
    num_workers: int = 0
    max_frames: int | None = None
    share: tuple[int, int] = (0, 1)  # number of this process, and of all


class Demo:
    """Draw and save predictions of one model into one folder.

    Attributes:
        left_out: inputs of this process that could not be read, and why.
    """

    def __init__(self, predictor: Predictor, output: Path, options: DemoOptions | None = None) -> None:
        self._predictor = predictor
        self._output = output
        self._options = options = DemoOptions() if options is None else options
        self._writer: PredictionWriter | None = None
        self.left_out: dict[Path | str, str] = {}
        output.mkdir(parents=True, exist_ok=True)

    def run(self, inputs: Sequence[Path | str]) -> list[Path]:
        """Process this process's share of the inputs with a progress bar; return the written pictures and videos.

        An input that cannot be read is left out, see ``left_out``.

        Raises:
            DemoError: if what an earlier run left is of another model.
        """
        targets = self._targets(inputs)
        self._begin()
        number, count = self._options.share
        mine = [one for one in list(targets)[number::count] if not self._is_complete(targets[one])]
        try:
            written = self._draw_images([one for one in mine if isinstance(one, Path) and not _is_video(one)], targets)
            for source in (one for one in mine if _is_video(one)):
                written += self._attempt(source, targets[source])
        finally:
            if self._writer is not None:
                self._writer.flush()
        if self._writer is not None:
            self._writer.join(_name_of(target) for target in targets.values())
        drawn = set(written)
        return [target for target in targets.values() if target in drawn] if self._options.pictures else []

    def _begin(self) -> None:
        options = self._options
        self._compare_with_earlier_run()
        if options.label_maps:
            self._begin_label_maps()
        if options.save is not None:
            from padding.engine.saved_predictions import KINDS, PredictionWriter, refuse_existing

            if options.share[1] == 1:  # of several processes the first may have begun
                refuse_existing(self._output, resume=options.resume)
            kinds, split = options.save or KINDS, self._predictor.label_space
            self._writer = PredictionWriter(self._output, split, kinds=kinds, rank=options.share[0])

    def _compare_with_earlier_run(self) -> None:
        """With ``--resume`` refuse to mix predictions of two models."""
        from padding.data.files import write_json
        from padding.data.readers import read_json

        path, now = self._output / RUN_FILE, run_identity(self._predictor, self._options)
        if self._options.resume and path.is_file():
            before = read_json(path)
            if changed := [key for key, value in now.items() if before.get(key) != value]:
                raise DemoError(
                    f"--resume: {path} was written with other {' and '.join(changed)}; choose another --output, or "
                    "leave --resume out to draw everything anew"
                )
        elif self._options.share[0] == 0:
            write_json(path, now)

    def _begin_label_maps(self) -> None:
        from padding.data.files import write_text
        from padding.engine.label_map import UNLABELED

        lines = [f"{index} {name}\n" for index, name in enumerate(self._predictor.class_names)]
        write_text(self._label_map("").with_name("classes.txt"), "".join([*lines, f"{UNLABELED} unlabeled\n"]))

    def _overlay(self, image: npt.NDArray[np.uint8], prediction: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        """Draw the segments and, of a model that predicts it, saliency beside them."""
        from padding.engine.saliency_picture import beside, draw_saliency

        segments = self._predictor.draw(image, dict(prediction), confidence=self._options.confidence)
        if "saliency" not in prediction:
            return segments
        return beside(segments, draw_saliency(image, prediction["saliency"]))

    def _targets(self, sources: Sequence[Path | str]) -> dict[Path | str, Path]:
        """Name what is written after its source; equal names from different folders are numbered, for all processes."""
        targets: dict[Path | str, Path] = {}
        taken: set[str] = set()
        for source in sources:
            stem = source.stem if isinstance(source, Path) else _name_of_stream(source)
            ending = ".mp4" if _is_video(source) else ".png"
            name, number = f"{stem}{ending}", 1
            while name in taken or (self._output / name).resolve() == Path(source).resolve():
                number += 1
                name = f"{stem}_{number}{ending}"
            taken.add(name)
            targets[source] = self._output / name
        return targets

    def _is_complete(self, target: Path) -> bool:
        """Whether an earlier run wrote all that is wanted of an input."""
        if not self._options.resume:
            return False
        found = not self._options.pictures or target.is_file()
        if self._options.label_maps:
            # A video's picture is there when its last frame is.
            found = found and (self._options.pictures if _is_video(target) else self._label_map(target.stem).is_file())
        return found and (self._writer is None or _name_of(target) in self._writer.done)

    def _attempt(self, source: Path | str, target: Path) -> list[Path]:
        try:
            return [self._draw_video(source, target)]
        except UnreadableError as error:
            self._leave_out(source, target, str(error))
            return []

    def _leave_out(self, source: Path | str, target: Path, why: str) -> None:
        self.left_out[source] = why
        if self._writer is not None:
            self._writer.leave_out(_name_of(target))
        tqdm.write(f"left out: {why}", file=sys.stderr)

    def _draw_images(self, sources: Sequence[Path], targets: Mapping[Path | str, Path]) -> list[Path]:
        from padding.engine.image_stream import grouped_by_size, read_images

        options, written = self._options, []
        value_range = self._predictor.cfg.INPUT.VALUE_RANGE
        stream = read_images(sources, value_range=value_range, num_workers=options.num_workers)
        with tqdm(total=len(sources), desc="images", disable=len(sources) < 2) as bar:
            for batch in grouped_by_size(self._readable(stream, sources, targets), options.batch):
                predictions = self._predictor.predict([image for _, image in batch], batch_size=options.batch)
                for (index, image), prediction in zip(batch, predictions, strict=True):
                    written.append(self._write(image, prediction, sources[index], targets[sources[index]]))
                bar.update(len(batch))
        return written

    def _readable(
        self,
        stream: Iterable[tuple[int, npt.NDArray[np.uint8] | str]],
        sources: Sequence[Path],
        targets: Mapping[Path | str, Path],
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for index, image in stream:
            if not isinstance(image, str):
                yield index, image
                continue
            self._leave_out(sources[index], targets[sources[index]], image)

    def _write(self, image: npt.NDArray[np.uint8], prediction: Mapping[str, Any], source: Path, target: Path) -> Path:
        from padding.data.files import save_picture

        if self._options.pictures:
            save_picture(self._overlay(image, prediction), target)
        # COCO's images are named after their ids; others by their name.
        image_id = int(source.stem) if source.stem.isdecimal() else target.stem
        self._save(target.stem, image_id, image.shape[:2], prediction)
        return target

    def _label_map(self, name: str) -> Path:
        return self._output / "label_maps" / f"{name}.png"

    def _save(self, name: str, image_id: int | str, size: tuple[int, int], prediction: Mapping[str, Any]) -> None:
        """Write what other programs read of an image or a frame."""
        from padding.engine.label_map import class_colors, label_map_of, write_label_map

        if self._options.label_maps:
            try:
                labels = label_map_of(prediction)
            except ValueError as error:
                raise DemoError(f"--label-maps: {error}") from error
            write_label_map(self._label_map(name), labels, class_colors(self._predictor.metadata))
        if self._writer is not None:
            self._writer.write(name, image_id, size, prediction)

    def _draw_video(self, source: Path | str, target: Path) -> Path:
        rate, count, frames = video_frames(source)
        limit, name = self._options.max_frames, target.stem
        shown = tqdm(islice(frames, limit), desc=name, total=min(count, limit or count) or None, unit="frame")
        done = 0
        sinks = writing_video(target, rate, source=str(source)) if self._options.pictures else contextlib.nullcontext()
        try:
            with sinks as sink, contextlib.closing(frames):  # type: ignore[type-var]
                # A camera's frames are shown as they come, one by one.
                for group in batched(shown, 1 if isinstance(source, str) else self._options.batch):
                    for frame, prediction in zip(group, self._predictor.predict(group), strict=True):
                        one = frame_name(name, done)
                        self._save(one, one, frame.shape[:2], prediction)
                        if sink is not None:
                            sink.add(self._overlay(frame, prediction))
                        done += 1
        except KeyboardInterrupt:
            if not (done and isinstance(source, str)):  # that is how a camera ends
                raise
        if not done:
            raise UnreadableError(f"{source} holds no readable frame")
        if self._writer is not None:
            self._writer.end_video(_name_of(target), name, done)
        return target


def batched(frames: Iterable[npt.NDArray[np.uint8]], size: int) -> Iterator[list[npt.NDArray[np.uint8]]]:
    """Lists of so many frames, the last of what is left."""
    remaining = iter(frames)
    while group := list(islice(remaining, size)):
        yield group


def _name_of(target: Path) -> str:
    """Name under which is noted what is done of an input; a video may be called like an image."""
    return target.name if _is_video(target) else target.stem


def _is_video(source: Path | str) -> bool:
    return isinstance(source, str) or source.suffix.lower() in VIDEO_ENDINGS


def _name_of_stream(source: str) -> str:
    return f"camera_{source}" if source.isdecimal() else Path(source.partition("?")[0]).stem or "stream"


def run_identity(predictor: Predictor, options: DemoOptions) -> dict[str, Any]:
    """What predictions depend on: the configuration, the file of the weights, the classes and what is drawn."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = cfg.OUTPUT_DIR = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # names; their classes are recorded
    weights = Path(cfg.MODEL.WEIGHTS)
    state = weights.stat() if weights.is_file() else None
    return {
        "configuration": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights": [cfg.MODEL.WEIGHTS, *((state.st_size, state.st_mtime_ns) if state else ())],
        "classes": list(predictor.restricted_to or predictor.class_names),
        "confidence": options.confidence,
    }


def demo_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration; ``--confidence`` sets the model's threshold for panoptic segments too."""
    opts = list(args.opts)
    if args.weights:
        opts += ["MODEL.WEIGHTS", args.weights]
    if args.confidence is not None:
        if not 0.0 <= args.confidence <= 1.0:
            raise DemoError(f"--confidence must lie between 0 and 1, got {args.confidence}")
        opts += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", str(args.confidence)]
    cfg = _configured(args, opts)
    if cfg.MODEL.DEVICE == "cuda" and "LOCAL_RANK" in os.environ:  # of torchrun
        cfg = _configured(args, [*opts, "MODEL.DEVICE", f"cuda:{os.environ['LOCAL_RANK']}"])
    return cfg


def _configured(args: argparse.Namespace, opts: Sequence[str]) -> CfgNode:
    """Configuration of --config-file, whose data sets are registered, or of --model."""
    if bool(args.model) == bool(args.config_file) or (args.model and args.weights):
        raise DemoError("give either --config-file, with --weights, or --model, which has both in it")
    if args.model:
        from padding.engine.packing import open_packed

        return open_packed(args.model, opts)
    cfg = load_config(args.config_file, opts)
    register_data(cfg)
    return cfg


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


def demo_options(args: argparse.Namespace) -> DemoOptions:
    """Read what the command line says about input and output."""
    from padding.engine.image_stream import process_share
    from padding.engine.saved_predictions import KINDS

    for kind in args.save or ():
        check_choice("--save", kind, KINDS)
    return DemoOptions(
        confidence=0.5 if args.confidence is None else args.confidence,
        pictures=not args.no_pictures,
        label_maps=args.label_maps,
        save=None if args.save is None else tuple(args.save),
        resume=args.resume,
        batch=args.batch,
        num_workers=args.num_workers,
        max_frames=args.max_frames,
        share=process_share(),
    )


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Run the demo; return the written files."""
    args = parse_arguments(arguments)
    inputs = find_inputs(args.input)
    from padding.engine.predictor import Predictor

    options, cfg = demo_options(args), demo_cfg(args)
    predictor = Predictor(cfg)
    if args.classes is not None:
        restrict_classes(predictor, args.classes)
    demo = Demo(predictor, Path(args.output), options)
    written = demo.run(inputs)
    print(f"{len(written)} file(s) in {args.output}")
    if demo.left_out:
        reasons = "; ".join(demo.left_out.values())
        message = f"{len(demo.left_out)} of {len(inputs)} inputs were left out: {reasons}"
        if options.share[1] == 1:
            raise DemoError(message)
        print(message, file=sys.stderr)  # torchrun would end the other processes
    return written


if __name__ == "__main__":
    sys.exit(run_command(main))
