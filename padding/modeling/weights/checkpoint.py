# SPDX-License-Identifier: Apache-2.0
"""Reads weight files without running their code.

Formats: Detectron2 model zoo ``.pkl`` (Mask2Former, ImageNet backbones), ``.pth``/``.pt``/``.bin`` (PADing,
transformers, our own trainer) and ``.safetensors``, packed models of this project among them.
"""

import pickle
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import get_cache_dir
from torch import Tensor

from padding.data.damage import check_stored_zip
from padding.errors import CheckpointError, MissingFileError
from padding.modeling.weights.packed import is_packed, read_packed
from padding.modeling.weights.pickles import STAND_INS, read_pickle, resolved
from padding.packages import installed_file

State = dict[str, Tensor]
_LONG_DOUBLE = "gG"  # numbers of numpy that torch has no type for
_SUFFIXES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


def read_checkpoint(path: str | Path) -> State:
    """Read the network weights of a file; trainer state in it is left alone.

    Args:
        path: a local file, ``package://NAME/PATH`` for a file of an installed distribution or module, or
            ``detectron2://...`` / ``https://...`` if it is already in the local cache.

    Returns:
        Name to tensor on the CPU, names as in the file.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it would have to be downloaded, is cut short, is no checkpoint, or asks for code to be run.
    """
    return read_with_entries(path)[0]


def read_with_entries(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Like ``read_checkpoint``, and what the file holds beside its weights."""
    local = _local_path(str(path))
    if not local.is_file():
        raise MissingFileError(f"{local}: no such weight file; check MODEL.WEIGHTS")
    readers: dict[str, Callable[[Path], Any]] = {
        ".pkl": read_pickle,
        ".pth": read_torch,
        ".pt": read_torch,
        ".bin": read_torch,
        ".safetensors": safetensors.torch.load_file,
    }
    if local.suffix not in readers:
        raise CheckpointError(f"{local}: unknown kind '{local.suffix}'; weights are read from {', '.join(readers)}")
    try:
        content = read_packed(local) if is_packed(local) else readers[local.suffix](local)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(f"{local}: ") else f"{local}: {message}") from error
    except Exception as error:  # each format fails in its own ways; the cure is the same
        raise CheckpointError(
            f"{local}: cannot be read as a {local.suffix} checkpoint ({type(error).__name__}: {first_line(error)}). "
            "The file is cut short or is something else: compare its size with the source and fetch it again."
        ) from error
    weights, entries = _weights_of(local, content)
    return {name: _as_tensor(local, name, value) for name, value in weights.items()}, entries


def _local_path(path: str) -> Path:
    """Where the file lies on this machine; remote names are looked up in the cache, never fetched."""
    packaged = re.fullmatch(r"package:/+([^/]+)/?(.*)", path)  # Path() leaves one slash of two
    if packaged is not None:
        return installed_file(packaged[1], packaged[2], _SUFFIXES)
    if "://" not in path:
        return Path(path).expanduser()
    prefix = Detectron2Handler.PREFIX
    url = Detectron2Handler.S3_DETECTRON2_PREFIX + path.removeprefix(prefix) if path.startswith(prefix) else path
    cached = Path(get_cache_dir()) / urlparse(url).path.lstrip("/")
    if cached.is_file():
        return cached
    raise CheckpointError(
        f"{path} is not on this machine, and weights are never downloaded silently. Fetch it once with\n"
        f"  curl -fL --create-dirs -o {shlex.quote(str(cached))} {shlex.quote(url)}\n"
        "and run again, or set MODEL.WEIGHTS to a local file (an empty string trains from scratch)."
    )


def read_torch(path: Path) -> Any:
    """The content of a ``.pth`` file: tensors, arrays and plain containers.

    Raises:
        CheckpointError: if it asks for anything else to be built; the caller names the file.
        Exception: one of many, if it is damaged.
    """
    check_stored_zip(path)  # torch does not compare the checksums
    with torch.serialization.safe_globals(STAND_INS):
        try:
            return resolved(torch.load(path, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if wanted is None:
                raise
            raise CheckpointError(
                f"asks to build {wanted.group(1)}; only tensors, arrays and plain containers are read. If you trust "
                "it, save its weights alone with the program that wrote it."
            ) from error


def _weights_of(path: Path, content: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The name -> array part of a file's content, and what stands beside it."""
    entries: dict[str, Any] = {}
    if isinstance(content, Mapping) and "blobs" in content:
        raise CheckpointError(
            f"{path}: Caffe2 layout ('blobs'); use the torchvision weights of the same backbone instead"
        )
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            entries = {name: value for name, value in content.items() if name != key}
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} without named weights; expected a dict of arrays, or one "
            "under 'model'"
        )
    return content, entries


def _as_tensor(path: Path, name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if (
        isinstance(value, np.ndarray | np.generic)
        and value.dtype.kind in "biufc"
        and value.dtype.char not in _LONG_DOUBLE
    ):
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    raise CheckpointError(
        f"{path}: entry '{name}' is a {type(value).__name__}, not an array of numbers; expected network weights alone, "
        "or under 'model'"
    )


def first_line(error: Exception) -> str:
    """Of a message that may be long."""
    return str(error).strip().split("\n")[0][:200]
