# SPDX-License-Identifier: Apache-2.0
"""Inference and half precision of every method on a device that is not the CPU.

The numbers are those of padding/README.md, "At full size": one more is a wait that somebody added.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from padding.engine.dry_run import can_run_dry
from padding.modeling.postprocessing import InferenceOptions
from tests import dry_device
from tests.plan_cases import CASES, tiny_cfg
from tests.tiny_padding import register_tiny_data

OUTPUTS = {"semantic": "sem_seg", "panoptic": "panoptic_seg", "instance": "instances"}
WAITS: dict[str, dict[str, int]] = {
    "semantic": {},
    "panoptic": {"copy to the CPU": 2, "bincount": 1},
    "instance": {"copy to the CPU": 1},
    "semantic panoptic instance": {"copy to the CPU": 2, "bincount": 1},
}

pytestmark = pytest.mark.skipif(not can_run_dry(), reason="torch 2.4 knows too little of tensors without values")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dry")
    register_tiny_data(root)
    return root


def image() -> dict[str, Any]:
    """A sample of an evaluation."""
    size = {"height": 40, "width": 60}
    return {"image": torch.zeros(3, 32, 48, dtype=torch.uint8), "file_name": "1.png", "image_id": 1, **size}


@pytest.mark.parametrize("tasks", [pytest.param(k, marks=[pytest.mark.slow] if " " not in k else []) for k in WAITS])
def test_segments_on_a_device(tasks: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry_device.prepare(monkeypatch)
    wanted = {f"{task}_on": task in tasks for task in OUTPUTS}
    found: dict[str, Any] = {}

    def predict(trainer: Any) -> None:
        model = trainer.module.eval()
        assert isinstance(model.inference, InferenceOptions)
        model.inference = replace(model.inference, **wanted)
        found.update(model([image()])[0])

    assert dry_device.on_device(tiny_cfg("padding", data), predict) == WAITS[tasks]
    assert set(found) == {OUTPUTS[task] for task in tasks.split()}
    instances = found["instances"].get_fields() if "instances" in found else {}
    maps = [found.get("sem_seg"), found.get("panoptic_seg", (None,))[0]]
    for values in (*maps, *instances.values()):
        assert values is None or values.device.type == dry_device.DEVICE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcc", "psi", "salseg"])
def test_dense_labels_on_a_device(kind: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry_device.prepare(monkeypatch)
    found: dict[str, Any] = {}
    counts = dry_device.on_device(
        tiny_cfg(kind, data), lambda trainer: found.update(trainer.module.eval()([image()])[0])
    )
    assert counts == {}
    assert found["sem_seg"].device.type == dry_device.DEVICE
    assert found["sem_seg"].shape[-2:] == (40, 60)


@pytest.mark.parametrize("kind", CASES)
def test_autocast_of_cuda(kind: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of a step finds the types that it takes; losses are float32, those that a scaler multiplies."""
    dry_device.prepare_cuda(monkeypatch)
    cfg = tiny_cfg(kind, data, "SOLVER.AMP.ENABLED", True)
    losses: list[torch.Tensor] = []
    halves: list[torch.dtype] = []

    def forward(trainer: Any) -> None:
        assert trainer.device.type == dry_device.CUDA
        for module in trainer.module.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.register_forward_hook(lambda _, __, output: halves.append(output.dtype))
        trainer.backward = lambda loss, name="main": losses.append(loss)
        trainer.optimizer_step = lambda name="main": None
        trainer.rehearse()

    dry_device.on_device(cfg, forward, device=dry_device.CUDA)
    assert torch.float16 in halves
    assert losses
    assert all(loss.dtype == torch.float32 and loss.requires_grad for loss in losses)
