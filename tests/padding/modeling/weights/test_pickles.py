# SPDX-License-Identifier: Apache-2.0
"""Arrays from pickles without numpy's own states: right values, and crafted files that crash nothing."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.pickles import read_pickle


def inner(value: Any) -> bytes:
    """Opcodes that push a value, without the head and the end of a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def pickled_dtype(state: Any, specification: Any = "f4") -> bytes:
    return b"cnumpy\ndtype\n" + inner((specification, False, True)) + b"R" + inner(state) + b"b"


def pickled_array(dtype: bytes, shape: Any, content: bytes) -> bytes:
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + b"X\x01\x00\x00\x00b" + b"tR"
    return start + b"(K\x01" + inner(shape) + dtype + b"\x89" + b"T" + struct.pack("<i", len(content)) + content + b"tb"


def write(path: Path, value: bytes) -> Path:
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s.")
    return path


PLAIN = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float32(2.5),
        np.zeros((0, 4), np.float16),
        np.array(True),
        np.array([1 + 2j]),
    ],
    ids=lambda array: f"{np.asarray(array).dtype}{np.shape(array)}",
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_are_what_numpy_reads(tmp_path: Path, array: Any, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"w": [array, (array, "text")]}, protocol))
    found = read_pickle(path)["w"]
    for value in (found[0], found[1][0]):
        np.testing.assert_array_equal(value, array)
        assert value.dtype == array.dtype
    assert found[1][1] == "text"


def test_an_array_by_hand_is_read(tmp_path: Path) -> None:
    """The crafted ones below differ from this one in one place each."""
    content = np.array([1.0, 2.0], "<f4").tobytes()
    path = write(tmp_path / "a.pkl", pickled_array(pickled_dtype(PLAIN), (2,), content))
    assert read_pickle(path)["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("state", "specification"),
    [
        ((3, "<", None, ("a",), {"a": (1, 2)}, -1, -1, 0), "f4"),  # fields of nothing
        ((3, "|", None, None, None, -1, -1, 63), "f4"),  # flags: reference counted
        ((3, "|", ("f4", (2,)), None, None, -1, -1, 0), "f4"),  # a sub-array
        ((3, "|", None, None, None, 1 << 40, -1, 0), "S4"),  # longer than its text says
        ((4, "<", None, None, None, -1, -1, 0, {"unit": 1}), "f4"),  # metadata
        ((3, "x", None, None, None, -1, -1, 0), "f4"),
        ((3, "<"), "f4"),
        (7, "f4"),
        (PLAIN, "O"),
        (PLAIN, "V8"),
        (PLAIN, "M8[s]"),
        (PLAIN, [("a", "f4")]),
    ],
)
def test_crafted_types_are_refused(tmp_path: Path, state: Any, specification: Any) -> None:
    path = write(tmp_path / "evil.pkl", pickled_array(pickled_dtype(state, specification), (1,), bytes(4)))
    with pytest.raises(CheckpointError, match=r"evil\.pkl: "):
        read_checkpoint(path)


@pytest.mark.parametrize("shape", [(3,), (-1,), (1 << 40, 1 << 40), ("a",), None, (2**62, 4)])
def test_shapes_must_account_for_every_byte(tmp_path: Path, shape: Any) -> None:
    path = write(tmp_path / "evil.pkl", pickled_array(pickled_dtype(PLAIN), shape, bytes(4)))
    with pytest.raises(CheckpointError, match=r"evil\.pkl: (holds 4 bytes for an array|describes an array)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"}X\x01\x00\x00\x00wcnumpy\nndarray\n" + inner((10**12,)) + b"Rs.",  # memory of its own
        b"}r\xff\xff\xff\xff.",  # the last of four thousand million places
        b"]" * 5000 + b"a" * 4999 + b".",
        b"}X\x01\x00\x00\x00w" + pickled_dtype(PLAIN) + b"s.",  # a type where an array should be
        b"}X\x01\x00\x00\x00w]q\x00}bs.",  # a state on a list
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
    ids=["constructor", "memo", "deep", "type", "state", "frame"],
)
def test_crafted_opcodes_are_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x04" + content)
    with pytest.raises(CheckpointError, match=r"evil\.pkl: "):
        read_checkpoint(tmp_path / "evil.pkl")


def test_what_is_named_often_is_looked_at_once(tmp_path: Path) -> None:
    nested: Any = [np.ones(1)]
    for _ in range(50):
        nested = [nested, nested]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.ones(2), "more": nested}, 4))
    assert read_pickle(tmp_path / "a.pkl")["w"].tolist() == [1.0, 1.0]


def test_arrays_of_the_other_byte_order_become_tensors(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.array([1, 2], ">i4")}, 4))
    assert read_checkpoint(tmp_path / "a.pkl")["w"].tolist() == [1, 2]
    for other in (np.zeros(2, np.longdouble), np.array([b"a"])):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": other}, 4))
        with pytest.raises(CheckpointError, match=r"a\.pkl: (entry 'w' is a ndarray, not an array of|asks for a type)"):
            read_checkpoint(tmp_path / "a.pkl")


def test_torch_files_get_the_same_guard(tmp_path: Path) -> None:
    """A .pth file whose pickle was exchanged for a crafted one, checksums included."""
    import zipfile

    torch.save({"w": np.ones(1, np.float32)}, tmp_path / "good.pth")
    assert read_checkpoint(tmp_path / "good.pth")["w"].tolist() == [1.0]
    state = (3, "|", None, ("a",), {"a": (1, 2)}, 5, 1, 63)
    evil = b"\x80\x02}X\x01\x00\x00\x00w" + pickled_dtype(state) + b"s."
    with zipfile.ZipFile(tmp_path / "good.pth") as old, zipfile.ZipFile(tmp_path / "evil.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, evil if entry.filename.endswith("data.pkl") else old.read(entry))
    with pytest.raises(CheckpointError, match=r"evil\.pth: asks for a type with fields"):
        read_checkpoint(tmp_path / "evil.pth")
