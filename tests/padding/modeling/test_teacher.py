# SPDX-License-Identifier: Apache-2.0
"""The pass that makes targets: batch-norm policies, restored modes, moving averages."""

import copy

import pytest
import torch
from torch import nn

from padding.modeling.teacher import target_pass, update_average, warmed_up


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    net[4].eval()  # frozen by its owner
    return net


def statistics(net: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for b in net.buffers()]


@pytest.mark.parametrize(("policy", "moves"), [("batch_no_update", False), ("batch", True), ("running", False)])
def test_only_the_batch_policy_moves_running_statistics(policy: str, moves: bool) -> None:
    net, images = network(), torch.randn(2, 3, 8, 8)
    before = statistics(net)
    with target_pass(net, policy):
        net(images)
    after = statistics(net)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves
    frozen = list(net[4].buffers())
    assert all(torch.equal(a, b) for a, b in zip(frozen, before[-len(frozen) :], strict=True))


@pytest.mark.parametrize("policy", ["batch_no_update", "batch", "running"])
def test_modes_and_flags_are_restored_even_after_an_error(policy: str) -> None:
    net = network()
    modes = [m.training for m in net.modules()]
    with pytest.raises(RuntimeError, match="stop"), target_pass(net, policy):
        raise RuntimeError("stop")
    assert [m.training for m in net.modules()] == modes
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_batch_policies_normalise_by_the_batch_without_dropout() -> None:
    net, images = network(), 5 + 3 * torch.randn(4, 3, 8, 8)
    with target_pass(net, "batch_no_update"):
        first, second = net(images), net(images)
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    middle = nn.functional.batch_norm(net[0](images), None, None, net[1].weight, net[1].bias, training=True)
    torch.testing.assert_close(first, net[4](net[3](middle)))
    with target_pass(net, "running"):
        running = net(images)
    assert (running - first).abs().max() > 0.1  # initial statistics are those of standard images


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match=r"A\.BN is 'eval'"), target_pass(network(), "eval", key="A.BN"):  # type: ignore[arg-type]
        pass


def test_average_is_the_closed_form_and_takes_buffers_along() -> None:
    net = network()
    average = copy.deepcopy(net)
    weights = [net[0].weight.detach().clone()]
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net(torch.randn(2, 3, 8, 8))
        weights.append(net[0].weight.detach().clone())
        update_average(average, net, 0.9)
    expected = 0.9**3 * weights[0] + 0.1 * (0.81 * weights[1] + 0.9 * weights[2] + weights[3])
    torch.testing.assert_close(average[0].weight, expected)
    assert average[1].running_mean.abs().max() > 0
    assert average[1].num_batches_tracked == net[1].num_batches_tracked


def test_a_warmed_up_average_is_the_mean_until_the_decay_is_reached() -> None:
    assert [warmed_up(0.75, t) for t in range(6)] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 3 / 4, 3 / 4])
    net = network()
    average, seen = copy.deepcopy(net), []
    for t in range(4):
        with torch.no_grad():
            net[0].weight.add_(torch.randn_like(net[0].weight))
        seen.append(net[0].weight.detach().clone())
        update_average(average, net, warmed_up(0.75, t))
        torch.testing.assert_close(average[0].weight, sum(seen) / len(seen))
