# SPDX-License-Identifier: Apache-2.0
"""Run a training step without computing it: shapes and memory of every tensor, and what a GPU would have to wait for.

The parameters of a model are made fake: tensors with a shape, a type and a device but no values. So is everything that
is computed with them, and a step of any size takes seconds and no memory; samples stay real. What depends on missing
values gets an answer that lets the step go on: a number is 1, a flag is true, a mask selects a given share.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from padding.errors import MethodError

_aten = torch.ops.aten
_MASKED = (_aten.index.Tensor, _aten.masked_select.default, _aten.nonzero.default)
_PUT = (_aten.index_put.default, _aten.index_put_.default)
_UNIQUE = (_aten._unique2.default, _aten.unique_dim.default, _aten.unique_consecutive.default)
_COPIES = (_aten._to_copy.default, _aten.copy_.default)


class LiveMemory(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there were.

    Attributes:
        now: bytes alive that were seen.
        peak: largest value of ``now`` since the last ``reset_peak``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self.note(result)
        return result

    def note(self, values: Any) -> None:
        """Count the memory of all tensors in ``values`` that are not counted yet."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._note_storage(value.untyped_storage())
        self.peak = max(self.peak, self.now)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def _note_storage(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Waits(TorchDispatchMode):
    """Answers what depends on values, and counts where a device would have to finish before the program goes on.

    Attributes:
        counts: name of the operation -> how often it looked at values on ``device``.
    """

    def __init__(self, mode: FakeTensorMode, device: str, *, number: float = 1.0, share: float = 1.0) -> None:
        """Choose the answers.

        Args:
            mode: of the fake tensors.
            device: type of the device whose values take time to read; values on the CPU are at hand.
            number: of every scalar that is asked for.
            share: of the rows, how many a mask selects, in (0, 1].
        """
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._mode = mode
        self._device = device
        self._number = number
        self._share = share

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if not any(isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs))):
            return self._on_real_tensors(func, args, kwargs)
        if func is _aten._local_scalar_dense.default:
            self._count("item", args[0])
            return self.number_of(args[0])
        if func in _COPIES and (way := self._way(func, args, kwargs)):
            self.counts[way] += 1
        if func in _MASKED and (answer := self._masked(func, args)) is not None:
            return answer
        if func in _PUT and args[2].numel() > 1:  # a single value is filled in without looking for the places
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    self._count("boolean index", index)
        if func is _aten.bincount.default:  # as many numbers as the largest value asks for
            self._count("bincount", args[0])
            length = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            with self._mode:
                return torch.zeros(max(length, 1), dtype=torch.int64, device=args[0].device)
        if func in _UNIQUE:
            self._count("unique", args[0])
            rows = args[0].reshape(-1) if func is not _aten.unique_dim.default else args[0]
            with self._mode:
                places = torch.zeros(rows.shape[:1], dtype=torch.int64, device=rows.device)
                return rows.clone(), places, torch.ones_like(places)
        return func(*args, **kwargs)

    def _on_real_tensors(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What makes new tensors on the device makes fake ones, and so does a copy to it."""
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == self._device != "cpu":
            if func in _COPIES and not kwargs.get("non_blocking"):
                self.counts["copy from the CPU"] += 1
            with self._mode:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _masked(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """Result of a boolean index; None if the index is of numbers."""
        with self._mode:
            return self._selected(func, args)

    def _selected(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        if func is _aten.nonzero.default:
            self._count("nonzero", args[0])
            return torch.zeros(self._rows(args[0]), args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is _aten.masked_select.default:
            self._count("boolean index", args[1])
            return args[0].new_zeros(self._rows(args[1]))
        values, indices = args
        masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
        if not masks:
            return None
        places: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            self._count("boolean index", index)
            rows = torch.zeros(self._rows(index), dtype=torch.int64, device=index.device)
            places += [rows] * index.dim()
        return _aten.index.Tensor(values, places)

    def _rows(self, mask: Tensor) -> int:
        if not isinstance(mask, FakeTensor):
            return int(np.count_nonzero(mask.numpy()))  # not an operation that the mode would see
        return max(1, round(mask.numel() * self._share))

    def number_of(self, tensor: Tensor) -> bool | int | float:
        """The answer for one value of a tensor."""
        if tensor.dtype == torch.bool:
            return True
        return self._number if tensor.dtype.is_floating_point else int(self._number)

    def _way(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Which way a copy goes that is waited for; empty: none."""
        if func is _aten.copy_.default:
            target, source = args[0].device.type, args[1].device.type
            waits = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        else:
            source = args[0].device.type
            target = torch.device(kwargs.get("device") or source).type
            waits = not kwargs.get("non_blocking")
        if self._device == "cpu" or source == target:
            return ""
        if target == "cpu":
            return "copy to the CPU"  # its values are wanted, whatever was asked for
        return "copy from the CPU" if waits else ""

    def _count(self, name: str, tensor: Tensor) -> None:
        if tensor.device.type == self._device and self._device != "cpu":
            self.counts[name] += 1


class _Answers(TorchFunctionMode):
    """What does not pass through torch's dispatcher.

    ``tensor.numpy()`` of a tensor without values is an array of random numbers: equal costs would all be ties. Numbers
    that become a tensor on a device, or a list that is an index of one, go there by way of the CPU.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            dtype = torch.empty(0, dtype=args[0].dtype, device="cpu")
            with torch._C._DisableTorchDispatch():
                numbers = torch.empty(0, dtype=dtype.dtype).numpy()
            return np.random.default_rng(0).random(tuple(args[0].shape)).astype(numbers.dtype)
        if func is Tensor.__setitem__ and isinstance(args[1], list) and isinstance(args[0], FakeTensor):
            args = (args[0], torch.tensor(args[1]).to(args[0].device), *args[2:])
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], FakeTensor):
            dtype, device = kwargs.get("dtype", args[0].dtype), kwargs.get("device", args[0].device)
            return torch.tensor(args[1], dtype=dtype).to(device)
        return func(*args, **kwargs)


def can_run_dry() -> bool:
    """Whether this torch can: in 2.4, tensors without values know too few of the operations."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 5)


def to_fake(module: nn.Module, mode: FakeTensorMode, device: str) -> None:
    """Give the parameters and buffers of a module on the meta device a place on a device that need not exist.

    Raises:
        MethodError: this torch cannot.
    """
    if not can_run_dry():
        raise MethodError(f"torch {torch.__version__} cannot run a step without values; update it, 2.4 is too old")
    # The first backward pass of a process counts its devices and starts a thread for each. A fake mode pretends that
    # there is one, and a process with such threads could no longer fork.
    torch.zeros(1, requires_grad=True).sum().backward()
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = memo.get(id(parameter))
                if fake is None:
                    data = FakeTensor(mode, parameter.data.to("meta"), torch.device(device))
                    fake = memo[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
                part._parameters[name] = fake
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FakeTensor(mode, buffer.to("meta"), torch.device(device))


@contextmanager
def dry(waits: Waits, memory: LiveMemory) -> Iterator[None]:
    """Within the context nothing is computed that fake tensors take part in."""

    def tolist(tensor: FakeTensor) -> Any:
        values = tensor.cpu()
        return np.full(tuple(values.shape), waits.number_of(values)).tolist()

    # A fake tensor's own asks for value after value; a real one is copied as a whole.
    replaced = FakeTensor.tolist
    FakeTensor.tolist = tolist  # type: ignore[method-assign, assignment]
    try:
        with waits, memory, _Answers():
            yield
    finally:
        FakeTensor.tolist = replaced  # type: ignore[method-assign]


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Memory of some tensors, shared storages once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
