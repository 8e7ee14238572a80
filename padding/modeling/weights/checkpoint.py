# SPDX-License-Identifier: Apache-2.0
"""Reads published weight files without running their code, renames by content, and reports what was loaded and why not.

Formats: Detectron2 model zoo ``.pkl`` (Mask2Former, ImageNet backbones), ``.pth``/``.pt`` (PADing, our own trainer)
and ``.safetensors``. Renaming never looks at version numbers: they are lost when a checkpoint is saved again as a plain
dict, and trusting them renames keys twice.
"""

import pickle
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import get_cache_dir
from tabulate import tabulate
from torch import Tensor, nn

from padding.errors import CheckpointError, MissingFileError

__all__ = ["CheckpointReport", "load_into", "normalise_keys", "read_checkpoint", "read_entry"]

State = dict[str, Tensor]

# Parts of a network that are useless unless complete; other parts (a generator, a new classifier) may start afresh.
_BODY = ("backbone.", "sem_seg_head.")
# Their first dimension is the number of classes, which differs between data sets.
_CLASS_DEPENDENT = re.compile(r"(^|\.)(class_embed\.(weight|bias)|new_fc\.(weight|bias)|criterion\.empty_weight)$")
# Entries of published files that no network of ours keeps: constants, counters, the ImageNet classifier.
_NOT_NEEDED = re.compile(
    r"(^|\.)(pixel_mean|pixel_std|num_batches_tracked|relative_position_index|attn_mask)$|^(backbone\.)?stem\.fc\."
)
_HEAD, _PREDICTOR, _PIXEL_DECODER = "sem_seg_head.", "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."


# --------------------------------------------------------------------------------------------------- reading


def read_checkpoint(path: str | Path) -> State:
    """Read the network weights of a file; trainer state in it is left alone.

    Args:
        path: a local file, or ``detectron2://...`` / ``https://...`` if it is already in the local cache.

    Returns:
        Name to tensor on the CPU, names as in the file.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it would have to be downloaded, is cut short, is no checkpoint, or asks for code to be run.
    """
    local = _local_path(str(path))
    if not local.is_file():
        raise MissingFileError(f"{local}: no such weight file; check MODEL.WEIGHTS")
    readers: dict[str, Callable[[Path], Any]] = {
        ".pkl": _read_pickle,
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".bin": _read_torch,
        ".safetensors": safetensors.torch.load_file,
    }
    if local.suffix not in readers:
        raise CheckpointError(f"{local}: unknown kind '{local.suffix}'; weights are read from {', '.join(readers)}")
    try:
        content = readers[local.suffix](local)
    except CheckpointError:
        raise
    except Exception as error:  # each format fails in its own ways; the cure is the same
        raise CheckpointError(
            f"{local}: cannot be read as a {local.suffix} checkpoint ({type(error).__name__}: {_first_line(error)}). "
            "The file is cut short or is something else: compare its size with the source and fetch it again."
        ) from error
    return {name: _as_tensor(local, name, value) for name, value in _weights_of(local, content).items()}


def read_entry(path: str | Path, key: str) -> Any | None:
    """An entry that a ``.pth`` file holds beside its weights, None without one; as safe as ``read_checkpoint``."""
    local = _local_path(str(path))
    if local.suffix not in (".pth", ".pt") or not local.is_file():
        return None
    try:
        content = _read_torch(local)
    except Exception:  # read_checkpoint names what is wrong with the file
        return None
    return content.get(key) if isinstance(content, Mapping) else None


def _local_path(path: str) -> Path:
    """Where the file lies on this machine; remote names are looked up in the cache, never fetched."""
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


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise CheckpointError(f"asks for the text encoding {encoding!r}; bytes in a pickle are latin1")
    return text.encode("latin1")


