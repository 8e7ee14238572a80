# SPDX-License-Identifier: Apache-2.0
"""The two-optimiser loop: steps, schedules, exact resume, feature bank, accumulation, several processes."""

import dataclasses
import json
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.bank.identity import annotations_digest, split_digest
from padding.engine.distributed import torchrun_process_group
from padding.meta_arch import PADing
from padding.trainer import GeneratorClassifierTrainer
from tests.tiny_data import tiny_split

MakeCfg = Callable[..., CfgNode]
QUIET = (
    *("MODEL.PADING.GENERATOR.NOISE_STD", 0.0, "MODEL.PADING.GENERATOR.DROPOUT", 0.0),
    *("MODEL.PADING.DISENTANGLE.DROPOUT", 0.0, "MODEL.PADING.CLASSIFIER.CLASSES_PER_ITER", 0),
    *("MODEL.MASK_FORMER.SEED_POINTS_BY_IMAGE", True, "INPUT.RANDOM_FLIP", "none"),
    # Adam turns the rounding of gradients that should be zero into whole steps.
    *("SOLVER.GENERATOR.OPTIMIZER", "SGD"),
)


def train(cfg: CfgNode, *, resume: bool = False) -> GeneratorClassifierTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = GeneratorClassifierTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def new_parameters(trainer: GeneratorClassifierTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.module.named_parameters() if p.requires_grad}


def logged(cfg: CfgNode) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line for line in lines if "loss_classifier" in line or "loss_mmd" in line}


