# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing changes memory and nothing else: gradients, random numbers, running statistics, names."""

import copy

import pytest
import torch
from torch import Tensor, nn

from padding.modeling.recompute import recompute_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, features: Tensor, shift: float) -> Tensor:
        self.calls += 1
        return self.dropout(self.norm(self.conv(features)).relu()) + shift


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features, 0.5)
        return features


@pytest.fixture
def pair() -> tuple[Network, Network]:
    """The same network without and with it."""
    plain = Network()
    recomputed = copy.deepcopy(plain)
    assert recompute_blocks(recomputed, (Block,)) == 2
    return plain, recomputed


def train_step(network: nn.Module) -> None:
    torch.manual_seed(5)
    network(torch.randn(3, 4, 6, 6)).square().sum().backward()


def test_gradients_random_numbers_and_statistics_are_equal(pair: tuple[Network, Network]) -> None:
    for network in pair:
        train_step(network)
    plain, recomputed = pair
    assert [block.calls for block in recomputed.blocks] == [2, 2]  # so that it was there
    assert [block.calls for block in plain.blocks] == [1, 1]
    for name, parameter in recomputed.named_parameters():
        assert torch.equal(parameter.grad, plain.get_parameter(name).grad), name
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recomputed.state_dict()[name]), name


def test_nothing_is_computed_twice_without_gradients(pair: tuple[Network, Network]) -> None:
    network = pair[1]
    with torch.no_grad():
        network.train()(torch.randn(3, 4, 6, 6))
    network.eval()(torch.randn(3, 4, 6, 6)).sum().backward()
    assert [block.calls for block in network.blocks] == [2, 2]


def test_a_copy_recomputes_its_own_blocks(pair: tuple[Network, Network]) -> None:
    original = pair[1]
    twin = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    train_step(twin)
    assert [block.calls for block in twin.blocks] == [2, 2]
    assert [block.calls for block in original.blocks] == [0, 0]
    assert all(parameter.grad is None for parameter in original.parameters())


def test_a_frozen_statistic_stays_frozen(pair: tuple[Network, Network]) -> None:
    network = pair[1]
    network.blocks[0].norm.eval()
    train_step(network)
    assert torch.equal(network.blocks[0].norm.running_mean, torch.zeros(4))


def test_other_modules_are_left_alone() -> None:
    network = Network()
    assert recompute_blocks(network, (nn.LSTM,)) == 0
    train_step(network)
    assert [block.calls for block in network.blocks] == [1, 1]
