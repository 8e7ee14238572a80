# SPDX-License-Identifier: Apache-2.0
"""Endless training streams with exact resume, and the loader of a test set.

The sample at stream position ``p`` is a function of the seed and ``p`` alone: not of the number of workers or
processes, nor of what else drew random numbers. Resuming is therefore a matter of one integer, whatever workers have
prefetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from padding.data.mappers import build_mapper
from padding.errors import CheckpointError, ConfigError, DataError, EmptyDataError

logger = logging.getLogger(__name__)

MapperFn = Callable[[dict[str, Any]], dict[str, Any] | None]
_USUAL_CROWDS = 0.1  # share of crowds among the objects above which it is worth a warning
_MAX_ATTEMPTS = 100


@contextlib.contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed ``random``, ``numpy`` and ``torch`` (CPU) from some integers >= 0, and restore their states afterwards.

    The generators of GPUs are left alone: ``torch.manual_seed`` would reset them as well.
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  (what augmentations use)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:3])  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[3]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def derived_seed(seed: int, which: int) -> int:
    """Seed of a further stream, far from the first one's neighbours, which a user may take for the next run."""
    return int(np.random.SeedSequence((seed, which)).generate_state(1)[0])


@lru_cache(maxsize=6)  # two epochs of each of three streams
def epoch_order(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """The shuffled indices (size,) of one pass over a data set."""
    return np.random.default_rng((seed, epoch)).permutation(size)


class _SampleAtPosition(Dataset[dict[str, Any]]):
    """The mapped sample at every position >= 0 of an endless sequence of shuffled epochs."""

    def __init__(self, dataset: Any, mapper: MapperFn, seed: int, avoided: _SampleAtPosition | None = None) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.avoided = avoided

    def entry_index(self, position: int, attempt: int) -> int:
        """Entry for a position; attempts after the first draw another one, since the first may never be usable."""
        index, size = self._drawn_index(position, attempt), len(self.dataset)
        if self.avoided is None or size == 1 or index != self.avoided.entry_index(position, 0):
            return index
        # A shift by 1 to size - 1 can be any other entry, and never the same.
        step = np.random.default_rng((self.seed, position, attempt, size)).integers(1, size)
        return int((index + step) % size)

    def _drawn_index(self, position: int, attempt: int) -> int:
        if attempt:
            return int(np.random.default_rng((self.seed, position, attempt)).integers(len(self.dataset)))
        epoch, place = divmod(position, len(self.dataset))
        return int(epoch_order(self.seed, epoch, len(self.dataset))[place])

    def __getitem__(self, position: int) -> dict[str, Any]:
        for attempt in range(_MAX_ATTEMPTS):
            entry = self.dataset[self.entry_index(position, attempt)]
            # Random numbers of a sample from (seed, position, attempt): any worker and any restart draws the same.
            with seeded(self.seed, position, attempt):
                sample = self.mapper(entry)
            if sample is not None:
                return sample
        raise EmptyDataError(
            f"{_MAX_ATTEMPTS} entries drawn for stream position {position} gave no sample, the last was "
            f"{entry.get('file_name', entry)}; do the annotations hold any usable segment?"
        )


class _Batches:
    """Endless lists of positions of one rank, from a start on; every iteration begins at the start again."""

    def __init__(self, *, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start = start + rank
        self.batch_size = batch_size
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        first, stride = self.start, self.world_size
        while True:
            # b positions of this rank, one of every W.
            following = first + stride * self.batch_size
            yield list(range(first, following, stride))
            first = following


class TrainStream:
    """Endless iterator over lists of training samples.

    With W processes, rank r reads the positions r, r + W, ... after the start, so that W processes with batches of b
    together read in every step what one process with batches of b * W reads.
    """

    def __init__(  # noqa: PLR0913  (rank and number of processes are two of nine)
        self,
        dataset: Sequence[Mapping[str, Any]] | Dataset[Any],
        mapper: MapperFn,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
        differs_from: TrainStream | None = None,
    ) -> None:
        """Nothing is read until the first batch is asked for.

        Args:
            dataset: data-set entries, a list or a map-style data set.
            mapper: entry to sample; None: another entry is tried in its place.
            batch_size: samples per list, that is per process and step.
            seed: >= 0; the same on all ranks.
            start: global position of the first sample.
            rank: of this process; default: from Detectron2's communication state.
            world_size: number of processes; default likewise.
            num_workers: processes that map ahead; 0: this one maps.
            differs_from: a stream of the same entries; at no position do both read the same one, if there are two.

        Raises:
            ValueError: the data set is empty, a number is out of range, or the other stream has other entries.
        """
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise DataError("the training set has no image; were all dropped as empty, or by the unseen policy?")
        if batch_size < 1 or seed < 0 or start < 0:
            raise ValueError(f"need batch_size >= 1, seed >= 0, start >= 0; got {batch_size}, {seed}, {start}")
        # Serialised entries are unpickled anew for every use (no mapper can spoil them) and shared with forked workers.
        listed = isinstance(dataset, list | tuple)
        entries: Any = DatasetFromList(list(dataset), copy=False) if listed else dataset  # type: ignore[arg-type]
        avoided = None if differs_from is None else differs_from._samples
        if avoided is not None and len(avoided.dataset) != len(entries):
            raise ValueError(f"a stream of {len(entries)} images cannot differ from one of {len(avoided.dataset)}")
        self._samples: _SampleAtPosition = _SampleAtPosition(entries, mapper, seed, avoided)
        self._batch_size = batch_size
        self._rank = comm.get_rank() if rank is None else rank
        self._world_size = comm.get_world_size() if world_size is None else world_size
        if not 0 <= self._rank < self._world_size:
            raise ValueError(f"rank {self._rank} does not exist among {self._world_size} processes")
        self._num_workers = num_workers
        self._position = start
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    @property
    def position(self) -> int:
        """Global position of the next unread sample of rank 0; the same on all ranks after the same number of steps."""
        return self._position

    @property
    def epoch(self) -> float:
        """Passes over the data set so far."""
        return self._position / len(self._samples.dataset)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        # The loader lives as long as nobody moves the position: workers keep reading ahead.
        if self._batches is None:
            with _signals_held():  # a worker is not to be interrupted before it is ready for that
                self._batches = iter(self._build_loader())
        batch = next(self._batches)
        # Counted when handed out, not when read ahead: a resumed training reads prefetched samples again.
        self._position += self._batch_size * self._world_size
        return batch

    def _build_loader(self) -> DataLoader[Any]:
        batches = _Batches(
            start=self._position, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
        )
        return DataLoader(
            self._samples,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self._num_workers,
            collate_fn=list,
            worker_init_fn=_init_worker,
            pin_memory=torch.cuda.is_available(),  # copies to a GPU do not wait for it, see normalize_image
            # Without its own generator the loader draws a seed from the global one.
            generator=torch.Generator(),
        )

    def fingerprint(self) -> str:
        """Number of images and a digest of their ids, names, sizes and classes; folders may differ."""
        digest = hashlib.sha256()
        for index in range(len(self._samples.dataset)):
            digest.update(repr(_identity(self._samples.dataset[index])).encode())
        return f"{len(self._samples.dataset)} images ({digest.hexdigest()[:12]})"

    def state_dict(self) -> dict[str, int]:
        """Position of the next unread sample; prefetched ones count as unread."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a stored position; what was prefetched is thrown away."""
        self._position = int(state["position"])
        self._batches = None


class PairedStream:
    """Several endless streams read side by side; a batch holds the samples of the first, then those of the second, ...

    Every stream has its own seed, position and number of samples, so that one may run through its data set many times
    while another has not finished the first. All positions are part of a checkpoint.
    """

    def __init__(
        self, streams: Mapping[str, TrainStream], *, partners: Mapping[str, TrainStream] | None = None
    ) -> None:
        """Nothing is read until the first batch is asked for.

        Args:
            streams: by name, in the order of the samples in a batch.
            partners: by the name of a stream, another one of the same batch size with another seed, which supplies a
                ``partner`` for each sample; with ``differs_from`` set to the stream, never the same image.

        Raises:
            ValueError: a partner of a stream that does not exist.
        """
        self.streams = dict(streams)
        self.partners = dict(partners or {})
        unknown = sorted(set(self.partners) - set(self.streams))
        if unknown:
            raise ValueError(f"partners of {unknown[0]!r}, but the streams are {', '.join(self.streams)}")

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        batch: list[dict[str, Any]] = []
        for name, stream in self.streams.items():
            samples = next(stream)
            if name in self.partners:
                pairs = zip(samples, next(self.partners[name]), strict=True)
                samples = [{**sample, "partner": other} for sample, other in pairs]
            batch += samples
        return batch

    @property
    def position(self) -> int:
        """Samples drawn so far by all ranks together, partners not counted."""
        return sum(stream.position for stream in self.streams.values())

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each data set so far."""
        return {name: stream.epoch for name, stream in self.streams.items()}

    def fingerprint(self) -> str:
        """Those of all streams."""
        return ", ".join(f"{name}: {stream.fingerprint()}" for name, stream in self.streams.items())

    def state_dict(self) -> dict[str, Any]:
        """Positions of all streams."""
        return {
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "partners": {name: stream.state_dict() for name, stream in self.partners.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at stored positions.

        Raises:
            CheckpointError: if the state is that of other streams.
        """
        for own, saved in ((self.streams, state.get("streams", {})), (self.partners, state.get("partners", {}))):
            if set(own) != set(saved):
                raise CheckpointError(
                    f"the checkpoint holds the positions of streams {sorted(saved)}, this training has {sorted(own)}; "
                    "resume with the configuration that wrote it, or start anew with MODEL.WEIGHTS"
                )
            for name, stream in own.items():
                stream.load_state_dict(saved[name])


def _identity(entry: Mapping[str, Any]) -> list[Any]:
    """What a sample of an entry depends on, without the folders that its files are in."""
    files = [Path(str(value)).name for key, value in sorted(entry.items()) if key.endswith("file_name")]
    sizes = [entry.get(key) for key in ("image_id", "height", "width")]
    items = [*entry.get("segments_info", ()), *entry.get("annotations", ())]
    return [files, sizes, [(item.get("id"), item.get("category_id"), item.get("bbox")) for item in items]]


_HELD = frozenset((signal.SIGINT, signal.SIGTERM))


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals that end a process wait, also for the processes that are forked meanwhile."""
    came: list[int] = []
    # Another thread, which the mask does not concern, may take a signal; its handler runs in the main thread then.
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {kind: signal.signal(kind, lambda number, _: came.append(number)) for kind in _HELD} if in_main else {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for kind, handler in handlers.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
        for number in set(came):
            signal.raise_signal(number)


def leave_signals_to_trainer() -> None:
    """Outlive Ctrl-C and a SIGTERM to all processes of a job: the trainer ends its workers when its work is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    # Blocked in all threads, so that the one that waits gets it, and with it who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _init_worker(worker_id: int) -> None:
    del worker_id
    leave_signals_to_trainer()
    cv2.setNumThreads(0)  # one process per core is the parallelism; OpenCV's thread pool does not survive a fork


def load_training_entries(names: Sequence[str], *, filter_empty: bool) -> list[dict[str, Any]]:
    """Entries of some registered data sets, one after the other.

    All have the same classes in the same order. ``filter_empty`` drops images without a segment or object that could be
    a target (entries with neither are kept).

    Raises:
        ConfigError: nothing is left, or the label spaces differ.
    """
    spaces = {name: getattr(MetadataCatalog.get(name), "class_split", None) for name in names}
    if len({split.names for split in spaces.values() if split is not None}) > 1:
        sizes = {name: split.num_classes for name, split in spaces.items() if split is not None}
        raise ConfigError(f"DATASETS.TRAIN mixes label spaces: {sizes} classes; train on sets with the same classes")
    entries: list[dict[str, Any]] = [entry for name in names for entry in DatasetCatalog.get(name)]
    crowds = _report_crowds(entries, ", ".join(names))
    kept = [entry for entry in entries if not filter_empty or _has_target(entry)]
    if len(kept) < len(entries):
        logger.info("%s: kept %d of %d images, the others hold no segment", ", ".join(names), len(kept), len(entries))
    if not kept:
        raise ConfigError(
            f"none of the {len(entries)} images of {', '.join(names)} holds a segment to train on; "
            + (crowds or "check the annotation file, the unseen policy and DATALOADER.FILTER_EMPTY_ANNOTATIONS")
        )
    return kept


def _report_crowds(entries: Sequence[Mapping[str, Any]], names: str) -> str:
    """Log how many objects and segments are crowds; returned is that sentence, "" where there are none."""
    total = crowds = 0
    for entry in entries:
        items = (*entry.get("segments_info", ()), *entry.get("annotations", ()))
        total += len(items)
        crowds += sum(bool(item.get("iscrowd", 0)) for item in items)
    if not crowds:
        return ""
    report = (
        f"{crowds} of {total} objects are left out of instance and panoptic training as crowds: iscrowd 1 means "
        "that nobody counted the objects of a region. Where each is one object (CVAT and SAM write iscrowd 1 beside "
        "run-length code), set iscrowd to 0 in the JSON"
    )
    # COCO's own share is about one in a hundred.
    logger.log(logging.WARNING if crowds > _USUAL_CROWDS * total else logging.INFO, "%s: %s", names, report)
    return report


def _has_target(entry: Mapping[str, Any]) -> bool:
    annotated = [entry[key] for key in ("segments_info", "annotations") if key in entry]
    return not annotated or any(not item.get("iscrowd", 0) for items in annotated for item in items)


def build_eval_loader(cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
    """Loader over every image of a registered test set, shared among the processes, batches of one."""
    return build_detection_test_loader(
        dataset=DatasetCatalog.get(dataset_name),
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
