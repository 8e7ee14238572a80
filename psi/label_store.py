# SPDX-License-Identifier: Apache-2.0
"""Diffused labels on disk between the rounds of ``MODEL.PSI.SLD.MODE`` "rounds" (PSI).

A round is a folder ``round_<t>`` with two 8-bit PNGs for each image, labels and weights at the size of the image, and
a manifest with a checksum of every file. It is written as ``round_<t>.partial`` and renamed when every image of the
data set is there, so that a reader sees whole rounds only. Weight 255 says "scribble", 1 to 254 "diffused" (B' in steps
of 1/255), 0 "unlabeled".
"""

import io
import logging
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch

from padding.data.augmentation import View
from padding.data.files import replace_folder, save_png, write_json
from padding.data.mappers import MAPPER_REGISTRY, SemanticMapper
from padding.data.readers import read_json, read_label_map
from padding.data.sample import IGNORE_LABEL
from padding.data.targets import LabelMap, check_size, pad_to_size, transform_labels
from padding.errors import ConfigError, DataError, MissingFileError
from psi.supervision import PixelSupervision

logger = logging.getLogger(__name__)

LABEL_KEY = "diffused_file_name"
"""Entry of an image that names its stored labels."""

WEIGHT_KEY = "diffused_weight_file_name"
"""Entry of an image that names its stored weights."""

CHECKSUM_KEY = "diffused_checksums"
"""Entry of an image that holds the checksums of both files, in that order."""

MANIFEST = "manifest.json"
_FORMAT = 2  # 2: with checksums
_SCRIBBLE = 255
_CURE = "Delete {} and go on with --resume from a checkpoint before that round, or start anew."


