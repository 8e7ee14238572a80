# SPDX-License-Identifier: Apache-2.0
"""A model in one safetensors file: weights and whatever else a checkpoint holds, configuration and label spaces.

The header's JSON (``segmentation_model``) describes everything that is no tensor; nothing in the file is executed. A
tensor ``model/backbone.stem.weight`` of the file is the entry ``backbone.stem.weight`` of the mapping ``model``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from padding.data.class_split import ClassSplit
from padding.data.damage import checksum_of
from padding.errors import CheckpointError, MissingFileError

FORMAT_VERSION = 1
_KEY = "segmentation_model"
_TENSOR = "$tensor"  # stands in the JSON where a tensor was


class PackedClasses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ``ClassSplit`` as JSON."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    dataset_ids: tuple[int, ...]
    unseen_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, split: ClassSplit) -> "PackedClasses":
        """Describe a split."""
        unseen = tuple(sorted(split.unseen_names))
        return cls(split.names, split.is_thing, split.dataset_ids, unseen, split.colors)

    def split(self) -> ClassSplit:
        """The split that was described."""
        return ClassSplit(self.names, self.is_thing, self.dataset_ids, frozenset(self.unseen_names), self.colors)


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of a packed model but its tensors.

    Attributes:
        format: version of this layout.
        configuration: YAML, complete.
        learned: classes of the training sets.
        predicted: classes of the model.
        results: of its last evaluation, such as ``{"sem_seg/mIoU": 61.2}``; may be empty.
        crc32: checksum over the tensors and this description without it.
        entries: the checkpoint's mappings and plain values; ``{"$tensor": NAME}`` in place of a tensor.
    """

    format: int
    configuration: str
    learned: PackedClasses
    predicted: PackedClasses
    results: dict[str, float | None]
    crc32: str = ""
    entries: dict[str, Any] = {}


def is_packed(path: str | Path) -> bool:
    """Tell a packed model from other safetensors files, by its header alone; False for what is no such file."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError, ValueError):
        return False


def packed_bytes(description: Description, content: Mapping[str, Any]) -> bytes:
    """A packed model as the bytes of its file; equal content gives equal bytes.

    Args:
        description: without ``entries``.
        content: a checkpoint: ``model`` and whatever stands beside it; mappings, lists, tensors and plain values.

    Raises:
        TypeError: for anything else in it.
    """
    tensors: dict[str, Tensor] = {}
    entries = _without_tensors(content, "", tensors)
    plain = msgspec.structs.replace(description, entries=entries, crc32="")
    text = msgspec.json.encode(plain, order="sorted").decode()
    signed = text.replace(_crc32_field(""), _crc32_field(_checksum(tensors, text)), 1)
    # One entry: safetensors writes several in any order.
    return safetensors.torch.save(tensors, {_KEY: signed})


def read_description(path: str | Path) -> Description:
    """Read what a packed model says about itself; its tensors are left alone.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it is no packed model, of another version, or damaged.
    """
    return _parsed(path, _open(path)[1].get(_KEY))


def read_packed(path: str | Path) -> dict[str, Any]:
    """The checkpoint inside a packed model, as it was packed; tensors on the CPU.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it is no packed model, of another version, or damaged.
    """
    tensors, metadata = _open(path, with_tensors=True)
    description = _parsed(path, metadata.get(_KEY))
    text = metadata[_KEY].replace(_crc32_field(description.crc32), _crc32_field(""), 1)
    if description.crc32 != _checksum(tensors, text):
        raise CheckpointError(
            f"{path}: damaged, its content does not have the checksum that was written; fetch it again"
        )
    content = _with_tensors(description.entries, tensors, path)
    assert isinstance(content, dict)
    return content


def _open(path: str | Path, *, with_tensors: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such model file; python -m padding.pack writes one")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in (file.keys() if with_tensors else ())}
            return tensors, file.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a safetensors file ({error}); it is cut short or something else: fetch it again"
        ) from error


def _parsed(path: str | Path, text: str | None) -> Description:
    if text is None:
        raise CheckpointError(
            f"{path}: holds weights alone; python -m padding.pack makes a model of them and their configuration"
        )
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: a packed model of format {version}, this project reads {FORMAT_VERSION}; pack it again"
            )
        description = msgspec.json.decode(text, type=Description)
        for space in (description.learned, description.predicted):
            space.split()  # its lengths and names fit
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({error}); pack the model again") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its label space is damaged ({error}); pack the model again") from error
    return description


class _Version(msgspec.Struct):
    format: int


def _crc32_field(value: str) -> str:
    return f'"crc32":"{value}"'


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    # Bytes alone, whose view numpy knows of every type of torch; types and shapes are in the sizes and names.
    arrays = {
        f"{name} {tensor.dtype} {tuple(tensor.shape)}": tensor.reshape(-1).view(torch.uint8).numpy()
        for name, tensor in tensors.items()
    }
    return checksum_of(arrays, text)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON of a value, whose tensors are put into ``tensors`` under their paths."""
    if isinstance(value, Tensor):
        if name in tensors:
            raise TypeError(f"two tensors are called {name}")
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # no two share memory
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        below = f"{name}/" if name else ""
        return {str(key): _without_tensors(inner, f"{below}{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, f"{name}/{place}", tensors) for place, inner in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; a packed model holds tensors and plain values")


def _with_tensors(value: Any, tensors: Mapping[str, Tensor], path: str | Path) -> Any:
    if isinstance(value, dict) and value.keys() == {_TENSOR}:
        if value[_TENSOR] not in tensors:
            raise CheckpointError(f"{path}: lacks its tensor {value[_TENSOR]}; fetch it again")
        return tensors[value[_TENSOR]]
    if isinstance(value, dict):
        return {key: _with_tensors(inner, tensors, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_tensors(inner, tensors, path) for inner in value]
    return value
