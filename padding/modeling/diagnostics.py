# SPDX-License-Identifier: Apache-2.0
"""Diagnostics of a training step: scalars that models note beside their losses, for the log and TensorBoard."""

from collections.abc import Mapping

from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor


def event_storage() -> EventStorage | None:
    """The training's event storage; None outside a training loop, where v0.6 has no other way to ask."""
    try:
        return get_event_storage()
    except AssertionError:
        return None


def training_iteration(default: int = 0) -> int:
    """Iteration of the training; ``default`` outside one."""
    storage = event_storage()
    return default if storage is None else storage.iter


def note_observations(prefix: str, observations: Mapping[str, Tensor | float]) -> None:
    """Put scalars into the event storage as ``<prefix>/<name>``; outside a training loop nothing happens."""
    storage = event_storage()
    if storage is not None:
        storage.put_scalars(**{f"{prefix}/{name}": float(value) for name, value in observations.items()})