def encoded_weights(weights: npt.NDArray[np.float32], scribbles: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Weights in [0, 1] as bytes; a diffused pixel is never rounded to "unlabeled" or up to "scribble"."""
    # Weights are at least 1 and at most 254 of 255 for what was diffused: 0 is void, 255 a scribble.
    bytes_ = np.clip(np.rint(weights * 255.0), 1, _SCRIBBLE - 1)
    return np.where(scribbles, _SCRIBBLE, np.where(weights > 0, bytes_, 0)).astype(np.uint8)


def decoded_weights(stored: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Weights in [0, 1], and where the scribbles are."""
    return stored.astype(np.float32) / 255.0, stored == _SCRIBBLE


class LabelStore:
    """The rounds of one training, in one folder.

    Several processes may write different images of a round; ``start_round`` and ``finish_round`` belong to one of them,
    with a barrier after the former and before the latter.
    """

    def __init__(self, folder: str | Path, *, num_classes: int) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            folder: of all rounds; created by ``start_round``.
            num_classes: K.

        Raises:
            ConfigError: if a byte cannot hold K classes and void.
        """
        if num_classes > IGNORE_LABEL:
            raise ConfigError(
                f"{num_classes} classes do not fit the 8-bit labels of {folder}; choose MODEL.PSI.SLD.MODE 'online'"
            )
        self.folder = Path(folder)
        self.num_classes = num_classes
        self._checksums: dict[int, dict[str, list[int]]] = {}

    def rounds(self) -> list[int]:
        """Numbers of the complete rounds, ascending."""
        matches = (re.fullmatch(r"round_(\d+)", path.parent.name) for path in self.folder.glob(f"round_*/{MANIFEST}"))
        return sorted(int(match.group(1)) for match in matches if match)

    def start_round(self, number: int) -> None:
        """Make an empty place for a round; what a killed process left of it came from other weights, and goes."""
        partial = self._partial(number)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)

    def write(self, number: int, image_id: int | str, supervision: PixelSupervision) -> None:
        """Store the labels of one image in a round that was started.

        Args:
            number: of the round, the t of y_t.
            image_id: of the data set.
            supervision: of one image (B = 1), at its original size.

        Raises:
            ValueError: for more than one image, or a label that is no class.
            FileNotFoundError: the round was not started.
        """
        if len(supervision.labels) != 1:
            raise ValueError(
                f"{len(supervision.labels)} images given for image {image_id}; labels are stored one by one"
            )
        labels = supervision.labels[0].cpu().numpy()
        strange = np.setdiff1d(labels, [*range(self.num_classes), IGNORE_LABEL])
        if len(strange):
            raise ValueError(
                f"labels of image {image_id} hold {strange[:5].tolist()}; expected 0 to {self.num_classes - 1}"
            )
        folder = self._partial(number)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: call start_round({number}) before labels are written")
        weights = encoded_weights(supervision.weights[0].float().cpu().numpy(), supervision.scribbles[0].cpu().numpy())
        label_file, weight_file = _files(folder, image_id)
        save_png(labels.astype(np.uint8), label_file)
        save_png(weights, weight_file)

    def finish_round(
        self,
        number: int,
        image_ids: Iterable[int | str],
        details: Mapping[str, Any] | None = None,
    ) -> Path:
        """Check that a round is complete and give it its final name; an older one of the same number is replaced.

        Args:
            number: of the round.
            image_ids: of all images of the data set.
            details: what the manifest also says: iteration, data set, options; JSON values.

        Returns:
            The folder.

        Raises:
            MissingFileError: labels of an image are missing.
        """
        partial, final = self._partial(number), self._final(number)
        image_ids = list(image_ids)
        missing = [i for i in image_ids if not all(path.is_file() for path in _files(partial, i))]
        if missing:
            raise MissingFileError(
                f"{partial}: no labels of {len(missing)} of {len(image_ids)} images, such as {missing[0]!r}; start the "
                "round again with all images of the training set"
            )
        manifest = {"format": _FORMAT, "round": number, "num_classes": self.num_classes, "images": len(image_ids)}
        checksums = {
            _name(i): [zlib.crc32(path.read_bytes()) for path in _files(partial, i)] for i in dict.fromkeys(image_ids)
        }
        write_json(partial / MANIFEST, {**manifest, "details": dict(details or {}), "checksums": checksums})
        self._checksums.pop(number, None)
        # Under its final name only when complete: readers see whole rounds.
        replace_folder(partial, final)
        logger.info("%s: labels of %d images", final, len(image_ids))
        return final

    def forget_before(self, number: int) -> None:
        """Delete the complete rounds with lower numbers."""
        for earlier in self.rounds():
            if earlier < number:
                shutil.rmtree(self._final(earlier))

    def manifest(self, number: int) -> dict[str, Any]:
        """What was written about a complete round.

        Raises:
            MissingFileError: there is no such round.
            DataError: the manifest cannot be read, or speaks of other classes.
        """
        path = self._final(number) / MANIFEST
        if not path.is_file():
            raise MissingFileError(
                f"no {path}; the complete rounds in {self.folder} are {self.rounds()}. Bring the folder back, or start "
                "the training again without --resume"
            )
        manifest = read_json(path, cure=_CURE.format(path.parent))
        found = (manifest.get("format"), manifest.get("num_classes"))
        if found != (_FORMAT, self.num_classes):
            raise DataError(
                f"{path} has format {found[0]} and {found[1]} classes, this training {_FORMAT} and {self.num_classes}; "
                "name another MODEL.PSI.SLD.ROUNDS.FOLDER"
            )
        checksums = manifest.get("checksums")
        if not isinstance(checksums, dict) or not all(_are_checksums(entry) for entry in checksums.values()):
            raise DataError(f"{path}: its checksums are damaged. {_CURE.format(path.parent)}")
        return manifest

    def read(self, number: int, image_id: int | str) -> PixelSupervision:
        """Labels of one image (B = 1) as they were stored; weights to 1/255.

        Raises:
            MissingFileError: there are none.
            DataError: they are damaged.
        """
        files = _files(self._final(number), image_id)
        if not (sums := self._checksums_of(number, image_id)):
            raise MissingFileError(f"{self._final(number)} has no labels of image {image_id!r}")
        stored_labels, stored_weights = (_read_stored(*pair) for pair in zip(files, sums, strict=True))
        weights, scribbles = decoded_weights(stored_weights)
        labels = torch.from_numpy(stored_labels.astype(np.int64))
        return PixelSupervision(labels[None], torch.from_numpy(weights)[None], torch.from_numpy(scribbles)[None])

    def entries(self, dataset_dicts: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
        """Entries of a data set with the labels of a round beside the scribbles; the given ones are not changed.

        Raises:
            MissingFileError: the round is not complete, or was written for another data set.
            DataError: its manifest is damaged.
        """
        folder = self._final(number)
        entries = []
        for entry in dataset_dicts:
            label_file, weight_file = _files(folder, entry["image_id"])
            checksums = self._checksums_of(number, entry["image_id"])
            if not checksums or not label_file.is_file() or not weight_file.is_file():
                raise MissingFileError(
                    f"{folder} has no labels of image {entry['image_id']!r} ({entry.get('file_name')}); it was written "
                    "for another training set, name another MODEL.PSI.SLD.ROUNDS.FOLDER"
                )
            stored = {LABEL_KEY: str(label_file), WEIGHT_KEY: str(weight_file), CHECKSUM_KEY: tuple(checksums)}
            entries.append({**entry, **stored})
        return entries

    def _checksums_of(self, number: int, image_id: int | str) -> list[int]:
        """Of the two files of an image, [] for one that the round does not know; the manifest is read once."""
        if number not in self._checksums:
            self._checksums[number] = self.manifest(number)["checksums"]
        return self._checksums[number].get(_name(image_id), [])

    def _final(self, number: int) -> Path:
        return self.folder / f"round_{number}"

    def _partial(self, number: int) -> Path:
        return self.folder / f"round_{number}.partial"


def _name(image_id: int | str) -> str:
    """Of an image's files; ids may hold slashes (Cityscapes: city/name)."""
    return quote(str(image_id), safe="")


def _files(folder: Path, image_id: int | str) -> tuple[Path, Path]:
    """Label and weight file of an image."""
    return folder / f"{_name(image_id)}_labels.png", folder / f"{_name(image_id)}_weights.png"


def _are_checksums(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)


def _read_stored(path: str | Path, checksum: int) -> LabelMap:
    """Bytes (h, w) of a stored file.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not the file that the manifest speaks of.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file. {_CURE.format(Path(path).parent)}") from None
    if zlib.crc32(content) != checksum:
        raise DataError(
            f"{path}: damaged, or of another round: its checksum is not that of {MANIFEST}. "
            f"{_CURE.format(Path(path).parent)}"
        )
    return read_label_map(io.BytesIO(content), name=path)


@MAPPER_REGISTRY.register()
class StoredLabelMapper(SemanticMapper):
    """Scribbles as ``sem_seg`` and, where the entry names stored labels, these beside them.

    Adds ``diffused`` (H, W) int64, the ignore label where nothing is known, and ``diffused_weight`` (H, W) float32 in
    [0, 1]; both follow the geometry by nearest neighbor, as labels do.
    """

    default_augmentation = "scale_crop"

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add ``sem_seg``, ``diffused`` and ``diffused_weight``."""
        super().add_targets(sample, view)
        if LABEL_KEY not in sample:
            return
        label_sum, weight_sum = sample[CHECKSUM_KEY]
        labels = self._transformed(sample, sample[LABEL_KEY], label_sum, view, self.ignore_label)
        weights, _ = decoded_weights(self._transformed(sample, sample[WEIGHT_KEY], weight_sum, view, 0))
        sample["diffused"] = torch.from_numpy(labels.astype(np.int64))
        # What rotates in from outside has the border value of labels, in the weights as well.
        sample["diffused_weight"] = torch.from_numpy(weights * (labels != self.ignore_label))

    def _transformed(self, sample: Mapping[str, Any], path: str, checksum: int, view: View, pad: int) -> LabelMap:
        stored = _read_stored(path, checksum)
        check_size(path, stored.shape, sample)
        return pad_to_size(transform_labels(view.transforms, stored), self.plan.output_size, pad, name=str(path))
