# SPDX-License-Identifier: Apache-2.0
"""Parts of a model stay as they are by patterns of names, batch norms with their statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from padding.engine.freezing import freeze_parameters
from padding.errors import ConfigError
from tests.toy_training import toy_cfg, train_toy


def network() -> nn.Module:
    model = nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
            "head": nn.Conv2d(4, 2, 1),
        }
    )
    model.forward = lambda images: model["head"](model["backbone"](images))
    return model


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ((), {"backbone.0", "backbone.1", "backbone.2", "backbone.3", "head"}),
        (("backbone.*",), {"head"}),
        (("backbone.*", "!backbone.[23].*"), {"backbone.2", "backbone.3", "head"}),
        (("*", "!head.weight"), {"head"}),
        (("head.*", "backbone.0.weight"), {"backbone.0", "backbone.1", "backbone.2", "backbone.3"}),
    ],
)
def test_patterns_say_what_is_kept(patterns: tuple[str, ...], trained: set[str]) -> None:
    model = network()
    freeze_parameters(model, patterns)
    assert {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_kept_batch_norm_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    model, names = network(), set(network().state_dict())
    freeze_parameters(model, ("backbone.0.*", "backbone.1.*"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model(3 + torch.randn(2, 3, 8, 8)).sum().backward()
    after = model.state_dict()
    assert set(after) == names
    assert torch.equal(after["backbone.1.running_mean"], before["backbone.1.running_mean"])
    assert not torch.equal(after["backbone.3.running_mean"], before["backbone.3.running_mean"])


def test_a_training_moves_the_rest_alone(tmp_path: Path) -> None:
    opts: tuple[Any, ...] = ("MODEL.FREEZE", ("backbone.*", "!backbone.1.*"))
    before = {name: p.detach().clone() for name, p in train_toy(toy_cfg(tmp_path / "a", *opts, "SOLVER.MAX_ITER", 0)).module.named_parameters()}  # fmt: skip  # noqa: E501
    after = dict(train_toy(toy_cfg(tmp_path / "b", *opts)).module.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("backbonne.*",), r"no parameter fits 'backbonne\.\*'; names are such as backbone"),
        (("*",), r"MODEL\.FREEZE \('\*',\) leaves nothing to train"),
    ],
)
def test_rules_without_sense_are_refused(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze_parameters(network(), patterns)
