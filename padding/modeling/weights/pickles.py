# SPDX-License-Identifier: Apache-2.0
"""Pickles of numpy arrays, read without numpy's own ``__setstate__``, which a crafted state crashes.

A pickle names functions to call and states to set. Here it gets stand-ins for those of numpy: they note what was
asked for, check it, and the arrays are made from it at the end. torch's reader of ``.pth`` files takes the same ones.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from padding.data.damage import plain_array
from padding.errors import CheckpointError

_KINDS = "biufcSU"
_SPECIFICATION = re.compile(r"[<>=|]?[biufcSU?]\d{0,4}")
_NO_SUBTYPE = (None, None, None)  # of a dtype's state: base, names, fields


class _Dtype:
    """Stands for ``numpy.dtype``: plain kinds alone, without fields, sub-arrays, metadata and flags."""

    def __init__(self, specification: Any, align: Any = False, copy: Any = True) -> None:  # noqa: ARG002
        if not isinstance(specification, str) or not _SPECIFICATION.fullmatch(specification):
            raise CheckpointError(f"asks for the type {specification!r:.60}; only arrays of numbers are read")
        self.value = np.dtype(specification)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, base, names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) not in (8, 9):
            raise CheckpointError(f"sets a state of {type(state).__name__} on a type of number")
        _, order, *parts, size, alignment, flags = state[:8]
        plain = tuple(parts) == _NO_SUBTYPE and flags == 0 and not any(state[8:])
        if not plain or size not in (-1, self.value.itemsize) or not isinstance(alignment, int):
            raise CheckpointError("asks for a type with fields, flags or another size; only arrays of numbers are read")
        if order not in ("<", ">", "=", "|"):
            raise CheckpointError(f"names the byte order {order!r:.20}")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for ``numpy.ndarray``."""

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        # (version, shape, dtype, by column, bytes)
        if not isinstance(state, tuple) or len(state) != 5:
            raise CheckpointError(f"sets a state of {type(state).__name__} on an array")
        self._fill(*state[1:])

    def _fill(self, shape: Any, dtype: Any, by_column: Any, content: Any) -> None:
        if isinstance(content, str):  # Python 2's strings are bytes
            content = content.encode("latin1")
        sizes = shape if isinstance(shape, tuple) else (shape,)
        if (
            not isinstance(dtype, _Dtype)
            or not isinstance(content, bytes | bytearray)
            or not all(isinstance(size, int) for size in sizes)
        ):
            raise CheckpointError("describes an array of another make; only arrays of numbers are read")
        try:
            self.value = plain_array(content, dtype.value, sizes, by_column=bool(by_column))
        except ValueError as error:
            raise CheckpointError(f"holds {error}") from error


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Array:
    del shape, dtype  # of an empty array, whose state comes next
    if kind is not _Array:
        raise CheckpointError("makes an array of another class")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array._fill(shape, dtype, order == "F", content)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    array = _Array()
    array._fill((), dtype, False, content)
    assert array.value is not None
    return array.value[()]


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise CheckpointError(f"asks for the text encoding {encoding!r}; bytes in a pickle are latin1")
    return text.encode("latin1")


_CORES = ("numpy.core", "numpy._core")  # before numpy 2, and since
_STAND_INS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode_latin1,  # how numpy's scalars bring their bytes; torch allows it by itself since 2.5
    **{f"{core}.multiarray._reconstruct": _reconstruct for core in _CORES},
    **{f"{core}.multiarray.scalar": _scalar for core in _CORES},
    **{f"{core}.numeric._frombuffer": _frombuffer for core in _CORES},
}
STAND_INS: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
"""What takes the place of a name in a pickle, and that name, as torch's ``safe_globals`` wants them."""

_PLAIN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _ArraysOnlyUnpickler(_Unpickler):  # type: ignore[misc]
    """Builds arrays and containers, nothing else: a pickle may name any function, and loading would call it.

    Of Python's two readers the one in Python: that in C takes 64 GB for a wrong index of its memory.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in or a plain class for a global of the file; anything else is refused."""
        whole = f"{module}.{name}"
        if whole in _STAND_INS:
            return _STAND_INS[whole]
        if whole in _PLAIN:
            return _PLAIN[whole]
        raise CheckpointError(
            f"asks to run {whole}; only numpy arrays and plain containers are read from a .pkl file. If "
            "you trust it, convert it to .pth or .safetensors with the program that wrote it."
        )

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _Dtype | OrderedDict):
            raise CheckpointError(f"sets the state of a {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def read_pickle(path: Path) -> Any:
    """Content of a ``.pkl`` file: arrays of numbers and plain containers.

    Raises:
        CheckpointError: it asks for anything else; the caller names the file.
        Exception: one of many, if it is damaged.
    """
    # In memory, so that a wrong length asks for no more than there is; latin1: what Python 2 wrote.
    return resolved(_ArraysOnlyUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())


def resolved(content: Any) -> Any:
    """The same containers with arrays where stand-ins are.

    Raises:
        CheckpointError: an array has no values, or a type stands alone.
    """
    # What is named a thousand times, or holds itself, is looked at once; the original stays, so that ids are its own.
    done: dict[int, tuple[Any, Any]] = {}

    def resolve(value: Any) -> Any:
        if id(value) in done:
            return done[id(value)][1]
        if isinstance(value, _Dtype) or (isinstance(value, _Array) and value.value is None):
            raise CheckpointError("holds an array without values, or a type without an array")
        if isinstance(value, _Array):
            return value.value
        if type(value) is tuple:
            result = tuple(resolve(entry) for entry in value)
            done[id(value)] = (value, result)
            return result
        if isinstance(value, dict | list):
            done[id(value)] = (value, value)
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                value[key] = resolve(value[key])
        return value

    return resolve(content)
