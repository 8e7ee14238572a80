# SPDX-License-Identifier: Apache-2.0
"""Readers give the right result of a mutated input, or the project's error that names the file; nothing else."""

import itertools
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from padding.errors import DataError
from tests.fuzz.harness import GOOD, Target, attempt
from tests.fuzz.runner import MEMORY_BYTES, outcomes_of
from tests.fuzz.targets import TARGETS

# Inputs of each reader: together about ten seconds of a processor.
EXAMPLES = {"mask": 600, "scribble xml": 250, "instances": 400, "panoptic": 400}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    """Thousands of lines about broken files are no news here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "input"


@pytest.mark.parametrize("name", TARGETS)
def test_sound_input_is_read_right(name: str, folder: Path) -> None:
    one = TARGETS[name]
    sound = Target(name, one.write, lambda _folder, _rng: "none", one.read)
    assert attempt(sound, 0, folder).result == "right"


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_is_read_right_or_named(name: str, folder: Path) -> None:
    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=EXAMPLES.get(name, 200),
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        outcome = attempt(TARGETS[name], seed, folder)
        assert outcome.result in GOOD, str(outcome)

    check()


def reader(error: Exception | None) -> Target:
    def read(folder: Path) -> None:
        if error is not None:
            raise error

    return Target("x", lambda folder: (folder / "a.txt").touch(), lambda folder, rng: str(rng.random()), read)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "right"),
        (DataError("a.txt: is wrong"), "named"),
        (DataError("something is wrong"), "unnamed"),
        (AssertionError("3 instead of 4"), "silent"),
        (ValueError("a.txt"), "raw"),
        (KeyError("height"), "raw"),
        (FileNotFoundError(2, "no such file", "a.txt"), "raw"),
        (MemoryError(), "memory"),
    ],
)
def test_outcomes_are_told_apart(error: Exception | None, result: str, tmp_path: Path) -> None:
    outcome = attempt(reader(error), 5, tmp_path / "input")
    assert outcome.result == result
    assert attempt(reader(None), 5, tmp_path / "input").mutation == outcome.mutation
    assert attempt(reader(None), 6, tmp_path / "input").mutation != outcome.mutation


def test_a_process_that_dies_hangs_or_takes_all_memory_is_an_outcome(tmp_path: Path) -> None:
    deeds = {1: os.abort, 2: lambda: bytearray(2 * MEMORY_BYTES), 3: lambda: time.sleep(60)}

    def mutate(folder: Path, rng: object) -> str:
        number = int((tmp_path / "n").read_text()) if (tmp_path / "n").exists() else 0
        (folder / "n").write_text(str(number))
        return "none"

    def read(folder: Path) -> None:
        number = int((folder / "n").read_text())
        (tmp_path / "n").write_text(str(number + 1))  # the next input does the next deed
        deeds.get(number, lambda: None)()

    outcomes = outcomes_of(Target("x", lambda folder: None, mutate, read), 7, 50.0, patience=5.0)
    first = list(itertools.islice(outcomes, 5))
    assert [outcome.result for outcome in first] == ["right", "crash", "memory", "hang", "right"]
    assert [outcome.seed for outcome in first] == [7, 8, 9, 10, 11]
    outcomes.close()
