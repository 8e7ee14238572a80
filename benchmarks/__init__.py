# SPDX-License-Identifier: Apache-2.0
"""One module per measured claim: ``python -m benchmarks.<name>``, the last line is one JSON object.

Here is what they share: functions timed in turn, the difference of their results, and numbers as arguments.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import padding  # noqa: F401  (the fixes come before anything of Detectron2)

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


def time_in_turn(forms: Mapping[str, Callable[[], Result]], repeats: int) -> tuple[dict[str, float], dict[str, Result]]:
    """Median CPU seconds and last result of some functions; one more call of each warms up.

    They alternate, so that a busy machine slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    results: dict[str, Result] = {}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            start = time.process_time()
            results[name] = form()
            if repeat:
                # A coarse clock may not have moved, and ratios need a divisor.
                seconds[name].append(max(time.process_time() - start, 1e-9))
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of tensors, each relative to the largest entry of what is expected."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def add_numbers(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """Add whole numbers as options, by name with underscores."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="default: %(default)s")
