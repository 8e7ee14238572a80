# SPDX-License-Identifier: Apache-2.0
"""The states of all random generators as tensors and plain numbers, so that a checkpoint can hold and restore them."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture_random_state(*, with_cuda: bool = True) -> dict[str, Any]:
    """Read the states of ``random``, numpy, torch and the current CUDA device.

    Args:
        with_cuda: include the current CUDA device, if CUDA is in use.

    Returns:
        Nested dict of tensors, numbers and None only, which ``torch.load(..., weights_only=True)`` accepts.
    """
    version, words, gauss = random.getstate()
    legacy: Mapping[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]  # noqa: NPY002
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if with_cuda and torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every generator to what ``capture_random_state`` read."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": legacy["key"].numpy().astype(np.uint32), "pos": legacy["pos"]},
            "has_gauss": legacy["has_gauss"],
            "gauss": legacy["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state(*, with_cuda: bool = True) -> Iterator[None]:
    """Run a block without a trace in the generators, whatever it draws."""
    state = capture_random_state(with_cuda=with_cuda)
    try:
        yield
    finally:
        restore_random_state(state)
