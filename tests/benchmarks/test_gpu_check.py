# SPDX-License-Identifier: Apache-2.0
"""The check of a GPU: it says that there is none, and on the CPU it runs itself, half precision included."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from padding.engine.commands import load_config
from padding.engine.plan_memory import for_one_process

PSI = "smoke/shapes_psi"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_no_gpu_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == gpu_check.NO_GPU == 3
    assert last_line(capsys)["status"] == "no GPU"


def test_types_agree_with_float32(capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16 by autocast, float16 with a scaler: losses near those of float32, parameters finite."""
    assert gpu_check.main(["--device", "cpu", "--skip-published", "--methods", PSI]) == 0
    found = last_line(capsys)["methods"][PSI]
    assert found["float32"]["difference"] == 0.0
    assert 0.0 < found["float16"]["difference"] < 0.05
    assert 0.0 < found["bfloat16"]["difference"] < 0.1
    assert found["prediction"] == {"difference": 0.0, "passed": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_check.METHODS)
def test_types_agree_with_float32_for_every_method(name: str) -> None:
    found = gpu_check.compare_devices(name, "cpu")
    assert all(entry["passed"] for entry in found.values()), found


def test_a_difference_or_an_error_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def losses(cfg: object, device: str, dtype: torch.dtype, state: object) -> tuple[dict[str, float], dict[str, Any]]:
        return {"loss": 1.0 if state is None else 1.5}, {"weight": torch.zeros(1)}

    def scores(cfg: object, device: str, state: object) -> dict[str, torch.Tensor]:
        return {"sem_seg": torch.full((2, 1), next(levels))}

    levels = iter((1.0, 0.9))
    monkeypatch.setattr(gpu_check, "losses_of_step", losses)
    monkeypatch.setattr(gpu_check, "scores_of_image", scores)
    assert gpu_check.main(["--device", "cpu", "--skip-published", "--methods", PSI]) == 1
    found = last_line(capsys)
    assert found["status"] == "failed"
    assert not found["methods"][PSI]["float32"]["passed"]
    assert found["methods"][PSI]["prediction"] == {"difference": 0.1, "passed": False}

    def broken(*_: object) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_check, "compare_devices", broken)
    assert gpu_check.main(["--device", "cpu", "--skip-published", "--methods", PSI]) == 1
    assert "out of memory" in last_line(capsys)["methods"][PSI]["error"]


def test_published_batches_are_shared_as_far_as_they_can_be() -> None:
    for name in gpu_check.PUBLISHED:
        cfg = load_config(gpu_check.CONFIGS / f"{name}.yaml")
        processes = gpu_check.processes_of(cfg)
        assert 1 <= processes <= 8
        for_one_process(cfg, processes)


def test_a_size_that_the_gpu_cannot_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimpleNamespace(peak=8 * 2**30)
    small = SimpleNamespace(total_memory=8.5 * 2**30)
    monkeypatch.setattr(gpu_check, "rehearse", lambda *_: (None, step))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: small)
    found = gpu_check.measure_published("voc_psi", "cuda", 1)
    assert found["foreseen GiB"] == 8.0
    assert found["skipped"] == "this GPU has 8.5 GiB"
    assert not gpu_check._failed(found)


def test_scaler_skips_a_step_that_overflows_and_unscales_the_others() -> None:
    """The trainers' order: scale, backward, unscale, clip, step; on the CPU, where torch has a scaler of its own."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = layer.weight.detach().clone()
    scaler.scale(layer(torch.ones(1, 2)).sum() * float("inf")).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 512.0
    optimizer.zero_grad()
    scaler.scale(layer(torch.ones(1, 2)).sum()).backward()
    scaler.unscale_(optimizer)
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.slow
def test_two_processes_average_their_gradients() -> None:
    assert gpu_check.two_processes("gloo") == {"gradients": [3.0, 3.0], "passed": True}


@pytest.mark.gpu
def test_every_method_on_a_gpu() -> None:
    assert gpu_check.main(["--skip-published"]) == 0