class _ArraysOnlyUnpickler(pickle.Unpickler):
    """Builds arrays and containers, nothing else: a pickle may name any function, and loading would call it."""

    _ALLOWED = frozenset(
        {("collections", "OrderedDict")}
        | {(module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")}
        | {("numpy", name) for name in ("ndarray", "dtype")}
        | {
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _encode_latin1
        if (module, name) not in self._ALLOWED:
            raise CheckpointError(
                f"asks to run {module}.{name}; only numpy arrays and plain containers are read from a .pkl file. If "
                "you trust it, convert it to .pth or .safetensors with the program that wrote it."
            )
        return super().find_class(module, name)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _unpickle(path, file)


def _unpickle(path: Path, file: BinaryIO) -> Any:
    try:
        return _ArraysOnlyUnpickler(file, encoding="latin1").load()  # written by Python 2 in the oldest model zoos
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_torch(path: Path) -> Any:
    # Trainer state may hold numpy numbers, under the module name of the numpy that wrote them.
    numbers = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)]
    functions: list[Any] = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for core in ("core", "_core")
        for function in (np._core.multiarray.scalar, np._core.multiarray._reconstruct)  # type: ignore[attr-defined]
    ]
    with torch.serialization.safe_globals([*functions, np.dtype, np.ndarray, *numbers]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if wanted is None:
                raise
            raise CheckpointError(
                f"{path}: asks to build {wanted.group(1)}; only tensors, arrays and plain containers are read. If you "
                "trust it, save its weights alone with the program that wrote it."
            ) from error


def _weights_of(path: Path, content: Any) -> Mapping[str, Any]:
    """The name -> array part of a file's content."""
    if isinstance(content, Mapping) and "blobs" in content:
        raise CheckpointError(
            f"{path}: Caffe2 layout ('blobs'); use the torchvision weights of the same backbone instead"
        )
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} without named weights; expected a dict of arrays, or one "
            "under 'model'"
        )
    return content


