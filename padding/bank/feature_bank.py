# SPDX-License-Identifier: Apache-2.0
"""Features of the frozen segmentor on disk: write once, verify, sample.

The released code runs the frozen network in every iteration; its features only change with the augmentation. A bank
holds them for V augmented views of the training set, so that any training of generator and classifier reads them.

A folder has ``manifest.json`` and one ``shard_*.safetensors`` for every ``images_per_shard`` images, memory-mapped when
read. The position p of an image in the bank is its position in the training stream: pass p // N, N images in the set.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from detectron2.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from padding.bank.shard import RELEASE_BYTES, Shard, write_shard
from padding.data.files import write_json
from padding.data.readers import read_json
from padding.data.streams import epoch_order
from padding.engine.random_state import preserved_random_state
from padding.errors import ConfigError, DataError, check_choice
from padding.modeling.batching import to_device

FORMAT_VERSION = 2  # 2: shards carry a checksum
MANIFEST = "manifest.json"
_READ_AHEAD = 1 << 17


class FeatureBatch(NamedTuple):
    """Query embeddings of a batch of images, as data (no gradient)."""

    embeddings: Tensor  # (n, D) float32
    labels: Tensor  # (n,) int64 in the test label space, K for no-object
    weights: Tensor  # (n,) float32, the number of queries a row stands for

    def select(self, rows: Tensor) -> "FeatureBatch":
        """Rows of a boolean mask or an index."""
        return FeatureBatch(self.embeddings[rows], self.labels[rows], self.weights[rows])

    def to(self, device: torch.device | str) -> "FeatureBatch":
        """The same on another device."""
        return FeatureBatch(*(to_device(tensor, device) for tensor in self))


def concatenate(batches: Iterable[FeatureBatch]) -> FeatureBatch:
    """One batch of all rows, in order."""
    return FeatureBatch(*(torch.cat(column) for column in zip(*batches, strict=True)))


def gather_features(batch: FeatureBatch) -> FeatureBatch:
    """Rows of all ranks on every rank, in rank order; ranks may hold different numbers. Collective."""
    if comm.get_world_size() == 1:
        return batch
    # Through the CPU: objects are pickled, and (n, D) differs between the ranks.
    device = batch.embeddings.device
    return concatenate(FeatureBatch(*part) for part in comm.all_gather(tuple(batch.to("cpu")))).to(device)


def weights_digest(modules: Sequence[nn.Module]) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class BankSpec:
    """What a bank holds."""

    num_images: int  # size N of the training set
    num_classes: int  # K of the label space
    views: int  # passes over the set, each with its own augmentation
    no_object_per_image: int  # unmatched queries kept of an image; 0 keeps all
    images_per_shard: int  # images in one file
    batch_size: int  # images extracted at once
    dtype: str  # ``float16`` or ``float32`` on disk
    seed: int  # of the choice of unmatched queries and of the matching
    # What else the features depend on (digest of the segmentor, data set, classes, configuration); plain values,
    # compared when the bank is opened.
    origin: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_choice("MODEL.PADING.FEATURE_BANK.DTYPE", self.dtype, ("float16", "float32"))
        if min(self.num_images, self.views, self.images_per_shard, self.batch_size) < 1:
            raise ConfigError(
                f"A feature bank of {self.num_images} images, {self.views} views, {self.images_per_shard} images per "
                f"shard and {self.batch_size} per batch: all must be at least 1."
            )

    @property
    def total(self) -> int:
        """Images in the bank, each view counted."""
        return self.num_images * self.views

    @property
    def num_shards(self) -> int:
        """Files of the bank."""
        return -(-self.total // self.images_per_shard)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the content depends on, JSON values only."""
        fields = {name: value for name, value in vars(self).items() if name not in ("batch_size", "origin")}
        return {"format": FORMAT_VERSION, **fields, **self.origin}


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard_{shard:05d}.safetensors"


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by their full names, such as "A.B"."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_manifest(folder: Path) -> tuple[dict[str, Any], bool]:
    """What the bank in a folder depends on, and whether it is complete.

    Raises:
        MissingFileError: there is no manifest.
        DataError: it is none of a feature bank.
    """
    path, cure = folder / MANIFEST, f"It is no manifest of a feature bank; delete the folder {folder}."
    manifest = read_json(path, required=("fingerprint", "complete"), cure=cure)
    found, complete = manifest["fingerprint"], manifest["complete"]
    if not isinstance(found, dict) or not isinstance(complete, bool):
        raise DataError(f"{path}: 'fingerprint' is no object, or 'complete' neither true nor false. {cure}")
    return found, complete


def is_complete(folder: str | Path) -> bool:
    """Whether there is a bank that nothing will be written to.

    Raises:
        DataError: the manifest is none of a feature bank.
    """
    return (Path(folder) / MANIFEST).is_file() and read_manifest(Path(folder))[1]


