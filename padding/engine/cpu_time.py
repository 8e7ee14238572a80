# SPDX-License-Identifier: Apache-2.0
"""CPU seconds by stage of a run: training, evaluation, extraction, second stage and what else is named.

A stage inside another counts for itself alone. Workers count where they ended, for whoever waited for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


def process_cpu_seconds() -> float:
    """Of this process and of the workers that it has waited for."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


@dataclass
class _Open:
    """A stage that has not ended: what it spent is counted from ``since`` on."""

    name: str
    since: float


@dataclass
class StageSeconds:
    """What the stages that ran within ``counted_stages`` have spent."""

    spent: dict[str, float] = field(default_factory=dict)

    def so_far(self) -> dict[str, float]:
        """CPU seconds by stage, the running one included."""
        _settle()
        return dict(self.spent)


_stack: list[_Open] = []
_counting: list[StageSeconds] = []


@contextmanager
def counted_stages() -> Iterator[StageSeconds]:
    """Count the stages that run in this block; blocks may be nested."""
    _settle()
    seconds = StageSeconds()
    _counting.append(seconds)
    try:
        yield seconds
    finally:
        _settle()
        _counting.remove(seconds)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what the block spends under a name; may decorate a function."""
    _settle()
    _stack.append(_Open(name, process_cpu_seconds()))
    try:
        yield
    finally:
        _settle()
        _stack.pop()
        if _stack:
            _stack[-1].since = process_cpu_seconds()


def _settle() -> None:
    """Give the innermost stage what it has spent up to now."""
    if not _stack:
        return
    now = process_cpu_seconds()
    innermost = _stack[-1]
    for seconds in _counting:
        seconds.spent[innermost.name] = seconds.spent.get(innermost.name, 0.0) + now - innermost.since
    innermost.since = now