def _as_tensor(path: Path, name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return torch.from_numpy(np.array(value))
    raise CheckpointError(
        f"{path}: entry '{name}' is a {type(value).__name__}, not an array; expected network weights alone, or under "
        "'model'"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


# --------------------------------------------------------------------------------------------------- renaming


def normalise_keys(state: Mapping[str, Tensor]) -> tuple[State, dict[str, str]]:
    """Bring published names to today's, deciding by the names alone.

    1. ``module.`` in front of every name (saved from a data-parallel wrapper) goes.
    2. ``predictor.static_query`` becomes ``predictor.query_feat`` (early Mask2Former).
    3. If a head has a predictor but no name under ``pixel_decoder.``, its other names get it (early MaskFormer).

    Args:
        state: name to tensor.

    Returns:
        The renamed state, and old name -> new name of those that changed.
    """
    names = list(state)
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    stripped = [name.removeprefix(prefix) for name in names]
    is_old_head = any(name.startswith(_PREDICTOR) for name in stripped) and not any(
        name.startswith(_PIXEL_DECODER) for name in stripped
    )

    def rename(name: str) -> str:
        if name.startswith(_PREDICTOR):
            return name.replace(".static_query.", ".query_feat.")
        if is_old_head and name.startswith(_HEAD):
            return _PIXEL_DECODER + name.removeprefix(_HEAD)
        return name

    new_names = [rename(name) for name in stripped]
    renames = {old: new for old, new in zip(names, new_names, strict=True) if old != new}
    return {new: state[old] for old, new in zip(names, new_names, strict=True)}, renames


def _add_backbone_prefix(state: State, model_keys: Iterable[str]) -> tuple[State, dict[str, str]]:
    """Files of a bare backbone (ImageNet weights) name its parameters without ``backbone.``."""
    known = set(model_keys)
    if any(name in known for name in state) or not any("backbone." + name in known for name in state):
        return state, {}
    renames = {name: "backbone." + name for name in state}
    return {renames[name]: tensor for name, tensor in state.items()}, renames


# --------------------------------------------------------------------------------------------------- loading


@dataclass
class CheckpointReport:
    """What became of every name of the file and of the network; ``str()`` is a table.

    Attributes:
        matched: names loaded.
        renamed: name in the file -> name in the network.
        skipped: name -> why its tensor was left out.
        missing: names of the network that the file does not have.
        unexpected: names of the file that the network does not have.
    """

    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows: list[tuple[str, int, str, str]] = []
        changed = {new: old for old, new in self.renamed.items()}
        rows += _rows("loaded", [name for name in self.matched if name not in changed], "")
        rows += _rows(
            "loaded, renamed", [name for name in self.matched if name in changed], "published under another name"
        )
        for why in dict.fromkeys(self.skipped.values()):
            rows += _rows("skipped", [name for name, reason in self.skipped.items() if reason == why], why)
        rows += _rows("missing", self.missing, "not in the file: keeps its initial values")
        rows += _rows("unexpected", self.unexpected, "the network has no such part: ignored")
        table = tabulate(rows, headers=["", "tensors", "names", "why"], tablefmt="simple")
        return f"{table}\n{self.explanation()}"

    def explanation(self) -> str:
        """One sentence on what this means."""
        total = len(self.matched) + len(self.missing) + sum(why.startswith("shape") for why in self.skipped.values())
        sentence = f"{len(self.matched)} of {total} tensors of the network come from the file"
        fresh = sorted({name.split(".")[0] for name in self.missing})
        if not fresh:
            return sentence + "."
        if not any(name.startswith(_BODY) for name in self.missing):
            return f"{sentence}; the rest starts afresh, as expected when a later stage adds it: {', '.join(fresh)}."
        return f"{sentence}; the rest must be trained before results mean anything: {', '.join(fresh)}."


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Sequence[str] = (),
) -> CheckpointReport:
    """Copy weights into a network, in place, and say what was done.

    Names are normalised first. Tensors whose size follows the number of classes are skipped when their shape differs. A
    file whose only network weights are a backbone's leaves the head at its initial values.

    Args:
        model: the network, not wrapped.
        state: name to tensor, as ``read_checkpoint`` returns it.
        allow_missing: prefixes of network names that the file need not have, or may have in another shape.

    Returns:
        The report.

    Raises:
        CheckpointError: if backbone or head fit only in part, or nothing fits; the network is then unchanged.
    """
    state, renamed = normalise_keys(state)
    model_state = model.state_dict()
    state, prefixed = _add_backbone_prefix(state, model_state)
    renamed |= prefixed
    report = CheckpointReport()
    wrong_shape = []
    for name, tensor in state.items():
        if name in model_state and tensor.shape == model_state[name].shape:
            report.matched.append(name)
        elif name in model_state:
            shapes = f"{_shape(tensor)} in the file, {_shape(model_state[name])} in the network"
            report.skipped[name] = f"shape {shapes}"
            if not _CLASS_DEPENDENT.search(name):
                wrong_shape.append(name)
        elif _NOT_NEEDED.search(name):
            report.skipped[name] = "not needed"
        else:
            report.unexpected.append(name)
    report.missing = [name for name in model_state if name not in state and not _NOT_NEEDED.search(name)]
    report.renamed = {old: new for old, new in renamed.items() if new in model_state}

    if _is_backbone_only(state):
        allow_missing = (*allow_missing, _HEAD)
    unfit = _unfit([*report.missing, *wrong_shape], allow_missing) + _unfit(report.unexpected)
    if unfit or not report.matched:
        raise CheckpointError(_explain_misfit(report, unfit))
    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    return report


def _is_backbone_only(state: Mapping[str, Tensor]) -> bool:
    return not any(name.startswith(_HEAD) for name in state) and any(name.startswith("backbone.") for name in state)


def _unfit(names: Sequence[str], allowed: Sequence[str] = ()) -> list[str]:
    return [
        name
        for name in names
        if name.startswith(_BODY) and not name.startswith(tuple(allowed)) and not _CLASS_DEPENDENT.search(name)
    ]


def _explain_misfit(report: CheckpointReport, unfit: Sequence[str]) -> str:
    if not report.matched:
        cause = "no tensor of the file fits the network; this is another network's file"
    else:
        cause = (
            f"{len(unfit)} tensors of backbone or head do not fit, first '{unfit[0]}'; the file belongs to another "
            "backbone, head or number of layers (compare MODEL.BACKBONE, MODEL.RESNETS, MODEL.MASK_FORMER and "
            "MODEL.SEM_SEG_HEAD)"
        )
    return f"weights do not fit: {cause}. To load in part, allow these prefixes explicitly.\n{report}"


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _rows(kind: str, names: Sequence[str], why: str) -> list[tuple[str, int, str, str]]:
    """Table rows, one per part of the network (the first two words of its names)."""
    parts: OrderedDict[str, list[str]] = OrderedDict()
    for name in names:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [
        (kind, len(members), members[0] if len(members) == 1 else f"{part}.*", why) for part, members in parts.items()
    ]
