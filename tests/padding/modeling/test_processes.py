import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from padding.modeling.processes import mean_over_processes, sum_over_processes, world_size


def test_one_process_has_nothing_to_add() -> None:
    values = torch.randn(3)
    assert sum_over_processes(values) is values
    assert mean_over_processes(values) is values
    assert world_size() == 1


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    local = torch.tensor([1.0, 4.0]) * (rank + 1)
    summed = sum_over_processes(local.requires_grad_())
    (summed * torch.tensor([1.0, 10.0]) * (rank + 1)).sum().backward()
    mean = mean_over_processes(local)
    torch.save([summed.detach(), local.grad, mean, local.detach(), world_size()], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_get_the_same_sum_and_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    processes = mp.start_processes(_worker, args=(str(tmp_path),), nprocs=2, start_method="fork", join=False)
    deadline = time.monotonic() + 60
    while not processes.join(timeout=5):  # True once both have ended; raises what they raised
        assert time.monotonic() < deadline
    for rank in range(2):
        summed, gradient, mean, local, size = torch.load(tmp_path / f"{rank}.pt")
        assert summed.tolist() == [3.0, 12.0]
        assert gradient.tolist() == [3.0, 30.0]  # of both processes' losses
        assert mean.tolist() == [1.5, 6.0]
        assert not mean.requires_grad
        assert local.tolist() == [1.0 + rank, 4.0 + 4 * rank]  # left as it was
        assert size == 2
