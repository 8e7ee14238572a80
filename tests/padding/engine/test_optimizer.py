# SPDX-License-Identifier: Apache-2.0
"""Parameter groups by rule, schedules against their formulas and against Detectron2, clipping."""

import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from torch import nn

from padding.engine.config import add_solver_config
from padding.engine.optimizer import (
    base_learning_rate,
    build_lr_scheduler,
    build_optimizer,
    clip_gradients_,
    groups_of_parts,
    lr_multiplier,
    parameter_groups,
    solver_node,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.backbone.register_parameter("relative_position_bias_table", nn.Parameter(torch.zeros(5)))
        self.backbone.register_parameter("gamma", nn.Parameter(torch.zeros(4)))
        self.my_backbone_adapter = nn.Linear(2, 2)  # "backbone" is a part of this name, not a module of that name
        self.student = nn.ModuleDict({"backbone": nn.Linear(2, 2, bias=False)})
        self.queries = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)
        self.tied = self.head
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def solver_cfg(**keys: object) -> CfgNode:
    cfg = get_cfg()
    add_solver_config(cfg)
    for key, value in keys.items():
        cfg.SOLVER[key] = value
    return cfg


def rates(node: CfgNode, iterations: range) -> list[float]:
    at = lr_multiplier(node)
    return [at(i) for i in iterations]


def test_groups_follow_the_rules() -> None:
    model = Model()
    groups = parameter_groups(
        model,
        base_lr=1.0,
        weight_decay=0.05,
        weight_decay_norm=0.0,
        weight_decay_embed=0.01,
        backbone_multiplier=0.1,
    )
    actual = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[key]: value for key, value in actual.items()} == {
        "backbone.0.weight": (0.1, 0.05),
        "backbone.0.bias": (0.1, 0.05),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "backbone.relative_position_bias_table": (0.1, 0.01),
        "backbone.gamma": (0.1, 0.0),
        "my_backbone_adapter.weight": (1.0, 0.05),
        "my_backbone_adapter.bias": (1.0, 0.05),
        "student.backbone.weight": (0.1, 0.05),
        "queries.weight": (1.0, 0.01),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.05),
    }
    assert len(groups) == len({(g["lr"], g["weight_decay"]) for g in groups}) == 6
    assert sum(len(group["params"]) for group in groups) == len(actual)  # tied parameters once


def test_bias_keys_of_detectron2_are_honoured() -> None:
    groups = parameter_groups(nn.Linear(2, 2), base_lr=1.0, weight_decay=0.5, weight_decay_bias=0.0, bias_lr_factor=2.0)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1.0, 0.5), (2.0, 0.0)]


def test_every_part_gets_its_rate_and_the_common_rules() -> None:
    node = solver_cfg(WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_BIAS=0.25, BIAS_LR_FACTOR=2.0).SOLVER
    model = Model()
    groups = groups_of_parts(node, [(model.head, 1.0), (model.norm, 0.1)])
    found = [(group["lr"], group["weight_decay"], [p.numel() for p in group["params"]]) for group in groups]
    assert found == [(1.0, 0.5, [16]), (2.0, 0.25, [4]), (0.1, 0.0, [4]), (0.2, 0.0, [4])]


