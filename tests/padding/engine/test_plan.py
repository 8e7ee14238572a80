# SPDX-License-Identifier: Apache-2.0
"""The plan of a training: memory against what a step takes, length, rates, disk, time, and keys that save memory."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode

from benchmarks import plan_memory as benchmark
from padding.engine import plan
from padding.engine.commands import load_config
from padding.engine.complexity import build_on_meta
from padding.engine.dry_run import can_run_dry
from padding.engine.optimizer import build_lr_scheduler
from padding.engine.plan_memory import StepEstimate, for_one_process, rehearse
from padding.engine.trainer import Trainer
from tcc.trainer import SemiSupervisedTrainer
from tests.plan_cases import CASES, tiny_cfg
from tests.tiny_padding import register_tiny_data

CONFIGS = Path(__file__).parents[3] / "configs"
REQUEST = plan.Request(1, 0.0, (32, 48), 100, 10, 1.0, "cpu")

pytestmark = pytest.mark.skipif(not can_run_dry(), reason="torch 2.4 knows too little of tensors without values")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    register_tiny_data(root)
    return root


@pytest.mark.parametrize("kind", CASES)
def test_memory_is_that_of_the_step(kind: str, data: Path) -> None:
    found = benchmark.compare(tiny_cfg(kind, data), (32, 48))
    assert 0.85 < found["ratio"] < 1.15, found


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.default_files())
def test_memory_of_every_small_configuration(name: str) -> None:
    found = benchmark.compare_file(name)
    assert 0.85 < found["ratio"] < 1.15, found


@pytest.mark.slow
def test_memory_of_the_published_network() -> None:
    found = benchmark.compare_file("coco_zsp_pretrain", benchmark.R50)
    assert 0.85 < found["ratio"] < 1.15, found


@pytest.fixture(scope="module")
def rehearsed(data: Path) -> tuple[Trainer, StepEstimate]:
    """A step of two images."""
    cfg = tiny_cfg(
        "segmentor",
        data,
        *("SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 10, "SOLVER.COMPLETE_CHECKPOINTS", 2),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (60, 80), "SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.BASE_LR", 0.02, "TEST.EVAL_PERIOD", 50, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BACKBONE_MULTIPLIER", 1.0),
    )
    return rehearse(for_one_process(cfg, 1), (32, 48))


def test_parts_of_the_memory(rehearsed: tuple[Trainer, StepEstimate]) -> None:
    trainer, step = rehearsed
    trained = sum(p.numel() for p in trainer.module.parameters() if p.requires_grad)
    assert step.trained == trained
    assert step.gradients == 4 * trained
    assert 8 * trained <= step.optimizer <= 8 * trained + 8 * len(list(trainer.module.parameters()))
    assert step.peak > step.weights + step.gradients + step.optimizer


@pytest.mark.slow
def test_twice_the_images_in_two_parts(rehearsed: tuple[Trainer, StepEstimate], data: Path) -> None:
    """As much memory but for gradients that wait, and twice the operations."""
    step = rehearsed[1]
    twice = tiny_cfg("segmentor", data, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE_STEPS", 2)
    _, in_parts = rehearse(for_one_process(twice, 1), (32, 48))
    assert in_parts.peak == pytest.approx(step.peak + step.gradients, rel=0.05)
    assert in_parts.operations == pytest.approx(2 * step.operations, rel=0.05)


def test_share_of_a_process(data: Path) -> None:
    cfg = tiny_cfg("tcc", data, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.IMS_PER_BATCH_UNLABELED", 4)
    solver = for_one_process(cfg, 2).SOLVER
    assert (solver.IMS_PER_BATCH, solver.IMS_PER_BATCH_UNLABELED) == (4, 2)
    bank = for_one_process(tiny_cfg("bank", data, "SOLVER.IMS_PER_BATCH", 12), 8)
    assert (bank.SOLVER.IMS_PER_BATCH, bank.MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH) == (2, 12)


def test_length_rates_disk_and_time(rehearsed: tuple[Trainer, StepEstimate], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "rehearse", lambda *_: rehearsed)
    found = plan.plan(rehearsed[0].cfg, REQUEST)
    assert found["length"]["epochs"] == 2.0
    assert found["rates"]["main"]["schedule"] == pytest.approx({0: 0.02, 60: 0.002, 80: 0.0002})
    step = rehearsed[1]
    gib = (3 * (step.weights + step.optimizer) + 8 * step.weights) / 2**30
    assert found["disk"]["checkpoints"] == pytest.approx(gib, abs=0.01)
    assert found["disk"]["number of checkpoints"] == 11
    assert found["time"]["evaluations"] == 2
    assert 0 < found["time"]["share of evaluation"] < 1
    assert "memory" in plan.as_text(found)
    assert json.loads(json.dumps(found))["time"]["images of an evaluation"] == 10


@pytest.mark.slow
def test_rates_of_a_training_in_sequence(data: Path) -> None:
    cfg = tiny_cfg(
        "bank",
        data,
        *("MODEL.PADING.SCHEDULE", "sequential", "SOLVER.MAX_ITER", 40, "SOLVER.GENERATOR.STEPS", (20,)),
        *("SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "MODEL.PADING.FEATURE_BANK.VIEWS", 3),
    )
    found = plan.plan(cfg, plan.Request(3, 0.0, (32, 48), 100, 10, 1.0, "cpu"))
    assert list(found["rates"]["generator"]["schedule"]) == [0, 10]
    assert list(found["rates"]["classifier"]["schedule"]) == [20]
    assert found["length"]["images a step"] == 2
    assert found["memory"]["exchange of gradients"] >= 0


def test_curves_are_shown_at_eight_places() -> None:
    cfg = load_config(CONFIGS / "shapes_tcc.yaml")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    trainer = SimpleNamespace(schedulers={"main": build_lr_scheduler(cfg.SOLVER, optimizer)}, cfg=cfg)
    places = plan._rates(cfg, trainer)["main"]["schedule"]
    assert len(places) == 8
    after_warm_up = list(places.values())[1:]
    assert after_warm_up == sorted(after_warm_up, reverse=True)
    assert places[0] < after_warm_up[0]


def test_what_does_not_fit_is_tried_with_keys_that_save(
    rehearsed: tuple[Trainer, StepEstimate], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a step takes a GiB for each image of a forward pass."""

    def by_images(cfg: CfgNode, _: object) -> tuple[Trainer, StepEstimate]:
        images = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE_STEPS
        return rehearsed[0], dataclasses.replace(rehearsed[1], peak=images * 2**30)

    monkeypatch.setattr(plan, "rehearse", by_images)
    cfg = tiny_cfg("segmentor", data, "SOLVER.IMS_PER_BATCH", 8)
    found = [plan.plan(cfg, dataclasses.replace(REQUEST, gpu_memory=size)) for size in (10.0, 2.0, 0.5)]
    assert "would fit" not in found[0]
    assert found[1]["would fit"] == {"SOLVER.ACCUMULATE_STEPS 2": 4.0, "SOLVER.ACCUMULATE_STEPS 4": 2.0}
    # All that there is, where nothing fits.
    assert list(found[2]["would fit"])[-2:] == [
        "SOLVER.ACCUMULATE_STEPS 8",
        "SOLVER.ACCUMULATE_STEPS 8 SOLVER.AMP.ENABLED True",
    ]
    # Images that cannot be divided further: precision and crop are left.
    words = [words[0] for words in plan._savings(tiny_cfg("segmentor", data, "SOLVER.IMS_PER_BATCH", 1), 1)]
    assert "SOLVER.ACCUMULATE_STEPS" not in words
    assert "SOLVER.AMP.ENABLED" in words