def _check_manifest(folder: Path, expected: Mapping[str, Any]) -> bool:
    """Tell whether the bank is complete.

    Raises:
        ValueError: if the folder holds a bank of something else; names what differs.
    """
    if not (folder / MANIFEST).is_file():
        return False
    found, complete = read_manifest(folder)
    found, expected = dict(flattened(found)), dict(flattened(expected))
    wrong = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
    if wrong:
        listed = "; ".join(f"{key}: {found.get(key)!r} there, {expected.get(key)!r} wanted" for key in wrong)
        raise ConfigError(
            f"The feature bank in {folder} is stale ({listed}). Delete that folder, or set "
            "MODEL.PADING.FEATURE_BANK.PATH to another one."
        )
    return complete


# Samples of n images -> the embeddings of n * Q queries, image by image.
Extract = Callable[[list[dict[str, Any]]], FeatureBatch]
# (start, batch size) -> batches of the training stream from that position on, whatever the rank.
OpenStream = Callable[[int, int], Iterator[list[dict[str, Any]]]]


def build_feature_bank(folder: str | Path, spec: BankSpec, extract: Extract, open_stream: OpenStream) -> "FeatureBank":
    """Write what is missing of a bank and open it. Shards are shared out over the ranks; collective.

    A stopped run goes on with the first missing shard, and each shard is the same whichever run writes it.

    Raises:
        ValueError: if the folder holds a stale bank.
    """
    folder = Path(folder)
    # JSON once there and back, so that tuples and lists compare equal.
    expected = json.loads(json.dumps(spec.fingerprint()))
    complete = _check_manifest(folder, expected)
    complete = complete and all(_shard_path(folder, shard).is_file() for shard in range(spec.num_shards))
    # Nobody writes into the folder before everybody has looked at it.
    complete = all(comm.all_gather(complete))
    if not complete:
        folder.mkdir(parents=True, exist_ok=True)
        if comm.is_main_process():
            write_json(folder / MANIFEST, {"fingerprint": expected, "complete": False})
        _write_missing_shards(folder, spec, extract, open_stream)
        comm.synchronize()
        if comm.is_main_process():
            write_json(folder / MANIFEST, {"fingerprint": expected, "complete": True})
        comm.synchronize()
    return FeatureBank(folder, spec)


def _write_missing_shards(folder: Path, spec: BankSpec, extract: Extract, open_stream: OpenStream) -> None:
    mine = range(comm.get_rank(), spec.num_shards, comm.get_world_size())
    missing = [shard for shard in mine if not _shard_path(folder, shard).is_file()]
    message = "Extracting features of %d x %d images into %s: %d of %d shards to write on this rank"
    logging.getLogger(__name__).info(message, spec.views, spec.num_images, folder, len(missing), len(mine))
    with tqdm(desc="features", unit="image", disable=not comm.is_main_process(), mininterval=5.0) as progress:
        for shard in missing:
            with preserved_random_state():
                # Matching compares masks on random points: a shard must not depend on what was computed before it.
                torch.manual_seed(spec.seed + shard)
                content = _shard_content(spec, shard, extract, open_stream, progress)
            write_shard(_shard_path(folder, shard), content, num_classes=spec.num_classes)


def _shard_content(
    spec: BankSpec, shard: int, extract: Extract, open_stream: OpenStream, progress: tqdm
) -> dict[str, npt.NDArray[Any]]:
    """Rows of the images [start, stop) as arrays, with the first row of each image in ``offsets``."""
    start = shard * spec.images_per_shard
    stop = min(start + spec.images_per_shard, spec.total)
    # What is kept is converted at once: half of the memory, and no views into the features of all queries.
    kept: dict[str, list[npt.NDArray[Any]]] = {"embeddings": [], "labels": [], "weights": []}
    sizes: list[int] = []
    stream = open_stream(start, spec.batch_size)
    while len(sizes) < stop - start:
        samples = next(stream)
        features = extract(samples).to("cpu")
        queries = len(features.labels) // len(samples)
        for i in range(min(len(samples), stop - start - len(sizes))):
            # Rows of image i of this batch: Q queries each, image by image.
            image = features.select(torch.arange(i * queries, (i + 1) * queries))
            # The seed is the image's place in the bank, not the batch's: batch size and restarts change nothing.
            image = _thin_out(image, spec, np.random.default_rng((spec.seed, start + len(sizes))))
            with np.errstate(over="ignore"):  # refused with the name of the shard
                kept["embeddings"].append(image.embeddings.numpy().astype(spec.dtype))
            kept["labels"].append(image.labels.numpy().astype(np.int64))
            kept["weights"].append(image.weights.numpy().astype(np.float32))
            sizes.append(len(image.labels))
            progress.update()
    arrays = {name: np.concatenate(parts) for name, parts in kept.items()}
    # (images + 1,) first rows: image i has the rows offsets[i] to offsets[i + 1].
    return {**arrays, "offsets": np.cumsum([0, *sizes], dtype=np.int64)}


