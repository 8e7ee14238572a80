# SPDX-License-Identifier: Apache-2.0
"""A device that does not exist: trainers run on it without values, and mixing it with the CPU is an error.

A stand-in for a GPU where there is none. Its type is one of torch's whose backward pass needs no driver, but it knows
no autocast. That of CUDA, with its own lists of operations, acts on tensors without values too, in forward passes
alone; values at half precision are computed on the CPU (``benchmarks.gpu_check``).
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch._subclasses.fake_tensor import FakeTensorMode

from padding.engine.complexity import build_on_meta
from padding.engine.dry_run import LiveMemory, Waits, dry, to_fake
from padding.engine.plan_memory import for_one_process
from padding.engine.registry import TRAINER_REGISTRY

DEVICE, CUDA = "lazy", "cuda"


def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``torch.autocast`` and checkpointing accept the device; neither does anything special there."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == DEVICE else real(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch, DEVICE, SimpleNamespace(), raising=False)


def prepare_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors without values be on CUDA, under its autocast, where there is no driver."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_init", lambda: None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


def on_device(
    cfg: CfgNode,
    run: Callable[[Any], object],
    *,
    image_size: tuple[int, int] = (32, 48),
    times: int = 1,
    device: str = DEVICE,
) -> dict[str, int]:
    """Run something with a trainer whose model is on the device.

    Args:
        cfg: of a training.
        run: called with the trainer.
        image_size: of the photographs.
        times: calls; the last one is counted.
        device: its type.

    Returns:
        Operation -> how often the last call waited for values of the device.
    """
    own = for_one_process(cfg, 1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    waits, trainer_class = Waits(mode, device, share=0.1), TRAINER_REGISTRY.get(own.TRAINER)
    with trainer_class.stand_in_files(own) as complete:
        model = build_on_meta(complete)
        to_fake(model, mode, device)
        trainer = trainer_class.for_rehearsal(complete, model, image_size)
        with dry(waits, LiveMemory()):
            for _ in range(times):
                waits.counts.clear()
                run(trainer)
    return dict(waits.counts)
