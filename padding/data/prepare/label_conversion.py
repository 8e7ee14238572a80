# SPDX-License-Identifier: Apache-2.0
"""Write label images from other files, image by image: what is there and right stays, what differs is reported.

Shared by the preparation of VOC (SBD's .mat files) and Cityscapes (label ids). An interrupted run leaves no half file,
and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.files import save_png
from padding.data.label_statistics import audit_labels
from padding.data.prepare.command import report
from padding.data.prepare.panoptic_audit import make_target_folder, map_tasks
from padding.data.readers import read_label_map
from padding.data.sample import DatasetDict
from padding.errors import PreparationError

Reader = Callable[[Path], npt.NDArray[np.uint8]]
Palette = tuple[tuple[int, int, int], ...]
_SHOWN = 3
_DIFFER = "differ from what they are made of; --overwrite replaces them"


@dataclass(frozen=True)
class LabelPair:
    """A file to read labels from, and the label image to write."""

    source: Path
    target: Path


@dataclass
class Conversion:
    """What a run did to the label images."""

    # Not there or unreadable, and not written either, because nothing was to be written.
    missing: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)  # made anew
    kept: list[Path] = field(default_factory=list)  # right already
    differing: list[Path] = field(default_factory=list)  # hold other labels than their source, and were left alone


def existing_pairs(pairs: Sequence[LabelPair], *, subset: bool, cure: str) -> list[LabelPair]:
    """Pairs whose source exists.

    Args:
        pairs: of the whole data set.
        subset: whether some may be missing.
        cure: sentence for error messages: how the files are obtained.

    Raises:
        PreparationError: sources are missing, all of them or, without ``subset``, some.
    """
    exists = [pair.source.is_file() for pair in pairs]
    found = [pair for pair, there in zip(pairs, exists, strict=True) if there]
    missing = [pair.source for pair, there in zip(pairs, exists, strict=True) if not there]
    if not found or (missing and not subset):
        raise PreparationError(
            f"{len(missing)} of {len(pairs)} files are missing, first {missing[0]}. {cure}"
            + ("" if subset else " Pass --subset if you mean a part of the data.")
        )
    return found


def convert_labels(
    pairs: Sequence[LabelPair],
    read: Reader,
    *,
    palette: Palette = (),
    write: bool = True,
    overwrite: bool = False,
    num_workers: int = 0,
    title: str = "labels",
) -> Conversion:
    """Write the label images of some pairs.

    Args:
        pairs: what to do.
        read: source to (h, w) uint8 labels; a function that can be sent to another process.
        palette: colors of the written images, which then are palette images; (): grey.
        write: False compares and writes nothing.
        overwrite: replace label images that differ.
        num_workers: processes; 0: this one.
        title: of the progress bar.

    Raises:
        PreparationError: a source cannot be used.
    """
    if write:
        for folder in {pair.target.parent for pair in pairs}:
            make_target_folder(folder)
    one = partial(_convert_one, read=read, palette=palette, write=write, overwrite=overwrite)
    done = Conversion()
    places = {"missing": done.missing, "written": done.written, "kept": done.kept, "differs": done.differing}
    results = map_tasks(one, pairs, num_workers=num_workers)
    for pair, result in zip(pairs, tqdm(results, total=len(pairs), desc=title, unit="img", disable=None), strict=True):
        places[result].append(pair.target)
    return done


def _convert_one(pair: LabelPair, *, read: Reader, palette: Palette, write: bool, overwrite: bool) -> str:
    labels = read(pair.source)
    try:
        earlier = read_label_map(pair.target)
    except (FileNotFoundError, ValueError):
        earlier = None
    if earlier is not None and np.array_equal(earlier, labels):
        return "kept"
    if earlier is not None and not (write and overwrite):
        return "differs"
    if not write:
        return "missing"
    save_png(labels, pair.target, palette=palette)
    return "written"


def differing_problem(done: Conversion) -> list[str]:
    """A sentence about label images that were left alone though they differ; [] where there is none."""
    shown = ", ".join(str(path) for path in done.differing[:_SHOWN])
    return [f"{len(done.differing)} label images {_DIFFER}: {shown}"] if done.differing else []


def labeled_image(image: Path, labels: Path) -> DatasetDict:
    """Entry of an image and its label file, which has the image's name."""
    return {"file_name": str(image), "sem_seg_file_name": str(labels), "image_id": image.stem}


def convert_data_set(
    args: argparse.Namespace,
    pairs: Sequence[LabelPair],
    read: Reader,
    *,
    entries: Callable[[Sequence[LabelPair]], Sequence[DatasetDict]],
    names: Sequence[str],
    palette: Palette = (),
    title: str,
    cure: str,
) -> int:
    """Convert a data set as its script was told to, then read everything that will be used once more.

    Args:
        args: ``subset``, ``check``, ``overwrite`` and ``num_workers`` of the script.
        pairs: of the whole data set.
        read: see ``convert_labels``.
        entries: pairs that are there -> every image with its label file.
        names: of the classes.
        palette: see ``convert_labels``.
        title: of the progress bar.
        cure: see ``existing_pairs``.

    Returns:
        The exit status.
    """
    pairs = existing_pairs(pairs, subset=args.subset, cure=cure)
    how = {"write": not args.check, "overwrite": args.overwrite, "num_workers": args.num_workers}
    done = convert_labels(pairs, read, palette=palette, title=title, **how)
    audit = audit_labels(entries(pairs), names)
    problems = audit.problems(all_labeled=True)
    problems += differing_problem(done)
    counts = f"{len(done.missing)} missing, {len(done.written)} written, {len(done.kept)} right already"
    return report(problems, [f"label images: {counts}", *audit.lines()])