def _thin_out(image: FeatureBatch, spec: BankSpec, rng: np.random.Generator) -> FeatureBatch:
    """Keep all matched queries of one image and some others, whose weight grows so that their sum stays."""
    others = (image.labels == spec.num_classes).nonzero().squeeze(1)
    wanted = spec.no_object_per_image
    if wanted == 0 or len(others) <= wanted:
        return image
    kept = others[torch.from_numpy(np.sort(rng.choice(len(others), wanted, replace=False)))]
    # no_object weight x number of rows stays what it was with all of them.
    weights = image.weights.clone()
    weights[kept] *= len(others) / wanted
    rows = torch.cat([(image.labels != spec.num_classes).nonzero().squeeze(1), kept])
    return FeatureBatch(image.embeddings, image.labels, weights).select(rows)


class FeatureBank:
    """A complete bank, memory-mapped; however large it is, it keeps at most some ``RELEASE_BYTES`` in memory.

    ``images(positions)`` returns the rows of some images.
    """

    def __init__(self, folder: str | Path, spec: BankSpec) -> None:
        """Open a bank.

        Raises:
            DataError: if it is incomplete, damaged, or not what ``spec`` describes.
        """
        folder = Path(folder)
        if not _check_manifest(folder, json.loads(json.dumps(spec.fingerprint()))):
            raise DataError(f"The feature bank in {folder} is missing or incomplete; build_feature_bank finishes it.")
        self.spec = spec
        self._bytes_read = 0
        self._shards: list[Shard] = []
        for number in range(spec.num_shards):
            path = _shard_path(folder, number)
            shard = Shard(path, num_classes=spec.num_classes)
            found = len(shard.arrays["offsets"]) - 1
            expected = min(spec.images_per_shard, spec.total - number * spec.images_per_shard)
            width = self._shards[0].arrays["embeddings"].shape[1] if self._shards else None
            if found != expected or width not in (None, shard.arrays["embeddings"].shape[1]):
                raise DataError(
                    f"{path} holds {found} images with features of width {shard.arrays['embeddings'].shape[1]}; "
                    f"expected {expected} images of width {width or 'any'}. Delete the folder {folder}."
                )
            self._shards.append(shard)

    def __len__(self) -> int:
        return self.spec.total

    def images(self, positions: Iterable[int]) -> FeatureBatch:
        """Rows of the images at some positions, in that order, as float32 on the CPU."""
        batch = concatenate(self._image(int(position)) for position in positions)
        if self._bytes_read > RELEASE_BYTES:
            for shard in self._shards:
                shard.release()
            self._bytes_read = 0
        return batch

    def _image(self, position: int) -> FeatureBatch:
        shard_index, row = divmod(position, self.spec.images_per_shard)
        shard = self._shards[shard_index].arrays
        first, last = shard["offsets"][row], shard["offsets"][row + 1]
        embeddings = shard["embeddings"][first:last]
        # The system reads whole pages, and some ahead.
        self._bytes_read += embeddings.nbytes + _READ_AHEAD
        return FeatureBatch(
            torch.from_numpy(embeddings.astype(np.float32)),
            torch.from_numpy(np.array(shard["labels"][first:last])),
            torch.from_numpy(np.array(shard["weights"][first:last])),
        )


class FeatureStream:
    """Endless batches from a bank; batch number p is a pure function of (seed, p).

    Has the interface of ``padding.data.streams.TrainStream``, but every rank gets the whole batch: batch-level losses
    need it, and it is small.
    """

    def __init__(self, open_bank: Callable[[], FeatureBank], *, images_per_batch: int, seed: int) -> None:
        """Remember how to open the bank; nothing is read before the first batch.

        Args:
            open_bank: called once, at the first batch.
            images_per_batch: images whose rows make a batch.
            seed: of the order of images.
        """
        self._open_bank = open_bank
        self._bank: FeatureBank | None = None
        self._images_per_batch = images_per_batch
        self._seed = seed
        self._position = 0

    def __iter__(self) -> Iterator[FeatureBatch]:
        while True:
            if self._bank is None:
                self._bank = self._open_bank()
            first, size = self._position * self._images_per_batch, len(self._bank)
            batch = self._bank.images(self._image_at(first + i, size) for i in range(self._images_per_batch))
            self._position += 1
            yield batch

    def fingerprint(self) -> str:
        """Nothing: every rank compares the bank with its own data when it is opened."""
        return ""

    def state_dict(self) -> dict[str, int]:
        """Number of the next batch."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with batch number ``state["position"]``."""
        self._position = state["position"]

    def _image_at(self, index: int, size: int) -> int:
        epoch, place = divmod(index, size)
        return int(epoch_order(self._seed, epoch, size)[place])
