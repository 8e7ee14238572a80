# SPDX-License-Identifier: Apache-2.0
"""What a trained model remembers of its training: a few real features of every class, and how frequent each class is.

Written beside the checkpoint at the end of the second stage, some megabytes. With it new classes are added later
without images, without the feature bank and without the segmentor (``padding/new_class_rows.py``). Not in the paper.

Letters: K classes of the label space, n rows, D width of a feature.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from padding.bank.feature_bank import BankSpec, FeatureBank, FeatureBatch, read_manifest
from padding.data.damage import checksum_of
from padding.data.files import write_bytes
from padding.errors import ConfigError, DataError, MissingFileError

FILE_NAME = "seen_statistics.safetensors"
FORMAT_VERSION = 2  # 2: with a checksum
# Images read from a bank at once.
_CHUNK = 512


class SeenStatistics:
    """A weighted sample without replacement of each class, of bounded size, from any number of features.

    Every row draws an exponential key over its weight; the rows of the smallest keys are kept, so that batches may come
    in any number and order. ``rows()`` gives them back with weights that sum, class by class, to the expected number of
    queries in an image.

    Attributes:
        names: class names of the label space; a row of no-object has the label K.
        origin: digest of the segmentor whose features these are; "" if unknown.
        num_images: images that were taken in.
    """

    def __init__(
        self, names: tuple[str, ...], *, per_class: int, no_object: int, origin: str = "", seed: int = 0
    ) -> None:
        """Start empty.

        Args:
            names: of the K classes.
            per_class: rows kept of each class.
            no_object: rows kept of no-object.
            origin: digest of the segmentor.
            seed: of the sampling.
        """
        if per_class < 1 or no_object < 1:
            raise ConfigError(
                f"MODEL.PADING.STATISTICS.PER_CLASS is {per_class} and NO_OBJECT {no_object}; expected at least 1 each"
            )
        self.names = tuple(names)
        self.origin = origin
        self.num_images = 0
        self._capacity = torch.full((len(names) + 1,), per_class)
        self._capacity[-1] = no_object
        self._seed = seed
        self._totals = torch.zeros(len(names) + 1, dtype=torch.float64)
        self._limit = torch.full((len(names) + 1,), float("inf"))
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0

    def add(self, batch: FeatureBatch, num_images: int) -> None:
        """Take in the features of some images; leaves the global random state alone."""
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self.num_images)
        labels, weights = batch.labels.cpu(), batch.weights.cpu()
        # Weighted sampling without replacement: rows of the smallest Exp(1) / weight (Efraimidis and Spirakis).
        keys = torch.empty(len(labels)).exponential_(generator=generator) / weights
        self.num_images += num_images
        self._totals.index_add_(0, labels, weights.double())
        # A key above the largest kept one of a full class can never enter: most rows are not even copied.
        chosen = (keys < self._limit[labels]).nonzero().squeeze(1)
        if len(chosen):
            embeddings = batch.embeddings[chosen.to(batch.embeddings.device)].detach().to("cpu", torch.float16)
            self._kept.append((embeddings, labels[chosen], keys[chosen]))
            self._waiting += len(chosen)
        if self._waiting > int(self._capacity.sum()):
            self._thin_out()

    def rows(self) -> FeatureBatch:
        """The kept features as float32, ordered by class; weights sum to the class's frequency in an image.

        Raises:
            DataError: if nothing was taken in.
        """
        embeddings, labels, _ = self._thin_out()
        if not len(labels):
            raise DataError("no features were taken in; statistics are collected in training or from a feature bank")
        kept = torch.bincount(labels, minlength=len(self.names) + 1)
        # Frequency of the class in an image, shared out over its kept rows.
        frequency = self._totals / self.num_images / kept.clamp(min=1)
        return FeatureBatch(embeddings.float(), labels, frequency[labels].float())

    def for_label_space(self, names: tuple[str, ...]) -> FeatureBatch:
        """``rows()`` with the labels of another label space, its no-object included.

        Raises:
            DataError: if it lacks a class that has rows here.
        """
        batch = self.rows()
        index = {name: i for i, name in enumerate(names)}
        used = [self.names[i] for i in batch.labels.unique().tolist() if i < len(self.names)]
        missing = [name for name in used if name not in index]
        if missing:
            raise DataError(f"the seen statistics hold features of {missing[:5]}, which are no classes of this model")
        ids = torch.tensor([index.get(name, -1) for name in self.names] + [len(names)])
        return batch._replace(labels=ids[batch.labels])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        embeddings, labels, keys = self._thin_out()
        named = {name: getattr(self, name) for name in ("names", "origin", "num_images")}
        description = {"format": FORMAT_VERSION, **named, "seed": self._seed}
        return {
            "embeddings": embeddings,
            "labels": labels,
            "keys": keys,
            "totals": self._totals,
            "capacity": self._capacity,
            "description": json.dumps(description),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], where: str) -> "SeenStatistics":
        """What ``state_dict`` described.

        Args:
            state: its result.
            where: file named in the error.

        Raises:
            DataError: if it is something else.
        """
        try:
            description = json.loads(state["description"])
            if description["format"] != FORMAT_VERSION:
                raise DataError(f"format {description['format']}, expected {FORMAT_VERSION}")
            capacity = state["capacity"]
            result = cls(
                tuple(description["names"]),
                per_class=int(capacity[0]),
                no_object=int(capacity[-1]),
                origin=description["origin"],
                seed=description["seed"],
            )
            result.num_images = description["num_images"]
            result._totals = state["totals"].double()
            result._kept = [(state["embeddings"], state["labels"], state["keys"])]
            result._waiting = len(state["labels"])
            result._thin_out()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"{where}: no seen statistics ({type(error).__name__}: {error}); write them again with --statistics "
                "and the folder of a feature bank, or train again"
            ) from error
        return result

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a killed process leaves the old file or none."""
        state = self.state_dict()
        description = state.pop("description")
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        checksum = checksum_of(_as_arrays(tensors), description)
        write_bytes(path, safetensors.torch.save(tensors, {"description": description, "crc32": checksum}))

    @classmethod
    def load(cls, path: str | Path) -> "SeenStatistics":
        """Read what ``save`` wrote.

        Raises:
            MissingFileError: no such file.
            DataError: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file of seen statistics")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                state: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not readable ({error}); it is cut short or something else") from error
        description = metadata.get("description", "")
        if metadata.get("crc32", "") != checksum_of(_as_arrays(state), description):
            raise DataError(
                f"{path}: damaged, or of an older version: its content does not have the checksum that was written. "
                "Write it again with --statistics and the folder of a feature bank, or delete it: a training that goes "
                "on collects anew"
            )
        state["description"] = description
        return cls.from_state_dict(state, str(path))

    def _thin_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the rows of the smallest keys of each class, ordered by class and key."""
        if not self._kept:
            return torch.zeros(0, 0, dtype=torch.float16), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        embeddings, labels, keys = (torch.cat(column) for column in zip(*self._kept, strict=True))
        # By class, and by key within it: two stable sorts, the less important first.
        order = keys.argsort(stable=True)
        order = order[labels[order].argsort(stable=True)]
        counts = torch.bincount(labels, minlength=len(self._capacity))
        # Rank of a row within its class.
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(order)) - first[labels[order]]
        order = order[rank < self._capacity[labels[order]]]
        embeddings, labels, keys = embeddings[order], labels[order], keys[order]
        full = counts >= self._capacity
        largest = torch.zeros(len(self._capacity)).scatter_reduce_(0, labels, keys, "amax")
        self._limit = torch.where(full, largest, torch.inf)
        self._kept, self._waiting = [(embeddings, labels, keys)], 0
        return self._kept[0]


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Bytes of each tensor, by a name that also says its type and shape."""
    return {
        f"{name} {tensor.dtype} {tuple(tensor.shape)}": tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        for name, tensor in tensors.items()
    }


def statistics_of_bank(bank: FeatureBank, empty: SeenStatistics) -> SeenStatistics:
    """Fill empty statistics from all images of a bank."""
    for start in range(0, len(bank), _CHUNK):
        stop = min(start + _CHUNK, len(bank))
        empty.add(bank.images(range(start, stop)), stop - start)
    return empty


def open_bank(folder: str | Path) -> FeatureBank:
    """Open a complete bank as its own manifest describes it.

    Raises:
        DataError: if there is no manifest, or the bank is incomplete or damaged.
    """
    try:
        fingerprint, _ = read_manifest(Path(folder))
        fields = {field.name: field.type for field in dataclasses.fields(BankSpec)}
        known = {name: fingerprint.pop(name) for name in fields if name not in ("origin", "batch_size")}
        wrong = [name for name, value in known.items() if type(value) is not fields[name]]
        if wrong:
            raise DataError(f"{wrong[0]} is {known[wrong[0]]!r}, which is no {fields[wrong[0]]}")
        fingerprint.pop("format", None)
        spec = BankSpec(**known, batch_size=1, origin=fingerprint)
    except (DataError, MissingFileError, KeyError) as error:
        raise DataError(f"{folder} is no feature bank ({type(error).__name__}: {error})") from error
    return FeatureBank(folder, spec)


class StatisticsHook(HookBase):
    """Writes the statistics whenever a checkpoint is written, so that any checkpoint can be extended.

    The trainer calls ``add`` with the features of each step; where there is a bank, they are read from it instead.
    """

    def __init__(
        self,
        statistics: SeenStatistics,
        folder: str | Path,
        *,
        period: int,
        images_per_step: int,
        origin: Callable[[], str],
        bank: Callable[[], FeatureBank] | None,
    ) -> None:
        """Remember where to write; nothing is read before training starts.

        Args:
            statistics: empty.
            folder: OUTPUT_DIR.
            period: iterations between checkpoints.
            images_per_step: images behind the features of one step.
            origin: digest of the segmentor, asked when its weights are loaded.
            bank: opens the feature bank, on all ranks together; None if the training has none.
        """
        self.statistics = statistics
        self._path = Path(folder) / FILE_NAME
        self._period = period
        self._images_per_step = images_per_step
        self._origin = origin
        self._bank = bank

    def before_train(self) -> None:
        """Go on with what an interrupted training had collected."""
        self.statistics.origin = self._origin()
        # A bank is read again instead, on all ranks: whether the file is there may differ between machines.
        resumed = self.trainer.start_iter > 0 and self._bank is None and comm.is_main_process()
        if resumed and self._path.is_file():
            stored = SeenStatistics.load(self._path)
            if stored.names == self.statistics.names and stored.origin == self.statistics.origin:
                self.statistics = stored

    def add(self, features: FeatureBatch) -> None:
        """Take in the features of one step, which all ranks hold."""
        if self._bank is None and comm.is_main_process():
            self.statistics.add(features, self._images_per_step)

    def after_step(self) -> None:
        """Write with the period of checkpoints, after the last step and with the checkpoint of a SIGTERM."""
        iteration = self.trainer.iter + 1
        if iteration % self._period and iteration != self.trainer.max_iter and not self.trainer.stopping:
            return
        if self._bank is not None and self.statistics.num_images == 0:
            statistics_of_bank(self._bank(), self.statistics)
        if comm.is_main_process():
            self.statistics.save(self._path)