def test_both_optimisers_step_and_every_loss_is_logged(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg()
    torch.manual_seed(cfg.SEED)
    before = {name: p.detach().clone() for name, p in build_model(cfg).named_parameters()}
    trainer = train(cfg)
    assert isinstance(trainer.optimizers["generator"], torch.optim.Adam)
    assert isinstance(trainer.optimizers["classifier"], torch.optim.SGD)
    assert trainer.optimizers["classifier"].param_groups[0]["momentum"] == 0.9
    frozen = [n for n, p in trainer.module.named_parameters() if not p.requires_grad and not torch.equal(p, before[n])]
    assert frozen == []
    still = [n for n, p in trainer.module.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert still == []
    terms = {"mmd", "consistency", "align_seen", "align_unseen", "align_seen_unseen", "relation", "unrelated"}
    for line in logged(cfg).values():
        assert {f"loss_{term}" for term in (*terms, "reconstruction", "classifier")} <= set(line)
        assert {"lr_generator", "lr_classifier"} <= set(line)
        assert line["lr"] == line["lr_generator"]  # what the log shows


@pytest.mark.parametrize(
    ("bank", "more"),
    [
        (False, ()),
        (True, ("MODEL.PADING.MMD.ROWS_PER_CLASS", 3)),
        (False, ("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATE_STEPS", 2)),
    ],
    ids=["images", "bank, running moments", "mixed precision, accumulation"],
)
def test_resumed_training_equals_an_uninterrupted_one(
    padding_cfg: MakeCfg, tmp_path: Path, bank: bool, more: tuple[Any, ...]
) -> None:
    common = ("MODEL.PADING.FEATURE_BANK.ENABLED", bank, "SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupCosineLR", *more)
    whole = padding_cfg(*common, "OUTPUT_DIR", str(tmp_path / "whole"))
    expected = new_parameters(train(whole))
    resumed = padding_cfg(*common, "OUTPUT_DIR", str(tmp_path / "resumed"))
    torch.manual_seed(whole.SEED)
    first = GeneratorClassifierTrainer(resumed)
    first.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        stop_at(first, 4)
    assert (tmp_path / "resumed" / "last_checkpoint").read_text() == "model_0000002.pth"
    got = new_parameters(train(resumed, resume=True))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name)
    a, b = logged(whole), logged(resumed)
    for iteration in range(3, 6):
        for key in ("loss_mmd", "loss_classifier", "lr_generator"):
            assert b[iteration][key] == a[iteration][key], (iteration, key)


def stop_at(trainer: GeneratorClassifierTrainer, iteration: int) -> None:
    run_step = trainer.run_step

    def stopping() -> None:
        if trainer.iter == iteration:
            raise KeyboardInterrupt
        run_step()

    trainer.run_step = stopping
    trainer.train()


def test_checkpoint_holds_both_optimisers_and_schedules(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg()
    train(cfg)
    saved = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["trainer"]
    for kind in ("optimizers", "schedulers", "scalers"):
        assert set(saved[kind]) == {"generator", "classifier"}
    assert saved["optimizers"]["classifier"]["state"][0]["momentum_buffer"].abs().sum() > 0
    assert saved["stream"] == {"position": 12}


def test_sequential_schedule_trains_one_after_the_other(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg(
        *("MODEL.PADING.SCHEDULE", "sequential", "MODEL.PADING.GENERATOR_SHARE", 0.34),
        *("SOLVER.CLASSIFIER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
    )
    train(cfg)
    lines = logged(cfg)
    assert [("loss_mmd" in lines[i], "loss_classifier" in lines[i]) for i in range(6)] == (
        [(True, False)] * 2 + [(False, True)] * 4
    )
    rates = [lines[i]["lr_classifier"] for i in range(6)]
    # full rate until its own first iteration, then a cosine over its four
    assert rates[:3] == [cfg.SOLVER.CLASSIFIER.BASE_LR] * 3
    assert rates[4] == pytest.approx(0.5 * cfg.SOLVER.CLASSIFIER.BASE_LR)


def test_sequential_schedules_step_with_their_own_optimiser_only(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg(
        *("MODEL.PADING.SCHEDULE", "sequential", "SOLVER.MAX_ITER", 8),
        *("SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.POLY_LR_POWER", 1.0),
        *("SOLVER.CLASSIFIER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
    )
    with warnings.catch_warnings():
        # torch warns when a schedule is stepped before its optimiser
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*")
        trainer = train(cfg)
    lines = logged(cfg)
    falling = [1.0, 0.75, 0.5, 0.25]
    for name, first in (("generator", 0), ("classifier", 4)):
        base = cfg.SOLVER[name.upper()].BASE_LR
        rates = [lines[i][f"lr_{name}"] / base for i in range(first, first + 4)]
        assert rates == pytest.approx(falling)
        assert trainer.schedulers[name].last_epoch == 4


def test_steps_of_the_rate_act_within_the_share_of_a_sequential_schedule(padding_cfg: MakeCfg) -> None:
    """STEPS stand for MAX_ITER: at a share of a half the generator would end before the first of them."""
    cfg = padding_cfg(
        *("MODEL.PADING.SCHEDULE", "sequential", "MODEL.PADING.GENERATOR_SHARE", 0.5, "SOLVER.MAX_ITER", 8),
        *("SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.GENERATOR.STEPS", (4, 6)),
        *("SOLVER.CLASSIFIER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.CLASSIFIER.STEPS", (4,)),
    )
    train(cfg)
    lines = logged(cfg)
    for name, first, expected in (("generator", 0, [1, 1, 0.1, 0.01]), ("classifier", 4, [1, 1, 0.1, 0.1])):
        base = cfg.SOLVER[name.upper()].BASE_LR
        assert [lines[i][f"lr_{name}"] / base for i in range(first, first + 4)] == pytest.approx(expected)


@pytest.mark.parametrize("stop", [2, 4])
def test_sequential_training_resumes_in_either_phase(padding_cfg: MakeCfg, tmp_path: Path, stop: int) -> None:
    common = (
        *("MODEL.PADING.SCHEDULE", "sequential", "MODEL.PADING.GENERATOR_SHARE", 0.5, "SOLVER.CHECKPOINT_PERIOD", 1),
        *("SOLVER.CLASSIFIER.LR_SCHEDULER_NAME", "WarmupPolyLR", "MODEL.PADING.FEATURE_BANK.ENABLED", True),
    )
    expected = new_parameters(train(padding_cfg(*common, "OUTPUT_DIR", str(tmp_path / "whole"))))
    resumed = padding_cfg(*common, "OUTPUT_DIR", str(tmp_path / "resumed"))
    torch.manual_seed(resumed.SEED)
    first = GeneratorClassifierTrainer(resumed)
    first.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        stop_at(first, stop)
    got = new_parameters(train(resumed, resume=True))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name)


def test_each_optimiser_follows_its_own_solver_node(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg(
        *("SOLVER.GENERATOR.OPTIMIZER", "ADAMW", "SOLVER.GENERATOR.BASE_LR", 0.01),
        *("SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.GENERATOR.STEPS", (2,)),
        *("SOLVER.GENERATOR.GAMMA", 0.5, "SOLVER.CLASSIFIER.WARMUP_ITERS", 4, "SOLVER.WARMUP_FACTOR", 0.0),
        *("SOLVER.CLASSIFIER.MOMENTUM", 0.5, "SOLVER.CLASSIFIER.NESTEROV", True),
        *("SOLVER.CLASSIFIER.WEIGHT_DECAY", 0.25, "SOLVER.GENERATOR.WEIGHT_DECAY", 0.125),
    )
    trainer = GeneratorClassifierTrainer(cfg)
    generator, classifier = trainer.optimizers["generator"], trainer.optimizers["classifier"]
    assert isinstance(generator, torch.optim.AdamW)
    assert max(group["weight_decay"] for group in generator.param_groups) == 0.125
    group = classifier.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.5, True, 0.25)
    trainer.train()
    lines = logged(cfg)
    assert [lines[i]["lr_generator"] for i in range(4)] == [0.01, 0.01, 0.005, 0.005]
    assert [lines[i]["lr_classifier"] for i in range(3)] == pytest.approx([0.0, 2.5e-4, 5e-4])


@pytest.mark.parametrize("bank", [False, True])
def test_mixed_precision_stays_close(padding_cfg: MakeCfg, tmp_path: Path, bank: bool) -> None:
    first = {}
    for amp in (False, True):
        cfg = padding_cfg(
            *(*QUIET, "SOLVER.AMP.ENABLED", amp, "SOLVER.MAX_ITER", 1, "MODEL.PADING.FEATURE_BANK.ENABLED", bank),
            *("OUTPUT_DIR", str(tmp_path / str(amp))),
        )
        trainer = train(cfg)
        assert all(value.dtype == torch.float32 for value in new_parameters(trainer).values())
        first[amp] = logged(cfg)[0]
    for name in ("loss_mmd", "loss_relation", "loss_classifier"):
        assert first[True][name] == pytest.approx(first[False][name], rel=0.1)


def test_projection_trains_the_classifier_alone(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg("MODEL.PADING.METHOD", "projection")
    trainer = train(cfg)
    assert set(trainer.optimizers) == {"classifier"}
    assert set(logged(cfg)) == set(range(6))


def test_training_starts_from_a_segmentor(padding_cfg: MakeCfg, tmp_path: Path) -> None:
    segmentor = build_model(padding_cfg("MODEL.META_ARCHITECTURE", "MaskFormer"))
    torch.save({"model": segmentor.state_dict()}, tmp_path / "segmentor.pth")
    trainer = GeneratorClassifierTrainer(padding_cfg("MODEL.WEIGHTS", str(tmp_path / "segmentor.pth")))
    trainer.resume_or_load(resume=False)
    bias = segmentor.sem_seg_head.predictor.class_embed.bias
    torch.testing.assert_close(trainer.module.new_fc.bias[-1], bias[-1])


def test_bank_gives_the_features_that_images_give(padding_cfg: MakeCfg) -> None:
    """One view without augmentation: the same images in another order."""
    cfg = padding_cfg(*QUIET, "MODEL.PADING.FEATURE_BANK.ENABLED", True, "MODEL.PADING.FEATURE_BANK.DTYPE", "float32")
    trainer = GeneratorClassifierTrainer(cfg)
    bank = trainer.open_feature_bank()
    assert len(bank) == 4
    images = GeneratorClassifierTrainer(padding_cfg(*QUIET, "SOLVER.IMS_PER_BATCH", 4))
    images.module.load_state_dict(trainer.module.state_dict())
    batch = images._next_features()
    stored = bank.images(range(4))
    assert sorted(batch.labels.tolist()) == sorted(stored.labels.tolist())
    torch.testing.assert_close(batch.embeddings.sum(), stored.embeddings.sum(), rtol=1e-4, atol=1e-4)
    stream = iter(trainer.stream)
    assert next(stream).embeddings.shape == (2 * 8, 32)


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_any_number_of_processes_may_write_a_bank(
    padding_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """SOLVER.IMS_PER_BATCH is divided for the extraction alone, rounded up; features of images need it to be even."""
    monkeypatch.setattr("padding.trainer.comm.get_world_size", lambda: processes)
    cfg = padding_cfg("MODEL.PADING.FEATURE_BANK.ENABLED", True, "SOLVER.IMS_PER_BATCH", 12)
    trainer = GeneratorClassifierTrainer.__new__(GeneratorClassifierTrainer)
    trainer.accumulate_steps = 1
    assert trainer.images_per_forward(cfg) == {1: 12, 3: 4, 8: 2}[processes]
    images = padding_cfg("MODEL.PADING.FEATURE_BANK.ENABLED", False, "SOLVER.IMS_PER_BATCH", 12)
    if processes == 8:
        with pytest.raises(ValueError, match=r"IMS_PER_BATCH = 12 .* cannot be split evenly"):
            trainer.images_per_forward(images)
    else:
        assert trainer.images_per_forward(images) == 12 // processes


def test_bank_of_another_segmentor_is_refused(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg("MODEL.PADING.FEATURE_BANK.ENABLED", True)
    torch.manual_seed(0)
    GeneratorClassifierTrainer(cfg).open_feature_bank()
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=r"stale.*segmentor"):
        GeneratorClassifierTrainer(cfg).open_feature_bank()


def test_bank_serves_every_row_of_a_table(padding_cfg: MakeCfg, tmp_path: Path) -> None:
    """What the second stage trains, its seeds and thresholds leave the bank valid; what changes a feature does not."""
    node = "MODEL.PADING."
    common = (node + "FEATURE_BANK.ENABLED", True, node + "FEATURE_BANK.PATH", str(tmp_path / "bank"))

    def open_with(*opts: Any) -> None:
        torch.manual_seed(0)
        GeneratorClassifierTrainer(padding_cfg(*common, *opts)).open_feature_bank()

    open_with()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").glob("shard_*")}
    for opts in (
        (node + "GENERATOR.NAME", "gmmn", node + "ALIGN.ENABLED", False, node + "DISENTANGLE.ENABLED", False),
        ("SEED", 99, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.3, "INPUT.MIN_SIZE_TEST", 16),
        (node + "CLASSIFIER.UNSEEN_WEIGHT", 2.0, node + "TEST.SEEN_BIAS", 1.0, "SOLVER.MAX_ITER", 2),
    ):
        open_with(*opts)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").glob("shard_*")}
    for opts, named in (
        (("INPUT.RANDOM_FLIP", "vertical"), r"configuration.INPUT.RANDOM_FLIP: 'horizontal' there, 'vertical' wanted"),
        (("MODEL.MASK_FORMER.CLASS_WEIGHT", 5.0), r"configuration.MODEL.MASK_FORMER.CLASS_WEIGHT"),
        (("INPUT.KEEP_EMPTY_SEGMENTS", True), r"configuration.INPUT.KEEP_EMPTY_SEGMENTS"),
        ((node + "FEATURE_BANK.VIEWS", 2), "views: 1 there, 2 wanted"),
    ):
        with pytest.raises(ValueError, match=f"stale.*{named}"):
            open_with(*opts)


def test_bank_of_another_split_or_other_annotations_is_refused() -> None:
    split = tiny_split()
    other = dataclasses.replace(split, unseen_names=frozenset({"gem"}))
    assert split_digest(split) != split_digest(other)
    assert split_digest(split) == split_digest(tiny_split())
    entry = {"image_id": 1, "height": 4, "width": 5, "file_name": "a", "segments_info": [{"id": 1, "category_id": 2}]}
    same = annotations_digest([entry])
    assert annotations_digest([{**entry, "file_name": "elsewhere/a"}]) == same
    assert annotations_digest([{**entry, "segments_info": [{"id": 1, "category_id": 3}]}]) != same
    assert annotations_digest([entry, entry]) != same


def test_bank_options_are_read(padding_cfg: MakeCfg, tmp_path: Path) -> None:
    node = "MODEL.PADING.FEATURE_BANK."
    cfg = padding_cfg(
        *(node + "ENABLED", True, node + "PATH", str(tmp_path / "bank"), node + "VIEWS", 2, node + "SEED", 7),
        *(node + "NO_OBJECT_PER_IMAGE", 1, node + "IMAGES_PER_BATCH", 3),
    )
    trainer = GeneratorClassifierTrainer(cfg)
    batch = trainer._next_features()
    assert len(list((tmp_path / "bank").glob("shard_*"))) == 3  # 8 images, 3 in a file
    assert (batch.labels == 6).sum() == 3
    assert batch.weights[batch.labels == 6].sum() > 3


def test_accumulation_equals_the_big_batch(padding_cfg: MakeCfg, tmp_path: Path) -> None:
    def run(name: str, *opts: Any) -> dict[str, torch.Tensor]:
        cfg = padding_cfg(*QUIET, "OUTPUT_DIR", str(tmp_path / name), "SOLVER.MAX_ITER", 3, *opts)
        return new_parameters(train(cfg))

    whole, parts = run("whole"), run("parts", "SOLVER.ACCUMULATE_STEPS", 2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.PADING.METHOD", "supervised"), "nothing to train"),
        (("MODEL.PADING.SCHEDULE", "random"), "SCHEDULE is 'random'"),
        (("MODEL.PADING.GENERATOR_SHARE", 1.5), r"GENERATOR_SHARE is 1\.5"),
    ],
)
def test_wrong_choices_are_named(padding_cfg: MakeCfg, opts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorClassifierTrainer(padding_cfg(*opts))


def test_other_models_are_refused(padding_cfg: MakeCfg) -> None:
    with pytest.raises(TypeError, match="trains PADing, not MaskFormer"):
        GeneratorClassifierTrainer(padding_cfg("MODEL.META_ARCHITECTURE", "MaskFormer"))


def test_trained_model_predicts_after_loading(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg("SOLVER.MAX_ITER", 2)
    trained = train(cfg).module
    model = build_model(cfg)
    GeneratorClassifierTrainer.load_weights(model, str(Path(cfg.OUTPUT_DIR) / "model_final.pth"), complete=True)
    assert isinstance(model, PADing)
    torch.testing.assert_close(model.new_fc.weight, trained.new_fc.weight)


def _train_rank(rank: int, world_size: int, port: int, cfg: CfgNode) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
    }
    with torchrun_process_group("cpu"):
        train(cfg)


@pytest.mark.parametrize("bank", [False, True])
def test_two_processes_equal_one(padding_cfg: MakeCfg, tmp_path: Path, bank: bool) -> None:
    opts = (
        *QUIET,
        "SOLVER.MAX_ITER",
        3,
        "MODEL.PADING.FEATURE_BANK.ENABLED",
        bank,
        "SOLVER.GENERATOR.OPTIMIZER",
        "SGD",
    )
    single = padding_cfg(*opts, "OUTPUT_DIR", str(tmp_path / "one"))
    expected = new_parameters(train(single))
    double = padding_cfg(*opts, "OUTPUT_DIR", str(tmp_path / "two"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_train_rank, args=(rank, 2, port, double)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    saved = torch.load(tmp_path / "two" / "model_final.pth", weights_only=True)["model"]
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)
    a, b = logged(single), logged(double)
    for iteration in range(3):
        assert b[iteration]["loss_mmd"] == pytest.approx(a[iteration]["loss_mmd"], rel=1e-4)
