# SPDX-License-Identifier: Apache-2.0
"""Policies of the shared batch norm: whose statistics move, what normalizes, what a checkpoint holds."""

import copy

import pytest
import torch
from torch import nn

from salseg.batch_norm import SaliencyStatistics


class Net(nn.Module):
    def __init__(self, policy: str) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        self.statistics = SaliencyStatistics(policy, [self.shared])

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        with self.statistics.saliency_pass():
            return self.shared(images)


def running(net: Net) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.shared.state_dict().items() if "running" in k or "tracked" in k}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def build(policy: str) -> Net:
    torch.manual_seed(0)
    return Net(policy)


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5


@pytest.mark.parametrize(("policy", "moves"), [("seg_only", False), ("per_task", False), ("shared", True)])
def test_statistics_of_the_segmentation_move_with_shared_ones_only(policy: str, moves: bool) -> None:
    net = build(policy).train()
    before = running(net)
    found = net.saliency(IMAGES)
    assert same(before, running(net)) is not moves
    torch.testing.assert_close(found, build("shared").train().saliency(IMAGES))  # statistics of the batch everywhere
    net.shared(IMAGES)  # an ordinary pass moves them again
    assert not same(before, running(net))


def test_own_statistics_are_those_of_a_network_that_sees_saliency_alone() -> None:
    net, alone = build("per_task").train(), build("shared").train()
    for step in range(3):
        net.shared(IMAGES * step)
        net.saliency(IMAGES + step)
        alone.shared(IMAGES + step)
    net.eval()
    torch.testing.assert_close(net.saliency(IMAGES), alone.eval().shared(IMAGES))
    assert not torch.allclose(net.shared(IMAGES), net.saliency(IMAGES))
    assert int(net.get_buffer("statistics.num_batches_tracked_0")) == 3


def test_own_statistics_travel_in_checkpoints_and_copies() -> None:
    net = build("per_task").train()
    net.saliency(IMAGES)
    other = build("per_task")
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    for module in (other, copied):
        torch.testing.assert_close(module.eval().saliency(IMAGES), net.eval().saliency(IMAGES))
    copied.train().saliency(10 * IMAGES)
    assert torch.equal(other.get_buffer("statistics.running_mean_0"), net.get_buffer("statistics.running_mean_0"))


def test_reset_takes_the_statistics_of_the_loaded_network() -> None:
    net = build("per_task").train()
    net.shared(IMAGES)
    net.statistics.reset()
    torch.testing.assert_close(net.eval().saliency(IMAGES), net.shared(IMAGES))


def test_evaluation_is_untouched_by_seg_only() -> None:
    net = build("seg_only").eval()
    torch.testing.assert_close(net.saliency(IMAGES), net.shared(IMAGES))
    assert all(norm.track_running_stats for norm in net.shared if isinstance(norm, nn.BatchNorm2d))


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"BN_STATS is 'mixed'; expected one of seg_only, per_task, shared"):
        build("mixed")
