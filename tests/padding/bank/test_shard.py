# SPDX-License-Identifier: Apache-2.0
"""A shard gives back what was written, and refuses what is damaged, of another make, or cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from padding.bank.shard import Shard, write_shard
from padding.data.damage import checksum_of
from padding.errors import DataError

K = 4
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(dtype: str = "float16") -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "embeddings": rng.normal(size=(6, 3)).astype(dtype),
        "labels": np.array([0, 1, 4, 2, 2, 4]),
        "weights": rng.random(6).astype(np.float32),
        "offsets": np.array([0, 3, 3, 6]),
    }


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arrays_are_read_as_written(tmp_path: Path, dtype: str) -> None:
    write_shard(tmp_path / "a", arrays(dtype), num_classes=K)
    found = Shard(tmp_path / "a", num_classes=K)
    for name, expected in arrays(dtype).items():
        np.testing.assert_array_equal(found.arrays[name], expected)
        assert found.arrays[name].dtype == expected.dtype
    found.release()
    np.testing.assert_array_equal(found.arrays["labels"], arrays()["labels"])


def test_every_byte_counts(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_shard(path, arrays(), num_classes=K)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(DataError, match=f"^{path} "):
            Shard(path, num_classes=K)
    for kept in (*range(0, len(content), 7), len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=f"^{path} "):
            Shard(path, num_classes=K)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="bytes, its header describes"):
        Shard(path, num_classes=K)


def headed(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>404 Not Found</body></html>",
        b"",
        headed([1, 2]),
        headed("text"),
        headed({}),
        headed({"__metadata__": {"crc32": "00000000"}}),
        headed({"__metadata__": {"crc32": "0"}, **dict.fromkeys(("embeddings", "labels", "offsets", "weights"), 7)}),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="a is no shard of a feature bank, or damaged"):
        Shard(tmp_path / "a", num_classes=K)


def set_to(name: str, index: int, value: float) -> Callable[[Arrays], None]:
    def change(content: Arrays) -> None:
        content[name][index] = value

    return change


def shortened(content: Arrays) -> None:
    content["labels"] = content["labels"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("embeddings", 2, np.nan), "features that are NaN or infinite"),
        (set_to("embeddings", 2, -np.inf), "features that are NaN or infinite"),
        (set_to("labels", 2, K + 1), r"labels from 0 to 5, expected 0 to 4"),
        (set_to("labels", 2, -1), r"labels from -1 to 4, expected 0 to 4"),
        (set_to("weights", 2, np.nan), "weights that are negative, NaN or infinite"),
        (set_to("weights", 2, -1), "weights that are negative, NaN or infinite"),
        (set_to("offsets", 1, 5), "offsets of images"),
        (set_to("offsets", 3, 7), "offsets of images"),
        (shortened, "6 features, 5 labels and 6 weights"),
    ],
)
def test_values_that_cannot_be_are_neither_written_nor_read(tmp_path: Path, change: Any, message: str) -> None:
    content, path = arrays(), tmp_path / "a"
    content["offsets"] = np.array([0, 3, 3, 6])
    change(content)
    if "offsets" in message:
        content["offsets"][2] = 3
    with pytest.raises(DataError, match=f"a is not written, it would hold {message}"):
        write_shard(path, content, num_classes=K)
    assert not path.exists()
    path.write_bytes(save(content, {"crc32": checksum_of(content)}))
    with pytest.raises(DataError, match=f"a holds {message}"):
        Shard(path, num_classes=K)
