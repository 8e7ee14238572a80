# SPDX-License-Identifier: Apache-2.0
"""Steps on a device that is not the CPU: nothing is left behind on it, and how often it is waited for.

The numbers are those of padding/README.md, "At full size": one more is a wait that somebody added to the step.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from padding.engine.dry_run import LiveMemory, Waits, bytes_of, can_run_dry, dry, to_fake
from tests import dry_device
from tests.plan_cases import CASES, tiny_cfg
from tests.tiny_padding import register_tiny_data

WAITS = {
    "segmentor": {"copy to the CPU": 1},
    "padding": {"copy to the CPU": 1, "boolean index": 2, "nonzero": 1},
    "bank": {"copy to the CPU": 1, "boolean index": 3, "nonzero": 1, "unique": 1},
    "tcc": {"item": 2, "boolean index": 2},
    "psi": {"item": 1, "copy to the CPU": 1, "boolean index": 1},
    "salseg": {"item": 2},
}

pytestmark = pytest.mark.skipif(not can_run_dry(), reason="torch 2.4 knows too little of tensors without values")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dry")
    register_tiny_data(root)
    return root


@pytest.mark.parametrize("kind", CASES)
def test_step_on_a_device(kind: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scaler, which asks once for each optimiser whether all gradients are finite."""
    dry_device.prepare(monkeypatch)
    scalers: dict[str, torch.amp.GradScaler] = {}

    def step(trainer: Any) -> None:
        scalers.update({name: torch.amp.GradScaler(dry_device.DEVICE) for name in trainer.optimizers})
        trainer.scalers = scalers
        trainer.rehearse()

    counts = Counter(dry_device.on_device(tiny_cfg(kind, data), step))
    assert all(scaler.is_enabled() for scaler in scalers.values())
    assert dict(counts - Counter(item=len(scalers))) == WAITS[kind]


def test_mixed_devices_are_an_error() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        layer = torch.nn.Linear(3, 2)
    to_fake(layer, mode, dry_device.DEVICE)
    with dry(Waits(mode, dry_device.DEVICE), LiveMemory()):
        moved = torch.ones(4, 3).to(dry_device.DEVICE)
        assert layer(moved).device.type == dry_device.DEVICE
        with pytest.raises(RuntimeError, match="devices"):
            layer(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("look", "name"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool((x > 0).any()), "item"),
        (lambda x: x[x > 0], "boolean index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.unique(), "unique"),
        (lambda x: x.cpu(), "copy to the CPU"),
        (lambda x: x.to("cpu", non_blocking=True), "copy to the CPU"),
        (lambda x: x.tolist(), "copy to the CPU"),
        (lambda x: torch.bincount(x.long()), "bincount"),
        (lambda x: x.index_put_((x > 0,), torch.ones(5, device=x.device)), "boolean index"),
        (lambda x: torch.ones(5).to(x.device), "copy from the CPU"),
        (lambda x: torch.tensor([1.0], device=x.device), "copy from the CPU"),
        (lambda x: x.new_tensor([1.0]), "copy from the CPU"),
        (lambda x: x.__setitem__([1, 2], 0.0), "copy from the CPU"),
    ],
)
def test_every_way_to_wait_is_counted(look: Callable[[torch.Tensor], object], name: str) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    waits = Waits(mode, dry_device.DEVICE)
    with dry(waits, LiveMemory()):
        x = torch.ones(5).to(dry_device.DEVICE, non_blocking=True)
        x = x * 2 + 1
        assert not waits.counts
        look(x)
    assert dict(waits.counts) == {name: 1}


@pytest.mark.parametrize(
    "look",
    [
        lambda x: torch.ones(5).to(x.device, non_blocking=True),
        lambda x: x.index_put_((x > 0,), torch.ones(1, device=x.device)),
        lambda x: x[torch.arange(2, device=x.device)],
        lambda x: x.cumsum(0).max(0).indices,
    ],
)
def test_what_does_not_wait_is_not_counted(look: Callable[[torch.Tensor], object]) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    waits = Waits(mode, dry_device.DEVICE)
    with dry(waits, LiveMemory()):
        look(torch.ones(5).to(dry_device.DEVICE, non_blocking=True) * 2)
    assert not waits.counts


def test_memory_of_real_tensors_is_counted() -> None:
    memory = LiveMemory()
    with memory:
        a = torch.zeros(256)
        b = a + 1
        assert memory.now == 2 * 1024
        view = b[:10]
        del b
        assert memory.now == 2 * 1024
        del view
        assert memory.now == 1024
        assert memory.peak >= 2 * 1024
    assert bytes_of([a, a[:3]]) == 1024
