# SPDX-License-Identifier: Apache-2.0
"""Look over the entries of a data set before they are used: files, sizes, ids, labels, images in two sets.

Nothing is raised: what is found comes back as a list, so that one look names all faults. A file is opened for its
header at most, but for the labels of some images.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from padding.data.label_statistics import audit_labels
from padding.data.readers import displayed_size, opened_image
from padding.data.saliency.maps import SALIENT_ABOVE, read_saliency, saliency_to_bytes
from padding.errors import UserError

Level = Literal["error", "warning", "note"]
Entry = Mapping[str, Any]
_LABELS = ("pan_seg_file_name", "sem_seg_file_name", "saliency_file_name")
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: "error": training or evaluation will stop, or learn something wrong; "warning": probably not what is
            meant; "note": worth knowing.
        place: data set, or key of the configuration.
        text: what, where, and how to mend it.
    """

    level: Level
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.place}: {self.text}"


def spread(entries: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the entries, evenly spaced, the first and the last among them; 0: all."""
    if not count or len(entries) <= count:
        return list(entries)
    return [entries[round(i * (len(entries) - 1) / (count - 1))] for i in range(count)] if count > 1 else [entries[0]]


def check_files(place: str, entries: Sequence[Entry], keys: Sequence[str]) -> Iterator[Finding]:
    """Every file that an entry names under one of the keys exists; one listing a folder, no call per file."""
    listed: dict[str, frozenset[str]] = {}
    for key in keys:
        missing = []
        for entry in entries:
            folder, name = os.path.split(str(entry.get(key, "")))
            if name and folder not in listed:
                listed[folder] = _names_in(folder)
            if name and name not in listed[folder]:
                missing.append(str(entry[key]))
        if missing:
            yield Finding("error", place, f"{_some(missing)} of {len(entries)} {_KINDS[key]} do not exist")


_KINDS = {
    "file_name": "images",
    "sem_seg_file_name": "label images",
    "pan_seg_file_name": "panoptic PNGs",
    "saliency_file_name": "saliency maps",
}


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or "."))  # noqa: PTH208  (three times as fast)
    except OSError:
        return frozenset()


def _some(files: Sequence[str]) -> str:
    return f"{len(files)} ({', '.join(files[:_SHOWN])}{', ...' if len(files) > _SHOWN else ''})"


def check_sizes(place: str, entries: Sequence[Entry], *, limit: int = 0) -> Iterator[Finding]:
    """Images and their label images can be opened, and have the size that is listed, or one size.

    Args:
        place: for the findings.
        entries: of a data set.
        limit: look at so many, evenly spaced; 0: at all.
    """
    wrong: list[str] = []
    unreadable: list[str] = []
    looked_at = spread(entries, limit)
    for entry in tqdm(looked_at, desc=f"{place}: headers", unit="img", disable=None, leave=False):
        path = entry["file_name"]
        try:
            size = displayed_size(path)
            listed = (entry.get("height", size[0]), entry.get("width", size[1]))
            if size != listed:
                wrong.append(f"{path} is {size[0]} x {size[1]}, its annotations say {listed[0]} x {listed[1]}")
            stored = {entry[key]: _stored_size(entry[key]) for key in _LABELS if key in entry}
            wrong += [
                f"{file} is {found[0]} x {found[1]}, its image {size[0]} x {size[1]}"
                for file, found in stored.items()
                if found not in (None, size)
            ]
        except (UserError, OSError) as error:
            unreadable.append(str(error))
    of_all = "" if len(looked_at) == len(entries) else f" (of {len(looked_at)} looked at)"
    if unreadable:
        yield Finding("error", place, f"{_some(unreadable)} files cannot be opened{of_all}")
    if wrong:
        yield Finding("error", place, f"{_some(wrong)} files have another size (height x width){of_all}")


def _stored_size(path: str) -> Any:
    """(h, w) of a label image, whose EXIF entry does not count; None where there is no such file."""
    if not Path(path).is_file():
        return None
    with opened_image(path) as image:
        return image.height, image.width


def check_ids(place: str, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Image ids and files stand once."""
    for key, cure in (("image_id", "give every image its own"), ("file_name", "list every image once")):
        counts = Counter(str(entry[key]) for entry in entries if key in entry)
        repeated = [f"{value} {count} times" for value, count in counts.most_common(_SHOWN) if count > 1]
        if repeated:
            number = sum(count > 1 for count in counts.values())
            level: Level = "error" if key == "image_id" else "warning"
            yield Finding(level, place, f"{number} {key}s are repeated: {', '.join(repeated)}; {cure}")


def check_labels(
    place: str,
    entries: Sequence[Entry],
    names: Sequence[str],
    *,
    label_map: Mapping[int, int] | None = None,
    limit: int = 0,
    all_labeled: bool = True,
) -> Iterator[Finding]:
    """Label images hold classes: not void alone, no values that are neither, nor 255 in place of a class.

    Args:
        place: for the findings.
        entries: with ``sem_seg_file_name``.
        names: of the K classes.
        label_map: value in the file -> class or 255; None: the values are classes and 255.
        limit: look at so many files, evenly spaced; 0: at all.
        all_labeled: an image without label file is an error.
    """
    looked_at = spread(entries, limit)
    audit = audit_labels(looked_at, names, label_map=label_map)  # type: ignore[arg-type]
    for line in audit.problems(all_labeled=all_labeled):
        yield Finding("error", place, line)
    suspect = audit.void_for_class()
    if suspect and not audit.has_one_class and len(looked_at) == len(entries):  # of a sample rare classes are missing
        yield Finding("warning", place, suspect)
    read = audit.num_images - len(audit.missing) - len(audit.unreadable)
    if read and len(audit.all_void) == read:
        yield Finding(
            "error",
            place,
            f"all {read} label images looked at hold void alone (such as {audit.all_void[0]}), so that nothing can be "
            "learned; check the labels, VOID_VALUES and the classes",
        )
    elif audit.all_void:
        yield Finding("note", place, f"{_some(audit.all_void)} label images hold void alone and teach nothing")
    if read and len(looked_at) == len(entries):
        total = max(int(audit.pixels.sum()) + audit.void_pixels, 1)
        of_class = [*zip(names, audit.pixels.tolist(), strict=True), ("void", audit.void_pixels)]
        shares = ", ".join(f"{name} {100 * count / total:.2f} %" for name, count in of_class)
        yield Finding("note", place, f"{read} label images: {shares}")
    absent = [name for name, count in zip(names, audit.pixels, strict=True) if count == 0]
    if absent and read and len(looked_at) == len(entries) and not suspect:
        yield Finding("note", place, f"no pixel of {', '.join(absent)}")


def check_saliency(place: str, entries: Sequence[Entry], *, limit: int = 0) -> Iterator[Finding]:
    """Saliency can be read, has 0 and 255 and not 0 and 1, and something is salient.

    Args:
        place: for the findings.
        entries: with saliency of their own, or derived from class labels.
        limit: look at so many files, evenly spaced; 0: at all.
    """
    unusable: list[str] = []
    zero_one: list[str] = []
    empty: list[str] = []
    looked_at = spread(entries, limit)
    for entry in tqdm(looked_at, desc=f"{place}: saliency", unit="img", disable=None, leave=False):
        file = str(entry.get("saliency_file_name", entry.get("sem_seg_file_name", entry["file_name"])))
        try:
            largest = int(saliency_to_bytes(read_saliency(entry)[0]).max(initial=0))
        except (UserError, OSError) as error:
            unusable.append(str(error))
            continue
        if largest <= SALIENT_ABOVE:
            (zero_one if largest == 1 else empty).append(file)
    if unusable:
        yield Finding("error", place, f"{_some(unusable)} maps cannot be used")
    if zero_one:
        yield Finding("error", place, f"{_some(zero_one)} maps hold 0 and 1, not 0 and 255; multiply them")
    if looked_at and len(empty) == len(looked_at):
        yield Finding("error", place, f"nothing is salient in all {len(empty)} maps looked at (such as {empty[0]})")
    elif empty:
        yield Finding("note", place, f"{_some(empty)} maps have no salient pixel")


def check_objects(place: str, entries: Sequence[Entry], names: Sequence[str]) -> Iterator[Finding]:
    """Segments or objects of the classes, read from the entries alone: classes without any, crowds."""
    counts: Counter[int] = Counter()
    images: Counter[int] = Counter()
    crowds = annotated = 0
    for entry in entries:
        for kind in ("segments_info", "annotations"):
            found = entry.get(kind, ())
            annotated += len(found)
            crowds += sum(1 for item in found if item.get("iscrowd"))
            classes = [item["category_id"] for item in found if not item.get("iscrowd")]
            counts.update(classes)
            images.update(set(classes))
    if not annotated:
        return
    if crowds == annotated:
        yield Finding(
            "error",
            place,
            f"all {annotated} objects have iscrowd 1, and crowds are no targets; set iscrowd to 0 in the annotations "
            "(some tools write 1 for every mask)",
        )
    elif crowds > annotated // 2:
        yield Finding("warning", place, f"{crowds} of {annotated} objects have iscrowd 1 and are no targets")
    absent = [name for index, name in enumerate(names) if counts[index] == 0]
    if absent:
        yield Finding("note", place, f"no object of {len(absent)} of {len(names)} classes: {', '.join(absent[:10])}")
    per_image = sum(counts.values()) / max(len(entries), 1)
    yield Finding("note", place, f"{len(entries)} images, {sum(counts.values())} objects, {per_image:.1f} an image")


def check_leak(
    places: tuple[str, str], train: Iterable[Entry], test: Iterable[Entry], *, contents: bool = False
) -> Iterator[Finding]:
    """No image is in training and in evaluation.

    Args:
        places: names of the two sets.
        train: entries.
        test: entries.
        contents: compare the bytes of files of one size as well, not only names; reads some files.
    """
    train_files = {os.path.realpath(entry["file_name"]) for entry in train}
    test_files = {os.path.realpath(entry["file_name"]) for entry in test}
    same = sorted(train_files & test_files)
    place = f"{places[0]} and {places[1]}"
    if same:
        yield Finding("warning", place, f"{_some(same)} images are in both: scores on them prove nothing")
    if contents:
        copies = [f"{one} = {other}" for one, other in _copies(train_files - test_files, test_files - train_files)]
        if copies:
            yield Finding("warning", place, f"{_some(copies)} images are the same file under two names")


def _copies(train: Iterable[str], test: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of files with equal bytes; only files of equal length are read."""
    by_length: dict[int, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, files in enumerate((train, test)):
        for file in files:
            if Path(file).is_file():
                by_length[Path(file).stat().st_size][side].append(file)
    pairs = []
    for ours, theirs in by_length.values():
        if ours and theirs:
            digests = {hashlib.sha256(Path(file).read_bytes()).digest(): file for file in ours}
            hashes = ((hashlib.sha256(Path(file).read_bytes()).digest(), file) for file in theirs)
            pairs += [(digests[digest], file) for digest, file in hashes if digest in digests]
    return sorted(pairs)
