# SPDX-License-Identifier: Apache-2.0
"""Workers start from a program that has used torch's threads, where a forked one can hang."""

import os

import pytest
import torch

from padding.data.worker_pool import worker_pool


def test_pool_runs_after_torch_has_started_threads() -> None:
    torch.set_num_threads(2)
    torch.rand(512, 512) @ torch.rand(512, 512)
    with worker_pool(2) as pool:
        assert list(pool.map(abs, [-3, 2, -1])) == [3, 2, 1]
        assert pool.submit(os.getpid).result(timeout=60) != os.getpid()


def test_unknown_start_method() -> None:
    with pytest.raises(ValueError, match="expected one of forkserver, fork, spawn"):
        worker_pool(1, "thread")