@pytest.mark.parametrize(
    ("name", "kind"), [("ADAMW", torch.optim.AdamW), ("adam", torch.optim.Adam), ("SGD", torch.optim.SGD)]
)
def test_optimizer_is_chosen_by_name(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = build_optimizer(solver_cfg(OPTIMIZER=name, BASE_LR=0.25, MOMENTUM=0.7), nn.Linear(2, 2))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.25
    if name == "SGD":
        assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(("reference", "expected"), [(0, 0.02), (16, 0.01), (8, 0.02), (4, 0.04)])
def test_rate_is_scaled_from_the_batch_it_is_stated_for(
    reference: int, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = solver_cfg(OPTIMIZER="SGD", BASE_LR=0.02, IMS_PER_BATCH=8, REFERENCE_BATCH=reference, BACKBONE_MULTIPLIER=0.5)
    cfg.SOLVER.GENERATOR = CfgNode({"BASE_LR": 0.2})
    with caplog.at_level(logging.INFO):
        optimizer = build_optimizer(cfg, Model())
    found = sorted({group["lr"] for group in optimizer.param_groups})
    assert found == pytest.approx([expected / 2, expected])
    assert ("stated for 16 images a step, SOLVER.IMS_PER_BATCH is 8" in caplog.text) == (reference == 16)
    assert (f"Learning rate {expected:g}: SOLVER.BASE_LR 0.02" in caplog.text) == (reference > 0)
    schedule = build_lr_scheduler(cfg.SOLVER, optimizer)
    assert max(schedule.base_lrs) == pytest.approx(expected)  # the schedule starts from the scaled rate
    assert base_learning_rate(solver_node(cfg, "generator")) == pytest.approx(10 * expected)


def test_negative_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.REFERENCE_BATCH is -1; expected a number of images, or 0"):
        base_learning_rate(solver_cfg(REFERENCE_BATCH=-1).SOLVER)


def test_unknown_optimizer_and_frozen_model_are_errors() -> None:
    with pytest.raises(ValueError, match=r'SOLVER.OPTIMIZER is \'LION\'; known are "ADAMW"'):
        build_optimizer(solver_cfg(OPTIMIZER="LION"), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="every parameter of its modules is frozen"):
        build_optimizer(solver_cfg(), nn.Linear(2, 2).requires_grad_(False))


def test_sub_node_takes_missing_keys_from_solver() -> None:
    cfg = solver_cfg(WEIGHT_DECAY_NORM=0.3)
    cfg.SOLVER.GENERATOR = CfgNode({"BASE_LR": 5e-4, "CLIP_GRADIENTS": {"ENABLED": True}})
    cfg.SOLVER.MAX_ITER = 77
    cfg.freeze()
    node = solver_node(cfg, "generator")
    assert (node.BASE_LR, node.MAX_ITER, node.WEIGHT_DECAY_NORM) == (5e-4, 77, 0.3)
    # A nested node keeps the keys that the sub-node does not set.
    assert node.CLIP_GRADIENTS.ENABLED
    assert node.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    assert cfg.SOLVER.BASE_LR == 0.001
    assert not cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    with pytest.raises(KeyError, match=r"SOLVER\.TEACHER does not exist"):
        solver_node(cfg, "teacher")


def test_multi_step_by_hand() -> None:
    node = solver_cfg(STEPS=(4, 6), GAMMA=0.1, MAX_ITER=8, WARMUP_ITERS=2, WARMUP_FACTOR=0.5).SOLVER
    assert rates(node, range(8)) == pytest.approx([0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_warmup_cosine_and_constant_by_hand() -> None:
    node = solver_cfg(
        LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=4, WARMUP_ITERS=2, WARMUP_METHOD="constant", WARMUP_FACTOR=0.25
    ).SOLVER
    root = math.sqrt(0.5)
    assert rates(node, range(5)) == pytest.approx([0.25, 0.25 * (1 + root) / 2, 0.5, (1 - root) / 2, 0.0])
    node.LR_SCHEDULER_NAME = "constant"
    assert rates(node, range(4)) == [0.25, 0.25, 1.0, 1.0]


def test_multi_step_equals_detectron2() -> None:
    cfg = solver_cfg(STEPS=(30, 80), GAMMA=0.2, MAX_ITER=100, WARMUP_ITERS=13, WARMUP_FACTOR=0.01, BASE_LR=0.4)
    parameter = nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.SGD([parameter], lr=0.4) for _ in range(2))
    schedules = build_lr_scheduler(cfg.SOLVER, ours), build_detectron2_scheduler(cfg, theirs)
    for iteration in range(100):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6), iteration
        ours.step()
        theirs.step()
        for schedule in schedules:
            schedule.step()


@pytest.mark.parametrize(("ending", "factor"), [(0.0, 0.2), (0.3, 1.0)])
def test_poly_equals_deeplab(ending: float, factor: float) -> None:
    cfg = solver_cfg(
        LR_SCHEDULER_NAME="WarmupPolyLR",
        MAX_ITER=50,
        WARMUP_ITERS=5,
        WARMUP_FACTOR=factor,
        POLY_LR_POWER=0.9,
        POLY_LR_CONSTANT_ENDING=ending,
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = WarmupPolyLR(
        optimizer, max_iters=50, warmup_factor=factor, warmup_iters=5, power=0.9, constant_ending=ending
    )
    at = lr_multiplier(cfg.SOLVER)
    for iteration in range(50):
        assert at(iteration) == pytest.approx(optimizer.param_groups[0]["lr"]), iteration
        optimizer.step()
        theirs.step()


def test_schedule_beyond_its_end_stays_at_the_end() -> None:
    node = solver_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=10, WARMUP_ITERS=0).SOLVER
    assert lr_multiplier(node)(25) == 0.0
    assert lr_multiplier(node, max_iter=20)(10) == pytest.approx(0.5**0.9)


def test_schedule_resumes_from_a_safe_file(tmp_path: Path) -> None:
    node = solver_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=20, WARMUP_ITERS=4).SOLVER

    def run(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            seen.append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
        return seen

    def fresh() -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(node, torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.3))

    expected = run(fresh(), 20)
    first = fresh()
    assert run(first, 9) == expected[:9]
    torch.save({"s": first.state_dict(), "o": first.optimizer.state_dict()}, tmp_path / "s.pth")
    second, saved = fresh(), torch.load(tmp_path / "s.pth", weights_only=True)
    second.optimizer.load_state_dict(saved["o"])
    second.load_state_dict(saved["s"])
    assert run(second, 11) == expected[9:]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LR_SCHEDULER_NAME": "OneCycle"}, "SOLVER.LR_SCHEDULER_NAME is 'OneCycle'; known are"),
        ({"WARMUP_METHOD": "burnin"}, "SOLVER.WARMUP_METHOD is 'burnin'; known are"),
        ({"STEPS": (5, 3)}, "SOLVER.STEPS must increase"),
    ],
)
def test_bad_schedule_is_an_error(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_multiplier(solver_cfg(**keys).SOLVER)


def gradients(*values: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("full_model", [[0.6, 0.0], [0.8]]),  # joint norm 5 -> 1
        ("norm", [[1.0, 0.0], [1.0]]),  # each by itself
        ("value", [[1.0, 0.0], [1.0]]),
    ],
)
def test_clipping_by_kind(kind: str, expected: list[list[float]]) -> None:
    node = solver_cfg().SOLVER.CLIP_GRADIENTS
    node.ENABLED, node.CLIP_TYPE, node.CLIP_VALUE = True, kind, 1.0
    parameters = gradients([3.0, 0.0], [4.0])
    clip_gradients_(parameters, node)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(value), rtol=1e-5, atol=1e-6)


def test_clipping_off_and_unknown() -> None:
    node = solver_cfg().SOLVER.CLIP_GRADIENTS
    parameters = gradients([30.0])
    clip_gradients_(parameters, node)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([30.0]))
    node.ENABLED, node.CLIP_TYPE = True, "layer"
    with pytest.raises(ValueError, match="CLIP_TYPE is 'layer'; known are"):
        clip_gradients_(parameters, node)
