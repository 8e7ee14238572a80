# SPDX-License-Identifier: Apache-2.0
"""Many images from disk to a model: read ahead by worker processes, grouped by size, shared between processes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from padding.data.photographs import read_photograph
from padding.errors import ConfigError, DataError, MissingFileError

Image = npt.NDArray[np.uint8]
_WAITING = 8  # batches of images that wait for others of their size


def process_share() -> tuple[int, int]:
    """Number of this process and number of all, as torchrun and most cluster schedulers say it; (0, 1) without.

    Raises:
        ConfigError: RANK and WORLD_SIZE contradict each other.
    """
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {count}; expected a number from 0 on, and how many there are")
    return int(rank), int(count)


class _Photographs(Dataset[tuple[int, Any]]):
    """Images as RGB, or the message of what is wrong with one."""

    def __init__(self, paths: Sequence[Path], value_range: Sequence[float]) -> None:
        self._paths = paths
        self._value_range = value_range

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, read_photograph(self._paths[index], value_range=self._value_range)
        except (DataError, MissingFileError) as error:
            return index, str(error)


def _as_it_is(sample: Any) -> Any:
    """Keep arrays, of which torch would make tensors."""
    return sample


def read_images(
    paths: Sequence[Path], *, value_range: Sequence[float] = (), num_workers: int = 0
) -> Iterator[tuple[int, Image | str]]:
    """Read images in order.

    Args:
        paths: of the images.
        value_range: see ``read_photograph``.
        num_workers: processes that read ahead; 0: none.

    Yields:
        Position of the path, and the image, (h, w, 3) uint8 RGB, or what is wrong with the file.
    """
    photographs = _Photographs(paths, value_range)
    yield from DataLoader(photographs, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)


def grouped_by_size(stream: Iterable[tuple[int, Image]], batch_size: int) -> Iterator[list[tuple[int, Image]]]:
    """Batches of images of one size; an image waits for others until too many wait, then the largest group goes.

    Args:
        stream: positions and images.
        batch_size: most images in a batch.
    """
    groups: dict[tuple[int, ...], list[tuple[int, Image]]] = defaultdict(list)
    waiting = 0
    for index, image in stream:
        group = groups[image.shape]
        group.append((index, image))
        waiting += 1
        if len(group) == batch_size or waiting >= _WAITING * batch_size:
            size = image.shape if len(group) == batch_size else max(groups, key=lambda key: len(groups[key]))
            full = groups.pop(size)
            waiting -= len(full)
            yield full
    yield from groups.values()