def test_recomputed_activations_come_first(data: Path) -> None:
    both = ["MODEL.TCC.CNN.CHECKPOINT_ACTIVATIONS", True, "MODEL.TCC.VIT.CHECKPOINT_ACTIVATIONS", True]

    def of(*opts: object) -> list[object]:
        cfg = tiny_cfg("tcc", data, *opts)
        return SemiSupervisedTrainer.memory_savings(SimpleNamespace(cfg=cfg, module=build_on_meta(cfg)))

    assert of() == both
    assert of(*both[:2]) == both[2:]
    words = plan._savings(tiny_cfg("tcc", data), 1, both)
    assert words[0] == tuple(both)
    assert words[1] == (*both, "SOLVER.ACCUMULATE_STEPS", 2)
    assert words[-1][:4] == tuple(both)


@pytest.mark.slow
def test_recomputed_activations_are_not_there(data: Path) -> None:
    """What is foreseen with the key is less, and still what the step takes."""
    trainer, plain = rehearse(for_one_process(tiny_cfg("tcc", data), 1, device="cpu"), (32, 48))
    cfg = tiny_cfg("tcc", data, *trainer.memory_savings())
    found = benchmark.compare(cfg, (32, 48))
    assert found["foreseen"] < 0.95 * plain.peak / 2**20
    assert 0.85 < found["ratio"] < 1.15, found


def test_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-file", str(CONFIGS / "smoke" / "shapes_psi.yaml"), "--num-gpus", "2", "--gpu-memory", "80"]
    plan.main([*words, "--train-images", "3000", "--test-images", "500"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["length"]["images a forward pass"] == 1
    assert found["memory"]["context and workspaces"] == 1.0
    assert "| epochs" in printed


def test_uneven_split_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-file", str(CONFIGS / "smoke" / "shapes_psi.yaml"), "--num-gpus", "3"]
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH = 2 .* cannot be split evenly"):
        plan.main(words)
    capsys.readouterr()
