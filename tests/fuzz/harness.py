# SPDX-License-Identifier: Apache-2.0
"""Mutate a valid input, read it, and judge: the right result or the project's error that names the file.

Anything else is a failure: another exception (``raw``), an error that names no file of the input (``unnamed``), a
result that the file does not say (``silent``), and what only a process of its own survives (``crash``, ``hang``,
``memory``).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from padding.errors import UserError

GOOD = ("right", "named")


@dataclass(frozen=True)
class Target:
    """A reader under attack; all three functions get the folder of the input."""

    name: str
    write: Callable[[Path], None]  # writes the valid input
    mutate: Callable[[Path, random.Random], str]  # damages it; returns the kind of mutation
    # Reads the input as training, evaluation and preparation do; an ``AssertionError`` says that a result is wrong.
    read: Callable[[Path], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutated input."""

    target: str
    seed: int
    mutation: str
    result: str  # "right", "named", or what went wrong
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.target} seed {self.seed} ({self.mutation}): {self.result} {self.detail}"


def attempt(target: Target, seed: int, folder: Path) -> Outcome:
    """Mutate with a seed, read, judge.

    Args:
        target: the reader.
        seed: the same gives the same input.
        folder: emptied, then holds the mutated input.
    """
    mutation = make_input(target, seed, folder)
    result, detail = _judged(target, folder)
    return Outcome(target.name, seed, mutation, result, detail)


def make_input(target: Target, seed: int, folder: Path) -> str:
    """Write the mutated input of a seed into a folder that is emptied first; returns the kind of mutation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target.write(folder)
    return target.mutate(folder, random.Random(seed))


def _judged(target: Target, folder: Path) -> tuple[str, str]:
    try:
        target.read(folder)
    except UserError as error:
        message = str(error)
        named = any(path.name in message for path in folder.rglob("*")) or str(folder) in message
        return ("named" if named and message.strip() else "unnamed"), message[:300]
    except AssertionError as error:
        return "silent", str(error)[:300]
    except MemoryError as error:
        return "memory", repr(error)[:300]
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"[:300]
    return "right", ""
