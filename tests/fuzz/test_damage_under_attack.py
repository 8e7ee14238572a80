# SPDX-License-Identifier: Apache-2.0
"""What trainings write, weight files and images: mutated, they are read right or refused by name, and nothing else."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import padding.compat  # noqa: F401  (before Detectron2)
from tests.fuzz.damage import TARGETS
from tests.fuzz.harness import GOOD, Target, attempt

BY_NAME = {target.name: target for target in TARGETS}
EXAMPLES = 250  # of each reader: together some eight seconds of a processor


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage") / "input"


@pytest.mark.parametrize("name", BY_NAME)
def test_sound_input_is_read_right(name: str, folder: Path) -> None:
    sound = Target(name, BY_NAME[name].write, lambda _folder, _rng: "none", BY_NAME[name].read)
    assert attempt(sound, 0, folder).result == "right"


@pytest.mark.parametrize("name", BY_NAME)
def test_mutated_input_is_read_right_or_refused_by_name(name: str, folder: Path) -> None:
    @settings(
        derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        outcome = attempt(BY_NAME[name], seed, folder)
        assert outcome.result in GOOD, str(outcome)

    check()
